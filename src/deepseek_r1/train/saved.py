"""Saved runs: checkpoints that appear whole by one rename, or not at all, whenever the writer is killed.

A checkpoint is a folder `step-00000042`; `saved_content` says what it holds.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from deepseek_r1.core.environment import disk_free
from deepseek_r1.core.errors import CapacityError, ConfigError, DeepSeekError
from deepseek_r1.train.saved_content import Content, Saved, read_saved

MAX_STEP = 10**12

_LOCK, _PARTIAL, _REPLACED, _TRASH = ".lock", ".partial-", ".replaced-", ".trash-"
_SPARE_BYTES = 1 << 20  # for the manifest, the folders, and what the file system rounds up

log = logging.getLogger(__name__)


class CheckpointFolderError(DeepSeekError):
    """A folder of saved runs that another run uses, that can't be written, or in which nothing is whole."""


class SavedRuns:
    """The checkpoints of one run in a folder, of which the last `keep` stay.

    The folder is locked until `close`, or until this process ends: two runs can't share it. What killed writers left
    is removed on opening. Usable as a context manager. Raises `ConfigError` for a `keep` below 1,
    `CheckpointFolderError` for a folder that another process has open (it is named) or that can't be made.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        if type(keep) is not int or keep < 1:
            raise ConfigError(f"keep must be an integer of at least 1, not {keep!r}")
        self.folder = Path(folder)
        self.keep = keep
        self._damaged: set[int] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._release = weakref.finalize(self, os.close, _locked(self.folder))
            for replaced in self.folder.glob(f"{_REPLACED}*"):  # killed between the two renames of a replacement
                whole = self.folder / replaced.name.removeprefix(_REPLACED)
                os.rename(replaced, _trash_name(replaced) if whole.exists() else whole)
        except OSError as error:
            raise CheckpointFolderError(
                f"{self.folder}: can't be used: {error.strerror}", remedy="name a folder that you can write in"
            ) from None
        self._empty_trash()

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those beyond `keep`; returns its folder. On return it is on the disk.

        `state` is what JSON keeps exactly: None, bool, int, finite float, str, lists and dicts with names as keys.
        Tensors are int64, fp32, fp16, bf16, uint8 or bool. Raises `ConfigError` for another state, `UnsupportedError`
        for another type of tensor, `CapacityError` where the disk is full (the older checkpoints stay),
        `CheckpointFolderError` where a checkpoint of a later step is there, or none can be written.
        """
        if type(step) is not int or not 0 <= step <= MAX_STEP:
            raise ConfigError(f"step must be an integer from 0 to {MAX_STEP}, not {step!r}")
        if not self._release.alive:
            raise CheckpointFolderError(f"{self.folder}: was closed", remedy="open it anew")
        later = [found for found in _steps(self.folder) if found > step and found not in self._damaged]
        if later:
            raise CheckpointFolderError(
                f"{self.folder}: holds step {later[-1]}, later than step {step}",
                remedy="resume from it, or save this run in another folder",
            )
        content = Content(step, tensors, state)
        needed = content.nbytes + _SPARE_BYTES
        final = self.folder / _name(step)
        try:
            if disk_free(self.folder) < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._put(content, final)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CapacityError(
                    f"{self.folder}: the disk is full: step {step} needs {needed} bytes, "
                    f"{disk_free(self.folder)} are free",
                    remedy="free space, or save in a folder on another disk",
                ) from error
            raise CheckpointFolderError(
                f"{self.folder}: step {step} can't be written: {error.strerror}", remedy="check the folder and its disk"
            ) from error
        self._prune(step)
        return final

    def latest(self) -> Saved | None:
        """The newest checkpoint that is as it was written, None where there is none at all. See `read_latest`.

        Those found damaged are removed when the next one has been saved.
        """
        return _latest(self.folder, self._damaged)

    def close(self) -> None:
        """Let other runs open the folder."""
        self._release()

    def __enter__(self) -> SavedRuns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, content: Content, final: Path) -> None:
        """Write the folder `final`: under another name until all of it is on the disk."""
        partial = self.folder / f"{_PARTIAL}{final.name}"
        try:
            partial.mkdir()
            content.write(partial)
            _sync(partial)
            if final.exists():
                os.rename(final, self.folder / f"{_REPLACED}{final.name}")
            os.rename(partial, final)
            _sync(self.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _prune(self, step: int) -> None:
        """Remove what `step`, now on the disk, has made superfluous. Failing costs a line in the log."""
        self._damaged.discard(step)
        whole = [found for found in _steps(self.folder) if found not in self._damaged]
        try:
            for old in (*self._damaged, *whole[: -self.keep]):
                path = self.folder / _name(old)
                if path.exists():
                    os.rename(path, _trash_name(path))  # what is half removed is no checkpoint any more
            for replaced in self.folder.glob(f"{_REPLACED}*"):
                os.rename(replaced, _trash_name(replaced))
            self._damaged.clear()
        except OSError as error:
            log.warning("%s: an old checkpoint can't be removed: %s", self.folder, error)
        self._empty_trash()

    def _empty_trash(self) -> None:
        """Remove partial and old folders: the lock is ours, so nobody is writing them."""
        for prefix in (_PARTIAL, _TRASH):
            for path in self.folder.glob(f"{prefix}*"):
                shutil.rmtree(path, ignore_errors=True)


def read_latest(folder: str | os.PathLike[str]) -> Saved | None:
    """The newest checkpoint in a folder that is as it was written, also while a run saves there; None without any.

    One that is damaged is passed over with a warning in the log. Raises `CheckpointFolderError` where all are,
    `CapacityError` where it doesn't fit in memory.
    """
    return _latest(Path(folder), set())


def _latest(folder: Path, damaged: set[int]) -> Saved | None:
    steps = _steps(folder)
    for step in reversed(steps):
        path = folder / _name(step)
        try:
            return read_saved(path, step)
        except (OSError, ValueError) as error:
            damaged.add(step)
            log.warning("%s is damaged and passed over: %s", path, error)
    if steps:
        raise CheckpointFolderError(
            f"{folder}: all {len(steps)} checkpoints are damaged",
            remedy="restore one from a copy, or begin again in an empty folder",
        )
    return None


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock. The system gives the lock back when this process ends, however."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace")
        os.close(descriptor)
        process = f"process {holder}" if holder.isdigit() else "another process"
        raise CheckpointFolderError(
            f"{folder}: {process} saves its run there", remedy="end that run, or save this one in another folder"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    with suppress(OSError):  # on a full disk the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _steps(folder: Path) -> list[int]:
    """The steps that the folder has checkpoints of, whole or not, in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointFolderError(
            f"{folder}: can't be read: {error.strerror}", remedy="name a folder of saved runs"
        ) from None
    found = (re.fullmatch(r"step-(\d{8,13})", name) for name in names)
    return sorted(int(match[1]) for match in found if match and match[0] == _name(int(match[1])))


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _trash_name(path: Path) -> Path:
    return path.with_name(f"{_TRASH}{path.name.lstrip('.')}-{time.time_ns()}")
