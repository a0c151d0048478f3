"""A process that runs programs on a mount until it is gone: one thread a program, each with a log.

It is told what to do by one JSON argument: directories, seeds, logs, the promise, sizes. The logs lie outside
the mount. A line is `asked N` before an operation, `done N TIME` after it, `failed N ERRNO TIME` at its end:
time by the monotonic clock, so that what came after the kill can be told.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from cryptfs.storage.libc import fallocate
from tests.crash.history import FileHistory
from tests.crash.program import Operation, Program, Promise

MAX_OPEN = 24


class OnMount:
    """Does operations in a directory, through the kernel."""

    def __init__(self, directory: bytes, program: Program) -> None:
        self._directory = directory
        self._program = program
        self._open: dict[FileHistory, int] = {}

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _path(self, name: bytes) -> bytes:
        return self._directory + b"/" + name

    def _handle(self, history: FileHistory, name: bytes) -> int:
        known = self._open.get(history)
        if known is None:
            known = self._open[history] = os.open(self._path(name), os.O_RDWR)
        return known

    def do(self, operation: Operation) -> None:
        """Carry it out. The program has been asked for it already."""
        path, other = self._path(operation.name), self._path(operation.other)
        match operation.kind:
            case "create":
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                self._open[self._program.file(operation.name)] = fd
                if len(self._open) > MAX_OPEN:  # files without a name among them
                    os.close(self._open.pop(next(iter(self._open))))
            case "symlink":
                os.symlink(operation.other, path)
            case "mkdir":
                os.mkdir(path)
            case "rmdir":
                os.rmdir(path)
            case "unlink":
                os.unlink(path)
            case "link":
                os.link(path, other)
            case "rename":
                os.rename(path, other)
            case "sync directory":
                fd = os.open(self._directory, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            case "reopen":
                known = self._open.pop(self._program.file(operation.name), None)
                if known is not None:
                    os.close(known)
            case _:
                self._do_file(operation, path)

    def _do_file(self, operation: Operation, path: bytes) -> None:
        fd = self._handle(self._program.file(operation.name), operation.name)
        match operation.kind:
            case "write":
                content = operation.content
                if os.pwrite(fd, content, operation.offset) != len(content):
                    raise OSError(0, "a write was short")
            case "truncate" if operation.length % 2:
                os.truncate(path, operation.length)
            case "truncate":
                os.ftruncate(fd, operation.length)
            case "allocate":
                fallocate(fd, operation.mode, operation.offset, operation.length)
            case "fsync":
                os.fsync(fd)
            case _:
                os.fdatasync(fd)


def run(directory: str, seed: int, log: str, promise: str, file_size: int) -> None:
    """Run one program until something fails, which the end of the mount is."""
    program = Program(seed, Promise[promise], file_size)
    work = OnMount(os.fsencode(directory), program)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    while True:
        operation = program.next()
        os.write(log_fd, b"asked %d\n" % program.done)
        try:
            work.do(operation)
        except OSError as error:
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            os.write(log_fd, b"failed %d %d %d\n" % (program.done, error.errno or 0, now))
            return
        os.write(log_fd, b"done %d %d\n" % (program.done, time.clock_gettime_ns(time.CLOCK_MONOTONIC)))
        program.returned(operation)


def main(order: str) -> None:
    """Run all programs of an order."""
    threads = [threading.Thread(target=run, kwargs=what) for what in json.loads(order)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
