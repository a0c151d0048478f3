"""The loop of the native engine: negotiate, read requests, answer, end with the mount.

One thread does all the work as long as nothing takes long: to hand the interpreter lock from thread to thread
costs more than most requests. During a large read or write a second thread reads the device. And while there
is work, a watcher looks once a millisecond. If all active threads are stuck in their requests, as with a slow
disk, it lets a further thread read.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import Protocol

from cryptfs.errors import MountError
from cryptfs.mount.errno_map import errno_of
from cryptfs.mount.latency import Pair, WakeLatency
from cryptfs.mount.native import structs
from cryptfs.mount.native.directio import PageDropper
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.mount.native.pruning import Pruner
from cryptfs.mount.native.request import LARGE, Channel, Request, Table, Work
from cryptfs.mount.native.structs import Cap
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import MountOptions
from cryptfs.mount.statistics import Statistics
from cryptfs.storage.libc import release_memory
from cryptfs.vfs.content.cipherpool import usable_cores

log = logging.getLogger(__name__)

MAX_REQUEST = 1024 * 1024
_MAX_PAGES = MAX_REQUEST // 4096
_BUFFER_SIZE = MAX_REQUEST + 4096  # headers come before the data
_MAX_BACKGROUND = 64
_CONGESTION = 48
_DEFAULT_THREADS = 16
_SMALL_REPLY = 1024  # a copy of so many bytes is cheaper than a second piece
_SPIN = 0.0001  # seconds that a thread looks for the next request before it sleeps
_MAX_SPINS = 16
_PAUSE = 64  # requests without looking, after too many looks in vain
_TICK = 0.001  # seconds between two looks of the watcher
_LARGE_TICKS = 2  # a large request may take so many with nothing wrong
_IDLE_TICKS = 50  # without a request, after which the watcher sleeps
_REST = 3.0  # seconds of sleep, after which unused memory goes back

WANTED = (
    Cap.ASYNC_READ | Cap.BIG_WRITES | Cap.MAX_PAGES | Cap.PARALLEL_DIROPS | Cap.ATOMIC_O_TRUNC
    | Cap.DO_READDIRPLUS | Cap.READDIRPLUS_AUTO | Cap.ASYNC_DIO | Cap.CACHE_SYMLINKS
    | Cap.HANDLE_KILLPRIV_V2 | Cap.SETXATTR_EXT | Cap.INIT_EXT
)  # fmt: skip
"""ASYNC_DIO needs PageDropper: without it buffered reads are stale after asynchronous direct writes."""

# Looked up once, not in every request.
_HEADER_SIZE, _unpack = structs.IN_HEADER.size, structs.IN_HEADER.unpack_from
_REPLY_SIZE, _pack_reply = structs.OUT_HEADER.size, structs.OUT_HEADER.pack


class Served(Protocol):
    """The handlers of the requests, and what goes with them.

    handlers: by opcode; ENOSYS is the answer to others.
    nodes:    the kernel forgets some of them when there are too many.
    handles:  whether a file handle leads to its file after the kernel has dropped the inode.
    """

    handlers: Table
    statistics: Statistics
    nodes: NodeTable
    handles: bool

    def agreed(self, chosen: Cap) -> None:
        """These offers of the kernel hold from now on."""

    def errno_of_missing(self, nodeid: int) -> int:
        """The errno for a missing entry of a directory."""

    def rest(self) -> None:
        """Give memory back: no request has come for a while."""


class _Worker:
    """One thread that serves requests, with its buffers."""

    def __init__(self, make_way: Callable[[], None], channel: Channel) -> None:
        self._make_way = make_way
        self._channel = channel
        self.take_buffers()
        self.served = self.thread_id = 0
        self.reading = False  # the device, or about to
        self.busy = False
        self.large = False  # its request moves LARGE bytes or more
        self.caller = self.switches = 0  # the thread that asked last; how often that was another one
        self.parked = threading.Lock()  # held while the thread has to wait
        self.poll: Callable[..., object]  # of the device
        self.spins = _MAX_SPINS  # how often it may look in vain, see _wait; below 0 it counts up to 1

    def take_buffers(self) -> None:
        """Before the first request, and after drop_buffers."""
        self.buffer = memoryview(bytearray(_BUFFER_SIZE))
        self.request = Request(memoryview(bytearray(MAX_REQUEST)), self.make_way, self._channel)

    def drop_buffers(self) -> None:
        """While the thread is parked."""
        self.buffer = memoryview(b"")
        self.request = Request(self.buffer, self.make_way, self._channel)

    def lone_pair(self) -> Pair | None:
        """This thread and the program that asks; None if several have asked since the last call."""
        switches, self.switches = self.switches, 0
        return (self.thread_id, self.caller) if switches <= 1 else None

    def make_way(self) -> None:
        """For the handlers: a large request follows."""
        self.large = True
        self._make_way()


class Connection:
    """Serves one connection.

    Args: fd: of /dev/fuse, mounted. If it blocks, threads sleep until the next request comes; if not,
              they first look for one for a moment.
          on_ready: called once, when the connection answers requests.
    """

    def __init__(
        self, fd: int, requests: Served, options: MountOptions, on_ready: Callable[[], None]
    ) -> None:
        self._fd = fd
        self._requests = requests
        self._handlers = requests.handlers
        self._counts = requests.statistics.counts
        self._failed = requests.statistics.failed
        self._options = options
        self._on_ready = on_ready
        self._ended = False
        self._pruner = Pruner(requests.nodes, self.notify)
        self._dropper = PageDropper(self._answer_deferred)
        self._max_workers = options.max_threads or _DEFAULT_THREADS
        self._enough_for_large = max(2, usable_cores())
        self._workers: list[_Worker] = []
        self._active: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # covers the lists above
        self._watching = False
        self._wake_watcher = threading.Semaphore(0)
        self._wake_latency = WakeLatency(wanted=options.fast_wake)  # of the watcher

    # ---- negotiation

    def negotiate(self) -> None:
        """Answer INIT. Raises: MountError: the kernel is too old."""
        buffer = memoryview(bytearray(_BUFFER_SIZE))
        view = buffer[: os.readv(self._fd, (buffer,))]
        _, opcode, unique, *_ = structs.IN_HEADER.unpack_from(view)
        body = view[structs.IN_HEADER.size :]
        major, minor, max_readahead, flags = structs.INIT_IN.unpack_from(body)
        if opcode != Op.INIT or major != structs.KERNEL_MAJOR or minor < structs.KERNEL_MINOR_MIN:
            raise MountError(
                f"the kernel speaks FUSE {major}.{minor}; this engine needs "
                f"{structs.KERNEL_MAJOR}.{structs.KERNEL_MINOR_MIN}: use --engine fusepy"
            )
        if flags & Cap.INIT_EXT and len(body) >= structs.INIT_IN.size + structs.INIT_IN_EXT.size:
            flags |= structs.INIT_IN_EXT.unpack_from(body, structs.INIT_IN.size)[0] << 32
        chosen = self._wanted() & Cap(flags)
        if not chosen & Cap.INIT_EXT:  # such a kernel reads no flags2
            chosen &= Cap(0xFFFFFFFF)
        reply = structs.INIT_OUT.pack(
            structs.KERNEL_MAJOR, min(minor, structs.KERNEL_MINOR_MAX), max(max_readahead, MAX_REQUEST),
            chosen & 0xFFFFFFFF, _MAX_BACKGROUND, _CONGESTION, MAX_REQUEST, 1, _MAX_PAGES, 0, chosen >> 32,
        )  # fmt: skip
        self._requests.agreed(chosen)
        self._reply(unique, 0, reply)
        self._pruner.start(minor)

    def _wanted(self) -> Cap:
        wanted = WANTED | (Cap.EXPORT_SUPPORT if self._requests.handles else Cap.NO_EXPORT_SUPPORT)
        if self._options.writeback:
            wanted |= Cap.WRITEBACK_CACHE
        if self._options.xattrs:
            wanted |= Cap.DONT_MASK  # a default ACL replaces the umask
            if self._options.kernel_checks_permissions:
                wanted |= Cap.POSIX_ACL
        return wanted

    # ---- loops

    def serve(self) -> None:
        """Answer requests until the mount is gone."""
        self._dropper.start()
        self._add_worker()
        watcher = threading.Thread(target=self._watch, name="cryptfs-watch", daemon=True)
        watcher.start()
        self._on_ready()
        while not self._ended or any(thread.is_alive() for thread in self._threads):
            for thread in list(self._threads):
                thread.join()
        self._wake_watcher.release()
        watcher.join()
        self._wake_latency.close()
        self._pruner.stop()
        self._dropper.stop()

    def _add_worker(self) -> None:
        """Let one thread more read the device."""
        with self._lock:
            parked = [worker for worker in self._workers if worker not in self._active]
            if parked:
                self._active.append(parked[0])
                parked[0].parked.release()
                return
            if len(self._workers) >= self._max_workers:
                return
            try:
                self._start_worker()
            except (MemoryError, RuntimeError):  # the system allows no more threads
                if not self._threads:
                    raise
                self._max_workers = len(self._threads)
                log.warning("cannot start more than %d threads", self._max_workers)

    def _start_worker(self) -> None:
        worker = _Worker(self._make_way, self)
        number = len(self._workers) + 1
        thread = threading.Thread(target=self._loop, args=(worker,), name=f"cryptfs-{number}")
        self._workers.append(worker)
        self._active.append(worker)
        try:
            thread.start()
        except BaseException:
            self._workers.remove(worker)
            self._active.remove(worker)
            raise
        self._threads.append(thread)

    def _loop(self, worker: _Worker) -> None:
        worker.parked.acquire()
        worker.thread_id = threading.get_native_id()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        worker.poll = poll.poll
        fd, buffer, buffers, active = self._fd, worker.buffer, (worker.buffer,), self._active
        while not self._ended:
            worker.reading = True
            try:
                size = os.readv(fd, buffers)
                if not size:
                    self._end()  # the device never ends so, but a socket in its place does
            except BlockingIOError:
                self._wait(worker)
                continue
            except OSError as error:
                size = 0
                if error.errno not in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    if error.errno not in (errno.ENODEV, errno.ECONNABORTED):  # unmounted
                        log.error("reading from the kernel failed: %s", error.strerror)
                    self._end()
            worker.reading = False
            if not size:
                continue
            worker.large = False
            worker.busy = True  # before the next line: the watcher, about to sleep, asks in the other order
            if not self._watching:
                self._watching = True
                self._wake_watcher.release()
            if worker.spins <= 0:
                worker.spins += 1
            self._answer(worker, buffer[:size])
            worker.served += 1
            worker.busy = False
            if len(active) > 1:
                del buffer, buffers  # for _rest, while it is parked
                self._park_if_surplus(worker)
                buffer, buffers = worker.buffer, (worker.buffer,)

    def _wait(self, worker: _Worker) -> None:
        """Wait for a request: look for one for a moment before going to sleep.

        An idle processor takes longer to wake, above all in a virtual machine, than most requests take. A
        program that works on files asks again at once; if nobody does, a worker soon stops looking, and tries
        again after a while.
        """
        poll = worker.poll
        if worker.spins > 0 and len(self._active) == 1:
            deadline = time.perf_counter() + _SPIN
            while time.perf_counter() < deadline:
                if poll(0):
                    worker.spins = min(worker.spins + 1, _MAX_SPINS)
                    return
            worker.spins -= 2
            if worker.spins <= 0:
                worker.spins = -_PAUSE
        poll()

    def _somebody_reads(self) -> bool:
        """Whether another thread takes the next request. Ask with the lock held, or for a hint."""
        return any(worker.reading for worker in self._active)

    def _make_way(self) -> None:
        """Before a large request: let another thread read the device meanwhile.

        Not more of them than processors: writes to one file wait for each other, and with more threads the
        data of each would have left the processor's cache when its turn comes.
        """
        if len(self._active) < self._enough_for_large and not self._somebody_reads():
            self._add_worker()

    def _park_if_surplus(self, worker: _Worker) -> None:
        with self._lock:
            too_many = worker.large and len(self._active) > self._enough_for_large
            if len(self._active) == 1 or self._ended or not (too_many or self._somebody_reads()):
                return
            self._active.remove(worker)
        worker.parked.acquire()  # until _add_worker or _end lets go
        if not worker.buffer:
            worker.take_buffers()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            parked = [worker for worker in self._workers if worker not in self._active]
            self._active.extend(parked)
        for worker in parked:
            worker.parked.release()

    def _watch(self) -> None:
        """Notice when all threads that read the device are stuck in a request."""
        while not self._ended:
            if not self._wake_watcher.acquire(timeout=_REST):
                self._rest()
                self._wake_watcher.acquire()
            idle = stuck = 0
            before: list[tuple[_Worker, int]] = []
            served = sum(worker.served for worker in self._workers)
            while idle < _IDLE_TICKS and not self._ended:
                time.sleep(_TICK)
                with self._lock:
                    now = [(worker, worker.served) for worker in self._active]
                stuck = stuck + 1 if now == before and all(worker.busy for worker, _ in now) else 0
                idle = idle + 1 if now == before and not stuck else 0
                if stuck > (_LARGE_TICKS if all(worker.large for worker, _ in now) else 0):
                    self._add_worker()
                before = now
                served_before, served = served, sum(worker.served for worker in self._workers)
                pair = now[0][0].lone_pair() if len(now) == 1 else None
                self._wake_latency.tick(served - served_before, pair)
            self._wake_latency.release()
            self._watching = False
            if any(worker.busy for worker in self._workers):
                self._watching = True  # a request came on the way to sleep
                self._wake_watcher.release()

    def _rest(self) -> None:
        """No request has come for a while: give memory back."""
        with self._lock:
            for worker in self._workers:
                if worker not in self._active:
                    worker.drop_buffers()
        self._requests.rest()
        release_memory()

    # ---- requests

    def _answer(self, worker: _Worker, view: memoryview) -> None:
        if len(view) < _HEADER_SIZE:
            log.error("a request has only %d bytes, which is too short", len(view))
            return
        request = worker.request
        length, opcode, unique, request.nodeid, request.uid, request.gid, request.pid, _, _ = _unpack(view)
        request.unique = unique
        if request.pid != worker.caller and request.pid:  # 0: the kernel itself
            worker.caller = request.pid
            worker.switches += 1
        if length != len(view):
            log.error("a request of %d bytes claims to have %d", len(view), length)
            self._reply(unique, errno.EIO, b"")
            return
        if length >= LARGE:
            worker.make_way()
        request.body = view[_HEADER_SIZE:]
        handler = self._handlers.get(opcode)
        if handler is None:
            if opcode != Op.DESTROY:
                self._reply(unique, errno.ENOSYS, b"")
            return
        self._counts[opcode] += 1
        try:
            payload = handler(request)
        except OSError as error:
            missing = error.errno == errno.ENOENT and opcode in structs.BY_NAME
            code = self._requests.errno_of_missing(request.nodeid) if missing else error.errno
            self._reply(unique, code or errno.EIO, b"")
        except struct.error as error:
            log.error("a request with opcode %d is malformed: %s", opcode, error)
            self._reply(unique, errno.EINVAL, b"")
        except Exception as error:  # noqa: BLE001 - the one place; errno_of logs unforeseen ones
            self._reply(unique, errno_of(error), b"")
        else:
            if payload is None:
                return
            if isinstance(payload, int):
                self._reply(unique, payload, b"")
            else:
                self._reply(unique, 0, payload)

    def defer(self, unique: int, work: Work, *, in_turn: bool) -> None:
        """For the handlers: let another thread answer a request, see Request.defer."""
        if in_turn:
            self._dropper.put(unique, work)
            return
        thread = threading.Thread(target=self._answer_deferred, args=(unique, work), name="cryptfs-later")
        thread.start()
        with self._lock:
            self._threads = [other for other in self._threads if other.is_alive() or other.ident is None]
            self._threads.append(thread)

    def _answer_deferred(self, unique: int, work: Work) -> None:
        try:
            payload = work()
        except Exception as error:  # noqa: BLE001 - as in _answer
            self._reply(unique, errno_of(error), b"")
        else:
            self._reply(unique, 0, payload)

    def _reply(self, unique: int, code: int, payload: bytes | memoryview) -> None:
        if code:
            self._failed(code)
        header = _pack_reply(_REPLY_SIZE + len(payload), -code, unique)
        try:
            if len(payload) < _SMALL_REPLY:
                os.write(self._fd, header + payload)
            else:
                os.writev(self._fd, (header, payload))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # the loop meets the same error
            if error.errno != errno.ENOENT:  # the caller was interrupted and is gone
                log.error("a reply was refused by the kernel: %s", error.strerror)

    def notify(self, code: int, payload: bytes) -> None:
        """Send the kernel a message without a request. Raises: OSError: as it answers."""
        header = structs.OUT_HEADER.pack(structs.OUT_HEADER.size + len(payload), code, 0)
        os.writev(self._fd, (header, payload))
