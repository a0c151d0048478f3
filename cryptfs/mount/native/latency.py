"""Keeping processors awake while programs send one small request after another.

Every request has two wake-ups: the program's processor goes idle while the engine works, and must be woken
for the answer. In a virtual machine a processor that goes idle is handed back to the host, and to get it
back takes longer than the work itself. Linux lets programs say how long a wake-up may take (PM QoS: a
number written to a device file); with zero it polls in its idle loop instead.

Asked for only where it pays and does no harm: by root, since nobody else may; in a virtual machine that
would halt; with few processors, since all idle ones poll; and while there are many requests, no longer.
The kernel takes the wish back when the descriptor is closed, so also when this process is killed.

Source: the kernel's Documentation/power/pm_qos_interface.rst and virt/guest-halt-polling.rst;
docs/decisions/0013 has the measurements.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from struct import Struct

log = logging.getLogger(__name__)

_DEVICE = Path("/dev/cpu_dma_latency")
_IDLE_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_HALTING_DRIVER = "haltpoll"  # the one of virtual machines that can poll before they halt
_MAX_PROCESSORS = 4
_MANY = 4  # requests in a tick, from which on it pays
_PATIENCE = 3  # ticks without a request, after which it ends

_MICROSECONDS = Struct("=i")
_NONE = _MICROSECONDS.pack(0)
_ANY = _MICROSECONDS.pack(-1)


def would_help() -> bool:
    """Whether this machine's processors are slow to wake, few, and ready to poll instead."""
    try:
        driver = _IDLE_DRIVER.read_text().strip()
    except OSError:
        return False
    return driver == _HALTING_DRIVER and (os.cpu_count() or 1) <= _MAX_PROCESSORS


class WakeLatency:
    """Holds the wish for processors that stay awake, as long as there are requests.

    Used by one thread. Args: wanted: whether to do anything at all.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._possible = wanted and would_help()
        self._fd = -1
        self._idle_ticks = 0
        self.held = False

    def tick(self, requests: int) -> None:
        """Once a millisecond while there is work. requests: that were served since the last time."""
        if requests >= _MANY:
            self._idle_ticks = 0
            if self._possible and not self.held:
                self._hold()
        elif requests:
            self._idle_ticks = 0
        else:
            self._idle_ticks += 1
            if self.held and self._idle_ticks >= _PATIENCE:
                self.release()

    def _hold(self) -> None:
        try:
            if self._fd < 0:
                self._fd = os.open(_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._fd, _NONE)
        except OSError as error:  # as for everybody but root
            log.debug("processors cannot be kept awake: %s", error.strerror)
            self._possible = False
            self.close()
        else:
            self.held = True

    def release(self) -> None:
        """Let processors sleep."""
        if self.held:
            self.held = False
            try:
                os.write(self._fd, _ANY)
            except OSError as error:
                log.debug("the wish for awake processors was not taken back: %s", error.strerror)
                self._possible = False
                self.close()

    def close(self) -> None:
        """Let processors sleep, for good."""
        self.held = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
