"""One commit of a repository in the hub's cache: blobs/<digest>, snapshots/<commit>/<name>, refs/<revision>.

The transfer is `huggingface_hub`'s plain HTTP one, into a file that outlives the process. `hf_hub_download` (2.4) keeps
nothing of a transfer that was cut off and compares sizes only: here it just links what was verified.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from deepseek_r1.core.environment import disk_free
from deepseek_r1.core.errors import CheckpointError, DeepSeekError, UnsupportedError
from deepseek_r1.core.version import __version__
from deepseek_r1.models.hub_errors import AGAIN, no_space

TIMEOUT_SECONDS = 30.0
"""How long the hub may take to answer a question; a transfer has `HF_HUB_DOWNLOAD_TIMEOUT` between two pieces."""

Report = Callable[[str, str, int, int], None]
"""Told (what happens, file, bytes done, bytes in all): "fetch" counts the whole model, "verify" the file."""

_BLOCK = 8 << 20  # bytes hashed between two reports


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `digest` is its sha256 where the hub stores it as LFS, else its git object id, in hex."""

    name: str
    size: int
    digest: str


class HubStore:
    """The files of `repo` at `commit` that are on this machine. `fetched` names those that this object brought."""

    def __init__(self, repo: str, commit: str, cache: Path, report: Report) -> None:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, and lazily exported

        self.repo = repo
        self.commit = commit
        self.cache = cache.resolve()
        self.folder = self.cache / f"models--{repo.replace('/', '--')}"
        self.snapshot = self.folder / "snapshots" / commit
        self.fetched: list[str] = []
        self._report = report
        # A compressed answer has no ranges: a transfer that was cut off could not go on.
        self._headers = build_hf_headers(
            library_name="deepseek-r1-toolkit", library_version=__version__, headers={"Accept-Encoding": "identity"}
        )

    def path(self, file: HubFile) -> Path:
        """Where the content of `file` lies, or will lie."""
        linked = self.snapshot / file.name
        return linked if linked.exists() else self._blob(file)

    def fetch(self, files: Sequence[HubFile]) -> None:
        """Bring what is missing of `files`, each of them verified.

        Raises `CapacityError` before anything is fetched if it won't fit, `CheckpointError` for content that isn't
        what the hub listed, `UnsupportedError` for a file too large for HTTP.
        """
        missing = {file.digest: file for file in files if not self._is_whole(file)}
        needed = sum(file.size - self._part_size(file) for file in missing.values())
        free = disk_free(self.folder)
        if needed > free:
            raise no_space(f"{self.repo} takes {needed / 1e6:,.1f} MB more, {free / 1e6:,.1f} MB are free", self.cache)
        total = sum(file.size for file in files)
        done = sum(file.size for file in files if file.digest not in missing)
        for file in missing.values():
            self._fetch(file, done, total)
            same = [twin for twin in files if twin.digest == file.digest]
            done += sum(twin.size for twin in same)
            self.fetched += [twin.name for twin in same]

    def link(self, file: HubFile) -> None:
        """Give a verified blob its name in the snapshot, as the hub's library lays it out."""
        from huggingface_hub import hf_hub_download

        linked = Path(hf_hub_download(self.repo, file.name, revision=self.commit, cache_dir=self.cache))
        if linked != self.snapshot / file.name or linked.stat().st_size != file.size:
            raise CheckpointError(f"{self.repo}/{file.name}", "file", "changed on the hub meanwhile", remedy=AGAIN)

    def point(self, revision: str) -> None:
        """Let `revision` stand for this commit. Comes last: until then an older, whole snapshot is what is found."""
        if revision == self.commit:
            return
        ref = self.folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        unfinished = ref.with_name(f"{ref.name}.{os.getpid()}")
        unfinished.write_text(self.commit)
        os.replace(unfinished, ref)

    def _blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.digest

    def _part(self, file: HubFile) -> Path:
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def _part_size(self, file: HubFile) -> int:
        part = self._part(file)
        return min(part.stat().st_size, file.size) if part.exists() else 0

    def _is_whole(self, file: HubFile) -> bool:
        """Whether `file` is there; what has another size is removed."""
        path = self.path(file)
        if path.exists() and path.stat().st_size != file.size:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        return self.path(file).exists()

    def _fetch(self, file: HubFile, before: int, total: int) -> None:
        """Fetch and verify one file, going on where an earlier transfer stopped."""
        bar = _bar(
            f"{self.repo}/{file.name}", file.size, lambda have: self._report("fetch", file.name, before + have, total)
        )
        part = self._part(file)
        part.parent.mkdir(parents=True, exist_ok=True)
        url = self._checked_url(file)
        with part.open("ab") as target:
            self._lock(target, file)
            if self._is_whole(file):  # another process was quicker
                part.unlink()
                return
            try:
                self._transfer(url, target, file.size, bar)
                self._verify(part, file)
            except CheckpointError:
                part.unlink()
                raise
            os.replace(part, self._blob(file))

    def _checked_url(self, file: HubFile) -> str:
        """Where the hub serves `file`, which must be what it listed."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise UnsupportedError(
                f"{self.repo}: {file.name} has {file.size / 1e9:,.1f} GB, more than the hub gives over HTTP",
                remedy=f"fetch it with: hf download {self.repo} {file.name} --revision {self.commit}",
            )
        url = hf_hub_url(self.repo, file.name, revision=self.commit)
        served = get_hf_file_metadata(url, headers=self._headers, timeout=TIMEOUT_SECONDS, retry_on_errors=True)
        if (served.commit_hash, served.etag, served.size) != (self.commit, file.digest, file.size):
            raise CheckpointError(
                f"{self.repo}/{file.name}", "digest", "the hub serves another one than it lists", remedy=AGAIN
            )
        return url

    def _lock(self, target: BinaryIO, file: HubFile) -> None:
        try:
            fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeepSeekError(
                f"{self.repo}: another process is fetching {file.name}", remedy="wait until it is done"
            ) from None

    def _transfer(self, url: str, target: BinaryIO, size: int, bar: Any) -> None:
        """Append to `target` until it has `size` bytes; gives up when a try brings nothing."""
        from httpx2 import HTTPError
        from huggingface_hub.file_download import http_get

        while (have := target.seek(0, os.SEEK_END)) < size:
            try:
                http_get(url, target, resume_size=have, headers=self._headers, expected_size=size, tqdm_class=bar)
            except (HTTPError, OSError):
                if target.seek(0, os.SEEK_END) <= have:
                    raise

    def _verify(self, part: Path, file: HubFile) -> None:
        name, problem = f"{self.repo}/{file.name}", None
        with part.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            sha256 = len(file.digest) == 64
            digest = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while block := content.read(_BLOCK):
                digest.update(block)
                self._report("verify", file.name, content.tell(), size)
        if size != file.size:
            problem = f"is {size} bytes, not {file.size}"
        elif digest.hexdigest() != file.digest:
            problem = f"is {digest.hexdigest()}, not {file.digest} as the hub lists it; removed"
        if problem:
            field = "sha256" if sha256 else "git object id"
            raise CheckpointError(name, field, problem, remedy=f"{AGAIN}; if it stays so, don't trust what is between")


def _bar(name: str, size: int, report: Callable[[int], None]) -> Any:
    """A class that stands in for tqdm's and reports a transfer; it ends one that brings more than `size` bytes."""

    class Bar:
        def __init__(self, *, initial: int = 0, **_: Any) -> None:
            self._have = initial
            report(initial)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing is held."""

        def update(self, count: int) -> None:
            self._have += count
            if self._have > size:
                raise CheckpointError(name, "size", f"more than {size} bytes arrive; removed", remedy=AGAIN)
            report(self._have)

    return Bar
