"""From a model's path and a memory budget to a running engine: what fits is decided here, before anything is served."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.config.speculation import Speculation, parse_speculation
from deepseek_r1.core.environment import memory_available, process_pss
from deepseek_r1.core.errors import CapacityError
from deepseek_r1.engine.drafts import check_speculation
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.memory import (
    BLOCK_SIZE,
    FREE,
    LEAST_TOKENS,
    MARGIN,
    MAX_STEP_TOKENS,
    Storage,
    advised,
    kv_bytes_per_token,
    length_bytes,
    longest_context,
    served,
    weights_bytes,
)
from deepseek_r1.kernels import ops
from deepseek_r1.models.adapters import adapter_bytes, load_adapter
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.formats import checkpoint_types, resolve
from deepseek_r1.models.packed_cache import load_packed
from deepseek_r1.models.registry import read_config


def load_engine(
    model_path: str | Path,
    *,
    precision: str | DeepSeekConfig = "auto",
    memory_bytes: int | None = None,
    max_concurrent: int = 32,
    companion_pid: int | None = None,
    max_step_tokens: int = MAX_STEP_TOKENS,
    speculative: Speculation = "off",
    adapters: Mapping[str, str | Path] = {},
) -> Engine:
    """Load the model and give the KV pool what is left of the budget.

    `memory_bytes` bounds weights, KV pool, arena and logits. With a `companion_pid` (the server's API process) it
    bounds the proportional set size of both processes, all of it; without one, what the model adds to this process.
    None takes half of the memory that is available at the start. `speculative` says who guesses tokens ahead; with
    "mtp" the model's prediction modules are loaded too. `adapters` are folders of low-rank adapters by the names that
    requests ask for them with. Raises `CapacityError` when the model does not fit,
    `ConfigError` for a way to guess that is not there, `UnsupportedError` when the model has no prediction module to
    guess with, or layers that can't take a guess back; and what `load_adapter` does for an adapter of another model.
    """
    speculative = parse_speculation(speculative)
    foreign = 0 if companion_pid is not None else _resident(None)
    config_ = precision if isinstance(precision, DeepSeekConfig) else parse_precision(precision)
    budget = memory_bytes or memory_available() // 2
    with open_checkpoint(model_path) as checkpoint:
        shape = read_config(checkpoint)
        config_ = resolve(config_, checkpoint, bf16=ops.NATIVE)
        storage = Storage(ops.NATIVE, checkpoint_types(checkpoint, shape))
    slot_state = bool({"ring", "delta"} & set(shape.mixers))
    check_speculation(speculative, modules=shape.mtp_layers, slot_state=slot_state, model=str(model_path))
    shape = shape if speculative == "mtp" else served(shape)
    item = 4 if config_.dtype_of("linear") == "fp32" else 2  # adapters of linears in 8 or 4 bits compute in bf16
    added = sum(adapter_bytes(folder, item) for folder in adapters.values())
    weights = weights_bytes(shape, config_, storage) + added
    steps = (max_concurrent, max_step_tokens)
    before = _resident(companion_pid) - foreign
    _check(shape, config_, budget, before + weights + FREE, steps)
    decoder = load_packed(model_path, config_, mtp=speculative == "mtp")
    for name, folder in adapters.items():
        load_adapter(decoder, name, folder)
    _trim()
    # Mapped weights count as resident once they are read, which may not be yet.
    taken = max(_resident(companion_pid) - foreign, before + weights) + MARGIN
    length = _check(shape, config_, budget, taken, steps)
    per_block = BLOCK_SIZE * kv_bytes_per_token(shape, config_)
    # No more than every slot at full length could use. Where every layer keeps a ring or a state, blocks only count.
    most = max_concurrent * -(-length // BLOCK_SIZE)
    room = budget - taken - length_bytes(shape, config_, length, *steps)
    engine = Engine(
        decoder,
        num_blocks=min(most, room // per_block) if per_block else most,
        block_size=BLOCK_SIZE,
        max_concurrent=max_concurrent,
        max_step_tokens=max_step_tokens,
        max_length=length,
        weights_version=str(Path(model_path).resolve()),
        weights_bytes=weights,
        speculative=speculative,
    )
    for name in adapters:
        engine.use_adapter(name)
    return engine


def _check(shape: ModelConfig, precision: DeepSeekConfig, budget: int, taken: int, steps: tuple[int, int]) -> int:
    """The longest context that the budget leaves room for. Raises `CapacityError` when that is no conversation."""
    length = longest_context(shape, precision, budget - taken, *steps)
    least = min(LEAST_TOKENS, shape.max_position)
    if length < least:
        needed = taken + length_bytes(shape, precision, least, *steps) + least * kv_bytes_per_token(shape, precision)
        enough = advised(needed)
        raise CapacityError(
            f"the model needs at least {_mib(enough)} in {precision.name}, and the budget is {_mib(budget)}",
            remedy=f"give --memory {_mib(enough)} or more, or choose a smaller model or precision",
        )
    return length


def _resident(companion_pid: int | None) -> int:
    own = process_pss(os.getpid())
    return own if companion_pid is None else own + process_pss(companion_pid)


def _mib(size: int) -> str:
    return f"{-(-size // (1 << 20))}MiB"


def _trim() -> None:
    """Hand what loading freed back to the system, so that the pool can have it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
