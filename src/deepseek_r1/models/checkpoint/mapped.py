"""A read-only memory-mapped file whose every access is checked, and whose pages can be given back after reading."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepseek_r1.core.errors import CapacityError, CheckpointError, ModelNotFoundError


class MappedFile:
    """The bytes of one regular file.

    Raises `ModelNotFoundError` if there is no such file, `CheckpointError` if it is empty or no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # O_NONBLOCK: opening a FIFO must not wait for a writer
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"{path} does not exist", remedy="check the path") from error
        except (OSError, ValueError) as error:
            raise self.error(
                "file", f"cannot be opened: {error}", remedy="check the path and its permissions"
            ) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self.error("file", "is not a regular file", remedy="name a checkpoint file or its directory")
            if status.st_size == 0:
                raise self.error("file", "is empty")
            self.size = status.st_size
            self._map = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise CapacityError(
                    f"{path}: no address space to map {self.size} bytes", remedy="raise ulimit -v"
                ) from error
            raise self.error("file", f"cannot be mapped: {error}") from error
        finally:
            os.close(descriptor)

    def error(self, field: str, problem: str, *, remedy: str = "fetch the file again") -> CheckpointError:
        """A `CheckpointError` that names this file and `field`."""
        return CheckpointError(self.path, field, problem, remedy=remedy)

    def require(self, stop: int, field: str) -> None:
        """Raise unless the file still has `stop` bytes: touching mapped bytes that were cut off kills the process."""
        try:
            now = self._map.size()
        except OSError as error:
            raise self.error(field, f"cannot be read any more: {error}") from error
        if now < stop:
            raise self.error(field, f"the file shrank to {now} bytes while open, {stop} are needed")

    def bytes(self, start: int, stop: int) -> bytes:
        """A copy of the bytes from `start` to `stop`; the caller has checked both against `size`."""
        return self._map[start:stop]

    def view(self, start: int, length: int) -> npt.NDArray[np.uint8]:
        """A read-only array over `length` bytes from `start`; it keeps the mapping alive."""
        return np.frombuffer(self._map, np.uint8, length, start)

    def release(self, start: int, stop: int) -> None:
        """Drop the pages that hold these bytes from this process's memory; a later access reads them again."""
        start -= start % mmap.PAGESIZE
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """Unmap the file, at once or when the last view of it is gone."""
        try:
            self._map.close()
        except BufferError:
            return  # a view is alive; the mapping goes with it


def quoted(name: str) -> str:
    """A name from a file as an error shows it: quoted, control characters escaped, cut when it is long."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
