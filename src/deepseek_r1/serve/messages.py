"""Messages across the process border between the API process and the engine process (msgpack over ZeroMQ)."""

from __future__ import annotations

import msgspec

from deepseek_r1.config.speculation import Speculation
from deepseek_r1.engine.request import EngineStats, ExpertLoad, GenerateRequest, TokenOutput


class Hello(msgspec.Struct, tag="hello"):
    """First message of the API process: the table token id -> bytes (b"" for special tokens) and the stop tokens."""

    token_bytes: list[bytes]
    eos_token_ids: tuple[int, ...]


class Cancel(msgspec.Struct, tag="cancel"):
    """Drop these requests at the next step."""

    request_ids: list[str]


class Ping(msgspec.Struct, tag="ping"):
    """Answered by `Pong` with the same `sent_at` (seconds of the sender's monotonic clock)."""

    sent_at: float


class Ready(msgspec.Struct, tag="ready"):
    """The engine has its weights, its KV pool and the token table: tokens can move."""

    pid: int
    max_model_len: int
    """Tokens of context one request may use: the model's own, or fewer where the KV pool holds fewer."""
    kv_blocks: int
    block_size: int
    weights_bytes: int
    kv_bytes: int
    load_seconds: float
    vocab_size: int
    precision: str
    path: str
    """Name of the instruction-set path that computes (part of the promise of equal bits)."""


class Outputs(msgspec.Struct, tag="outputs"):
    """What one step produced for all requests it touched, and the engine's state after it."""

    outputs: list[TokenOutput]
    stats: EngineStats


class Refused(msgspec.Struct, tag="refused"):
    """A request the engine can't take: `code` is OpenAI's error code, `param` the field at fault."""

    request_id: str
    message: str
    code: str
    param: str | None = None


class Pong(msgspec.Struct, tag="pong"):
    """Answer to `Ping`, with what changes too slowly to be sent after every step."""

    sent_at: float
    expert_load: list[ExpertLoad] = []


class Failed(msgspec.Struct, tag="failed"):
    """The engine can't start or go on: a message for the user, with its remedy. The process ends after it.

    `final` says that a restart can't help (bad model, not enough memory).
    """

    message: str
    remedy: str
    final: bool


class EngineSettings(msgspec.Struct):
    """What the engine process is started with: one JSON line on its standard input, which then stays open.

    End of file on that input means that the parent is gone: the engine removes the socket's folder and ends.
    """

    address: str
    """ZeroMQ address to connect to: ipc:// in a folder private to the user."""
    model_path: str
    precision: str
    memory_bytes: int | None
    max_concurrent: int
    parent_pid: int
    speculative: Speculation = "off"
    adapters: dict[str, str] = {}
    """Folders of low-rank adapters, by name."""


ToEngine = Hello | GenerateRequest | Cancel | Ping
FromEngine = Ready | Outputs | Refused | Pong | Failed

to_engine = msgspec.msgpack.Decoder(ToEngine)
from_engine = msgspec.msgpack.Decoder(FromEngine)
encode = msgspec.msgpack.Encoder().encode
