"""The folder of packed weights: its files' format, what they were made from, how large they may grow. No torch.

A file holds a checksummed JSON header and pieces of bytes on page borders, to be mapped. It appears whole, by rename.
What it is made from is known by digest; digests of large files are remembered, for a start has no time to compute them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepseek_r1.config.base import parse_size
from deepseek_r1.core.environment import cache_dir, disk_free
from deepseek_r1.core.errors import CheckpointError, ConfigError
from deepseek_r1.models.checkpoint.base import Checkpoint

LIMIT_VARIABLE = "DEEPSEEK_R1_CACHE_LIMIT"
"""Environment variable with the size (as 4GiB) that all files may have together; 0 keeps none."""

DEFAULT_LIMIT = 20 << 30
"""The limit where none is given, or half of the disk's room where that is less."""

SUFFIX = ".packed"
PAGE = 4096
"""Pieces begin at multiples of this."""

BLOCK = 2 << 20
"""Bytes of a huge page. Files are written in multiples of this."""

MAX_HEADER_BYTES = 32 << 20
MAX_DIGESTS = 4096

_START = struct.Struct("<8sIIQ32s")  # magic, format's version, nothing, length of the header, its sha256
_MAGIC, _VERSION = b"R1PACKED", 1
_SAMPLE_EVERY = 1 << 20
_STALE_SECONDS = 3600.0
_REMEDY = "deepseek-r1 cache clear"

log = logging.getLogger(__name__)


def folder() -> Path:
    """Where the packed weights lie. Not created here."""
    return cache_dir() / "packed"


def _made(path: Path) -> Path:
    """`path`, in or at the folder, made so that only this user can enter it."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    folder().mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def limit() -> int:
    """Bytes that the files may have together. Raises `ConfigError` for a limit that is no size."""
    if text := os.environ.get(LIMIT_VARIABLE):
        try:
            return parse_size(text)
        except ConfigError as error:
            raise ConfigError(f"{LIMIT_VARIABLE}: {error.message}", remedy=error.remedy) from None
    return min(DEFAULT_LIMIT, (disk_free(folder()) + sum(size for _, size, _ in _files())) // 2)


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """A digest of the checkpoint's files, and of the config.json beside safetensors."""
    whole = hashlib.sha256()
    for path in checkpoint.paths:
        whole.update(file_digest(path).encode())
    if checkpoint.format == "safetensors":
        whole.update(json.dumps(checkpoint.metadata, sort_keys=True).encode())
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, computed once for each path, inode, size, and times of change.

    The inode's own time of change (ctime) can't be set back by whoever writes the file, as its mtime can.
    """
    path = path.resolve()
    before = _identity(path)
    memo = folder() / "digests" / hashlib.sha256(repr((str(path), *before)).encode()).hexdigest()
    try:
        known = memo.read_bytes()[:65].decode("ascii", "replace")
        if len(known) == 64 and set(known) <= set("0123456789abcdef"):
            return known
    except OSError:
        pass  # not remembered yet
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _identity(path) == before:
        _remember(memo, digest)
    return digest


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _remember(memo: Path, digest: str) -> None:
    temporary = memo.with_name(f".{memo.name}.{os.getpid()}.partial")
    try:
        _made(memo.parent)
        temporary.write_text(digest)
        os.replace(temporary, memo)
        others = sorted(memo.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in others[: max(0, len(others) - MAX_DIGESTS)]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.info("the digest of a model's file is not remembered: %s", error)


class CacheFile:
    """An open file of packed weights: its header, and views into the mapped rest.

    Raises `FileNotFoundError` where there is none, `CheckpointError` for one that is not whole, not this user's own, or
    not as it was written. The header is checked by its digest, the pieces by one page in each MiB: enough to find a
    file whose blocks never reached the disk. Reading all of it would take longer than the start it is for, and bits
    that change on a disk are as likely in the checkpoint, which isn't read twice either.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise self.error("file", "is not a regular file that only you can write")
            self.size = status.st_size
            self.header = self._read_header(descriptor)
            # Private: what is written there stays in this process. Torch has no tensors that can't be written.
            self._map = mmap.mmap(descriptor, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(descriptor)

    def error(self, field: str, problem: str) -> CheckpointError:
        """A `CheckpointError` that names this file and `field`."""
        return CheckpointError(self.path, field, problem, remedy=_REMEDY)

    def check_sample(self) -> None:
        """Raise `CheckpointError` unless the sampled pages are what was written."""
        begin = self.header.get("begin")
        if type(begin) is not int or not 0 < begin <= self.size or begin % PAGE:
            raise self.error("header", f"{begin!r} is no place where pieces begin")
        if self.header.get("sample") != _sample(lambda start: self._map[start : start + PAGE], begin, self.size):
            raise self.error("content", "is not what was written")

    def load(self) -> None:
        """Have the kernel read the whole file now, where it can: page by page on first use takes longer."""
        try:
            self._map.madvise(22)  # MADV_POPULATE_READ, Linux 5.14
        except OSError:
            self._map.madvise(mmap.MADV_WILLNEED)

    def piece(self, offset: object, length: object) -> npt.NDArray[np.uint8]:
        """A view of the `length` bytes from `offset`; it keeps the mapping alive. Raises `CheckpointError`."""
        if type(offset) is not int or type(length) is not int or offset < 0 or length < 0 or offset % PAGE:
            raise self.error("header", f"{offset!r} and {length!r} are no place of a piece")
        if offset + length > self.size:
            raise self.error("header", f"a piece ends at byte {offset + length} of {self.size}")
        return np.frombuffer(self._map, np.uint8, length, offset)

    def _read_header(self, descriptor: int) -> dict[str, Any]:
        start = os.pread(descriptor, _START.size, 0)
        if len(start) < _START.size:
            raise self.error("file", f"has only {self.size} bytes")
        magic, version, _, length, digest = _START.unpack(start)
        if magic != _MAGIC or version != _VERSION:
            raise self.error("magic", f"is not that of packed weights, version {_VERSION}")
        if length > min(MAX_HEADER_BYTES, self.size):
            raise self.error("header length", f"claims {length} bytes")
        text = os.pread(descriptor, length, _START.size)
        if hashlib.sha256(text).digest() != digest:
            raise self.error("header", "is damaged")
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error("header", f"is not JSON: {type(error).__name__}") from None
        if not isinstance(header, dict) or header.get("size") != self.size:
            raise self.error("size", f"is {self.size}, not what was written")
        return header


def write(path: Path, header: Mapping[str, Any], pieces: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Write a cache file under `path`, after making room for it; `offsets` in its header are those of the pieces.

    It is there all at once, when it is on the disk. Raises `OSError` where it can't be written, `CheckpointError` where
    it is larger than all files may be.
    """
    offsets = [1 << 62] * len(pieces)
    places = {"offsets": offsets, "begin": 1 << 62, "size": 1 << 62, "sample": "0" * 64}
    begin = at = _aligned(_START.size + len(json.dumps({**header, **places})))
    offsets = []
    for piece in pieces:
        offsets.append(at)
        at = _aligned(at + piece.nbytes)
    _made(path.parent)
    make_room(at)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "r+b", buffering=0) as file:
            for place, block in _blocks(offsets, pieces, at):
                file.seek(place)
                _write_all(file.fileno(), memoryview(block.data))
            # Read, not mapped: a page that is touched can bring megabytes of the file into this process.
            sample = _sample(partial(os.pread, file.fileno(), PAGE), begin, at)
            places = {"offsets": offsets, "begin": begin, "size": at, "sample": sample}
            text = json.dumps({**header, **places}).encode()
            start = _START.pack(_MAGIC, _VERSION, 0, len(text), hashlib.sha256(text).digest())
            file.seek(0)
            _write_all(file.fileno(), memoryview(start + text))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _blocks(
    offsets: Sequence[int], pieces: Sequence[npt.NDArray[np.uint8]], size: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The file in whole blocks, each with its place; the array is the same every time.

    What is written so lies on huge pages, where the file system has them: mapped weights are read some 10 % faster.
    """
    block, first = np.zeros(BLOCK, np.uint8), 0
    for offset, piece in zip(offsets, pieces, strict=True):
        left = np.ascontiguousarray(piece).reshape(-1)
        while left.size:
            if offset - first >= BLOCK:
                yield first, block
                block[:] = 0
                first += BLOCK
                continue
            count = min(first + BLOCK - offset, left.size)
            block[offset - first : offset - first + count] = left[:count]
            offset, left = offset + count, left[count:]
    for start in range(first, size, BLOCK):
        yield start, block[: size - start]
        block[:] = 0


def make_room(nbytes: int) -> None:
    """Remove what was used longest ago until `nbytes` more fit. Raises `CheckpointError` if they never do."""
    most = limit()
    if nbytes > most:
        raise CheckpointError(
            folder(), "size", f"{nbytes} bytes are more than {most}", remedy=f"set {LIMIT_VARIABLE}, or free the disk"
        )
    for path in folder().glob(".*.partial"):
        if time.time() - _modified(path) > _STALE_SECONDS:  # whoever wrote it was killed
            path.unlink(missing_ok=True)
    files = sorted(_files(), key=lambda file: file[2])
    total = sum(size for _, size, _ in files)
    for path, size, _ in files:
        if total + nbytes <= most:
            break
        path.unlink(missing_ok=True)
        total -= size


@dataclass(frozen=True)
class Entry:
    """A file of the cache. `model`, `precision` and `kernels` are None where it can't be read; `used` is a time."""

    path: Path
    nbytes: int
    used: float
    model: str | None = None
    precision: str | None = None
    kernels: str | None = None


def entries() -> list[Entry]:
    """What is in the cache, the file that was used last first."""
    found = []
    for path, size, used in sorted(_files(), key=lambda file: -file[2]):
        try:
            header = CacheFile(path).header
            key = header["key"]
            words = tuple(map(_word, (header["model"], key["precision"], key["path"])))
        except (OSError, CheckpointError, KeyError, TypeError, ValueError):
            words = (None, None, None)
        found.append(Entry(path, size, used, *words))
    return found


def clear() -> tuple[int, int]:
    """Remove all files of the cache; returns how many files of packed weights that were, and their bytes."""
    count = total = 0
    for path, size, _ in list(_files()):
        path.unlink(missing_ok=True)
        count, total = count + 1, total + size
    for pattern in (".*.partial", "digests/*", "digests/.*.partial"):
        for path in folder().glob(pattern):
            path.unlink(missing_ok=True)
    return count, total


def used(path: Path) -> None:
    """Note that a file was used now."""
    try:
        os.utime(path)
    except OSError:
        return  # it is gone, or the disk can't be written: nothing hangs on it


def _files() -> Iterator[tuple[Path, int, float]]:
    """(path, bytes, time of last use) of each file of packed weights."""
    for path in folder().glob(f"*{SUFFIX}"):
        try:
            status = path.lstat()
        except OSError:
            continue  # another process has just removed it
        if stat.S_ISREG(status.st_mode):
            yield path, status.st_size, status.st_mtime


def _word(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return time.time()


def _sample(page: Callable[[int], bytes], begin: int, size: int) -> str:
    """A digest of a page in each MiB from `begin` on, and of the last page; `page` gives the one at an offset."""
    digest = hashlib.sha256()
    for start in (*range(begin, size, _SAMPLE_EVERY), max(begin, size - PAGE)):
        digest.update(page(start))
    return digest.hexdigest()


def _write_all(descriptor: int, data: memoryview) -> None:
    data = data.cast("B")
    while data:
        data = data[os.write(descriptor, data[: 1 << 30]) :]


def _aligned(offset: int) -> int:
    return -(-offset // PAGE) * PAGE
