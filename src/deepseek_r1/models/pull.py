"""Fetches a model from the hub into the hub's own cache: which files serving needs, and what came of it.

How they are transferred, verified and laid out is `hub_store`'s.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek_r1.core.environment import hub_cache_dir
from deepseek_r1.core.errors import CheckpointError, ConfigError, DeepSeekError, ModelNotFoundError, UnsupportedError
from deepseek_r1.core.version import __version__
from deepseek_r1.models.checkpoint.open import PICKLE_SUFFIXES, open_checkpoint
from deepseek_r1.models.checkpoint.safetensors import INDEX_NAME, MAX_HEADER_BYTES
from deepseek_r1.models.hub_errors import hub_errors
from deepseek_r1.models.hub_store import TIMEOUT_SECONDS, HubFile, HubStore, Report
from deepseek_r1.models.locate import COMPANION_FILES, HUB_ID
from deepseek_r1.models.registry import read_config

DEFAULT_REVISION = "main"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PART = re.compile(r".*-\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True)
class Pulled:
    """A model that was pulled. `path` is what to open: the snapshot's folder, or the GGUF file in it.

    `serve` is what `deepseek-r1 serve` takes for it. `unsupported` says why it can't be served, None where it can.
    """

    repo: str
    revision: str
    commit: str
    path: Path
    files: tuple[HubFile, ...]
    fetched: tuple[str, ...]
    architecture: str | None
    unsupported: str | None
    serve: str


def pull(repo: str, *, revision: str = DEFAULT_REVISION, file: str | None = None, report: Report) -> Pulled:
    """Fetch the model `repo` at `revision`: its safetensors with all they need, or one GGUF (`file` where several are).

    Raises `ConfigError` for names that can't be, `ModelNotFoundError` for what the hub doesn't have, give or answer,
    `UnsupportedError` for what can't be served from here, `CheckpointError` for a file that isn't what the hub
    promised (it is removed), `CapacityError` where the disk is too small.
    """
    _check_names(repo, revision)
    cache = hub_cache_dir()
    with hub_errors(repo, revision, cache):
        commit, listing = _listing(repo, revision)
        store = HubStore(repo, commit, cache, report)
        names = choose(repo, listing, file)
        if INDEX_NAME in names:
            store.fetch([listing[INDEX_NAME]])
            names += _shards(store.path(listing[INDEX_NAME]), listing)
        files = tuple(listing[name] for name in names)
        store.fetch(files)
        for entry in files:
            store.link(entry)
        store.point(revision)
    gguf = names[-1] if names[-1].endswith(".gguf") else None
    path = store.snapshot / gguf if gguf else store.snapshot
    architecture, unsupported = _architecture(path)
    return Pulled(
        repo=repo,
        revision=revision,
        commit=commit,
        path=path,
        files=files,
        fetched=tuple(store.fetched),
        architecture=architecture,
        unsupported=unsupported,
        serve=repo if revision == DEFAULT_REVISION and _is_alone(path) and not Path(repo).exists() else str(path),
    )


def choose(repo: str, listing: Mapping[str, HubFile], file: str | None) -> list[str]:
    """Which of a repository's files serving needs; the shards that an index names come on top.

    Raises `ModelNotFoundError` where there is nothing to serve or nothing by the name `file`, `ConfigError` where a
    choice is missing, `UnsupportedError` for GGUFs in parts.
    """
    ggufs = [name for name in sorted(listing) if name.endswith(".gguf")]
    whole = [name for name in ggufs if not _PART.fullmatch(name)]
    if file is not None:
        if file not in ggufs:
            raise ModelNotFoundError(f"{repo} has no GGUF file {file!r}", remedy=_named(whole, listing))
        return [_checked(repo, file)]
    plain = [name for name in sorted(listing) if "/" not in name]
    weights = [name for name in plain if name.endswith(".safetensors")]
    if INDEX_NAME in listing:
        weights = [INDEX_NAME]
    elif "model.safetensors" in weights:
        weights = ["model.safetensors"]
    if len(weights) == 1 and "config.json" in listing:
        beside = [name for name in plain if any(fnmatch.fnmatchcase(name, known) for known in COMPANION_FILES)]
        return [*beside, *weights]
    if len(whole) > 1:
        raise ConfigError(f"{repo} holds {len(whole)} GGUF files, and one is served", remedy=_named(whole, listing))
    if ggufs:
        return [_checked(repo, (whole or ggufs)[0])]
    raise ModelNotFoundError(
        f"{repo} {_lack(plain, weights)}",
        remedy="look for another repository of the same model, with safetensors or one GGUF file",
    )


def _named(ggufs: list[str], listing: Mapping[str, HubFile]) -> str:
    if not ggufs:
        return "leave --file away: the repository holds no GGUF file that can be served"
    return "name one with --file: " + ", ".join(f"{name} ({listing[name].size / 1e6:,.1f} MB)" for name in ggufs)


def _checked(repo: str, name: str) -> str:
    if _PART.fullmatch(name):
        raise UnsupportedError(
            f"{repo}: {name} is a part of a GGUF in several files, which can't be served",
            remedy="look for the same model as one GGUF file or as safetensors",
        )
    return name


def _lack(plain: list[str], weights: list[str]) -> str:
    """Why a repository with these files at its root has nothing to serve."""
    if len(weights) > 1:
        return f"holds {len(weights)} safetensors files and no {INDEX_NAME} to say what each is"
    if weights:
        return f"holds {weights[0]} without a config.json: no whole model, perhaps an adapter"
    pickles = [name for name in plain if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return f"holds weights only as pickle ({pickles[0]}), which can run code and is never fetched"
    return "holds neither safetensors nor GGUF files"


def _check_names(repo: str, revision: str) -> None:
    if not HUB_ID.fullmatch(repo):
        raise _no_id(repo)
    parts = revision.split("/")
    if not _is_plain(revision) or " " in revision or any(part.startswith((".", "-")) for part in parts):
        raise ConfigError(f"{revision!r} is not a revision", remedy="name a branch, a tag or a commit")


def _no_id(repo: str) -> ConfigError:
    return ConfigError(f"{repo!r} is not a hub id", remedy="write owner/name, as in Qwen/Qwen3-0.6B")


def _is_plain(name: str) -> bool:
    """Whether `name`, joined to a folder, stays inside it, and can be printed."""
    return (
        name.isprintable()
        and "\\" not in name
        and len(name.encode()) <= 1000
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in name.split("/"))
    )


def _listing(repo: str, revision: str) -> tuple[str, dict[str, HubFile]]:
    """The commit that `revision` stands for, and its files by name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    remedy = "HF_ENDPOINT, if it is set, must name a hub"
    try:
        api = HfApi(library_name="deepseek-r1-toolkit", library_version=__version__)
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
        files = info.siblings or []
        entries = [(file.rfilename, file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in files]
    except HfHubHTTPError:
        raise
    except HFValidationError:  # the library's rules go further: no "--", no ".git", ...
        raise _no_id(repo) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelNotFoundError(f"{repo}: the hub's answer can't be read", remedy=remedy) from None
    commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise ModelNotFoundError(f"{repo}: the hub names no commit for {revision}", remedy=remedy)
    listing = {}
    for name, size, digest in entries:
        if not isinstance(name, str) or not _is_plain(name):
            raise CheckpointError(repo, "file list", f"{name!r} is no name inside a folder", remedy="don't trust it")
        if not isinstance(size, int) or size < 0 or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ModelNotFoundError(f"{repo}: the hub names no size and digest for {name}", remedy=remedy)
        listing[name] = HubFile(name, size, digest)
    return commit, listing


def _shards(index: Path, listing: Mapping[str, HubFile]) -> list[str]:
    """The files that an index names, all of them in the repository."""
    if index.stat().st_size > MAX_HEADER_BYTES:
        raise CheckpointError(index, "size", f"more than {MAX_HEADER_BYTES} bytes")
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(index, "weight_map", "is missing or no table of file names") from None
    for name in names:
        if name not in listing or "/" in name or not name.endswith(".safetensors"):
            raise CheckpointError(index, "weight_map", f"{name!r} is no safetensors file beside it")
    return names


def _architecture(path: Path) -> tuple[str | None, str | None]:
    """The architecture that a checkpoint names, and why it isn't supported here, None where it is."""
    try:
        with open_checkpoint(path) as checkpoint:
            name = checkpoint.metadata.get("general.architecture" if checkpoint.format == "gguf" else "model_type")
            try:
                read_config(checkpoint)
            except DeepSeekError as error:
                return name if isinstance(name, str) else None, error.message
            return str(name), None
    except DeepSeekError as error:
        return None, error.message


def _is_alone(path: Path) -> bool:
    """Whether whoever opens the snapshot's folder gets the checkpoint at `path`."""
    if path.is_dir():
        return True
    beside = [name.name for name in path.parent.iterdir() if name.suffix in (".gguf", ".safetensors")]
    return beside == [path.name] and path.parent.parent.name == "snapshots"
