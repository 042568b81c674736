"""From a model's path and a memory budget to a running engine: what fits is decided here, before anything is served."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.core.environment import memory_available, process_pss
from deepseek_r1.core.errors import CapacityError
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.paged import GATHER_TOKENS
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.block import DTYPES
from deepseek_r1.models.loading import load_decoder, weights_bytes
from deepseek_r1.models.registry import read_config
from deepseek_r1.models.shapes import kv_width

BLOCK_SIZE = 16
MAX_STEP_TOKENS = 256
LEAST_TOKENS = 256
"""A pool smaller than this serves no conversation: refuse to start instead."""

MARGIN = 96 << 20
"""Bytes kept free for what grows after the start: message buffers, requests in flight, allocator slack."""

ADVICE_STEP = 64 << 20
"""Advice about --memory is a multiple of this: figures that people type, with room between one start and the next."""

LOADING = 128 << 20
"""Bytes that loading adds beside the weights (libraries on first use, what the allocator keeps), as measured, rounded
up. Asking for them before loading makes the remedy true: a budget that passes the first check passes the second."""


def load_engine(
    model_path: str | Path,
    *,
    precision: str | DeepSeekConfig = "fp32",
    memory_bytes: int | None = None,
    max_concurrent: int = 32,
    companion_pid: int | None = None,
    max_step_tokens: int = MAX_STEP_TOKENS,
) -> Engine:
    """Load the model and give the KV pool what is left of the budget.

    `memory_bytes` bounds weights, KV pool, arena and logits. With a `companion_pid` (the server's API process) it
    bounds the proportional set size of both processes, all of it; without one, what the model adds to this process.
    None takes half of the memory that is available at the start. Raises `CapacityError` when the model does not fit.
    """
    foreign = 0 if companion_pid is not None else _resident(None)
    config_ = precision if isinstance(precision, DeepSeekConfig) else parse_precision(precision)
    budget = memory_bytes or memory_available() // 2
    with open_checkpoint(model_path) as checkpoint:
        shape = read_config(checkpoint)
    weights = weights_bytes(shape, config_)
    arena = arena_bytes(shape, config_, max_concurrent, max_step_tokens)
    _check(budget, _resident(companion_pid) - foreign + weights + arena + LOADING, shape, config_)
    decoder = load_decoder(model_path, config_, pack=True)
    _trim()
    resident = _resident(companion_pid) - foreign
    per_block = BLOCK_SIZE * kv_bytes_per_token(shape, config_)
    # No more than every slot at the model's full context could use.
    most = max_concurrent * -(-shape.max_position // BLOCK_SIZE)
    blocks = min(most, (budget - resident - arena - MARGIN) // per_block)
    _check(budget, resident + arena, shape, config_)
    return Engine(
        decoder,
        num_blocks=blocks,
        block_size=BLOCK_SIZE,
        max_concurrent=max_concurrent,
        max_step_tokens=max_step_tokens,
        weights_version=str(Path(model_path).resolve()),
        weights_bytes=weights,
    )


def kv_bytes_per_token(shape: ModelConfig, precision: DeepSeekConfig) -> int:
    """Bytes of keys and values per token, all layers."""
    itemsize = DTYPES[precision.dtype_of("kv_cache")].itemsize
    return shape.layers * kv_width(shape) * itemsize


def arena_bytes(shape: ModelConfig, precision: DeepSeekConfig, max_concurrent: int, max_step_tokens: int) -> int:
    """Bytes that a step's temporaries can take at most: activations, gathered keys and values, masks, logits."""
    per_token = (
        8 * shape.hidden_size + 4 * shape.intermediate_size + 4 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    )
    activations = (max_step_tokens + max_concurrent) * per_token * 4
    longest = max(GATHER_TOKENS, shape.max_position)
    gathered = 2 * longest * kv_bytes_per_token(shape, precision) // shape.layers
    masks = max_step_tokens * shape.max_position * 5
    logits = (max_concurrent * 12 + 64) * shape.vocab_size
    return activations + gathered + masks + logits


def _resident(companion_pid: int | None) -> int:
    own = process_pss(os.getpid())
    return own if companion_pid is None else own + process_pss(companion_pid)


def _check(budget: int, needed: int, shape: ModelConfig, precision: DeepSeekConfig) -> None:
    least = needed + MARGIN + LEAST_TOKENS * kv_bytes_per_token(shape, precision)
    if least > budget:
        # What the processes take is measured, and differs by some MiB from start to start: advise with room to spare.
        enough = (least // ADVICE_STEP + 2) * ADVICE_STEP
        raise CapacityError(
            f"the model needs at least {_mib(enough)} in {precision.name}, and the budget is {_mib(budget)}",
            remedy=f"give --memory {_mib(enough)} or more, or choose a smaller model or precision",
        )


def _mib(size: int) -> str:
    return f"{-(-size // (1 << 20))}MiB"


def _trim() -> None:
    """Hand what loading freed back to the system, so that the pool can have it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
