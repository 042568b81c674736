"""What a model takes and reads, from its shape alone: the arithmetic behind `plan` and `load_engine`. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.shapes import kv_width, parameter_shapes

ITEM_BYTES = {"fp32": 4, "bf16": 2}

BLOCK_SIZE = 16
MAX_STEP_TOKENS = 256
GATHER_TOKENS = 8192
"""Key positions gathered at once for decoding: bounds the arena, and keeps the gathered rows near the caches."""

LEAST_TOKENS = 256
"""A pool smaller than this serves no conversation: refuse to start instead."""

MARGIN = 96 << 20
"""Bytes kept free for what grows after the start: message buffers, requests in flight, allocator slack."""

LOADING = 128 << 20
"""Bytes that loading adds beside the weights (libraries on first use, what the allocator keeps), as measured, rounded
up. Asking for them before loading makes the remedy true: a budget that passes the first check passes the second."""

FREE = LOADING + MARGIN
"""What a budget has to leave beside weights, blocks and temporaries before anything is loaded."""

ADVICE_STEP = 64 << 20
"""Advice about --memory is a multiple of this: figures that people type, with room between one start and the next."""

LIBRARIES = 224 << 20
"""Bytes of the engine's process before it loads a model: the interpreter, torch and this package, as measured."""

API_PROCESS = 96 << 20
"""Bytes of the server's API process, as measured."""

_RUNNING = 48 << 20
"""Of `LOADING`, what stays, and the kernels compiled for each number of rows, as measured."""


_FLOAT32 = (".router.", ".conv_weight", ".A_log", ".dt_bias")


def served(config: ModelConfig) -> ModelConfig:
    """`config` without the prediction modules, which serving loads only to guess ahead with."""
    return replace(config, mtp_layers=0)


def weights_bytes(config: ModelConfig, precision: DeepSeekConfig) -> int:
    """Bytes that a loaded, packed decoder of this shape takes."""
    total = sum(math.prod(shape) * size for _, shape, size in _stored(config, precision))
    # A tied table stands twice: plain for lookups, packed for the output layer.
    return total + _tied_table(config, precision)


def read_bytes(config: ModelConfig, precision: DeepSeekConfig) -> int:
    """Bytes of weights that decoding one token of one request reads: active experts, and one row of the embedding."""
    sizes = {name: math.prod(shape) * size for name, shape, size in _stored(served(config), precision)}
    return active_bytes(config, sizes) + _tied_table(config, precision)


def active_bytes(config: ModelConfig, sizes: dict[str, int]) -> int:
    """The part of `sizes` (bytes by our names of the weights) that one token passes through."""
    total = 0
    for name, size in sizes.items():
        if name == "embedding.weight":
            total += size // config.vocab_size
        elif ".experts." in name and config.moe is not None:
            total += size * config.moe.active // config.moe.experts
        else:
            total += size
    return total


def kv_bytes_per_token(config: ModelConfig, precision: DeepSeekConfig) -> int:
    """Bytes that the paged layers keep of each token: keys and values, or the latent. `windows` keep all of them."""
    layers = sum(config.mixer(layer) == "attention" for layer in range(config.layers + config.mtp_layers))
    return layers * _row_bytes(config, precision)


def slot_bytes(config: ModelConfig, precision: DeepSeekConfig, context: int) -> int:
    """Bytes that rings and states keep of one running request of up to `context` tokens."""
    return sum(rows * width for rows, width in _slots(config, precision, context))


def kv_read_bytes(config: ModelConfig, precision: DeepSeekConfig, context: int) -> int:
    """Bytes of keys, values and states that decoding one token after `context` others reads."""
    slots = sum(min(rows, context) * width for rows, width in _slots(config, precision, context))
    return context * kv_bytes_per_token(config, precision) + slots


def arena_bytes(
    config: ModelConfig, precision: DeepSeekConfig, length: int, max_concurrent: int, max_step_tokens: int
) -> int:
    """Bytes that a step's temporaries can take at most when sequences grow to `length` tokens.

    Activations, gathered keys and values, masks, logits.
    """
    per_token = (
        8 * config.hidden_size
        + 4 * config.intermediate_size
        + 4 * (config.heads + 2 * config.kv_heads) * config.head_dim
    )
    if config.moe is not None:  # each token's rows stand once per chosen expert, going in and coming out
        per_token += config.moe.active * (4 * config.hidden_size + 3 * config.moe.hidden_size)
    activations = (max_step_tokens + max_concurrent) * per_token * 4
    gathered = 2 * max(GATHER_TOKENS, length) * _row_bytes(config, precision)
    masks = max_step_tokens * length * 5
    rows = max_concurrent * (2 if config.mtp_layers else 1)  # a guess is verified together with the token before it
    logits = (rows * 12 + 64) * config.vocab_size
    return activations + gathered + masks + logits


def length_bytes(
    config: ModelConfig, precision: DeepSeekConfig, length: int, max_concurrent: int, max_step_tokens: int
) -> int:
    """Bytes to keep for sequences of up to `length` tokens besides their blocks: temporaries, rings and states."""
    slots = max_concurrent * slot_bytes(config, precision, length)
    return arena_bytes(config, precision, length, max_concurrent, max_step_tokens) + slots


def longest_context(
    config: ModelConfig, precision: DeepSeekConfig, room: int, max_concurrent: int, max_step_tokens: int
) -> int:
    """The longest sequence whose blocks, and all that grows with its length, fit into `room` bytes; 0 if none does."""
    per_token = kv_bytes_per_token(config, precision)
    low, high = 0, config.max_position
    while low < high:
        middle = (low + high + 1) // 2
        if length_bytes(config, precision, middle, max_concurrent, max_step_tokens) + middle * per_token <= room:
            low = middle
        else:
            high = middle - 1
    return low


def fixed_bytes(config: ModelConfig, precision: DeepSeekConfig, length: int, max_concurrent: int) -> int:
    """What `serve` needs besides weights and blocks for sequences of `length` tokens: both processes, what goes with
    that length, and what is kept free.
    """
    return LIBRARIES + API_PROCESS + length_bytes(config, precision, length, max_concurrent, MAX_STEP_TOKENS) + FREE


def peak_bytes(config: ModelConfig, precision: DeepSeekConfig, *, context: int, concurrent: int) -> int:
    """The most that the engine's process is expected to have resident, when `concurrent` requests reach `context`.

    Pages of the KV pool count once they are written, however large the pool is.
    """
    base = LIBRARIES + weights_bytes(served(config), precision)
    tokens = concurrent * -(-context // BLOCK_SIZE) * BLOCK_SIZE
    kept = tokens * kv_bytes_per_token(config, precision)
    besides = length_bytes(config, precision, context, concurrent, MAX_STEP_TOKENS)
    return base + max(LOADING, _RUNNING + kept + besides)


def advised(nbytes: int) -> int:
    """The --memory to advise where at least `nbytes` are needed: processes differ by some MiB from start to start."""
    return (nbytes // ADVICE_STEP + 2) * ADVICE_STEP


def _stored(config: ModelConfig, precision: DeepSeekConfig) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Every weight with its shape and the bytes of one element. Some are float32 in every precision."""
    size = {name: ITEM_BYTES[precision.dtype_of(name)] for name in ("embedding", "linear", "norm", "lm_head")}
    for name, shape in parameter_shapes(config).items():
        kind = "embedding" if name == "embedding.weight" else "lm_head" if name == "lm_head.weight" else "linear"
        kind = "norm" if "norm." in name else kind
        yield name, shape, 4 if any(part in name for part in _FLOAT32) else size[kind]


def _row_bytes(config: ModelConfig, precision: DeepSeekConfig) -> int:
    """Bytes of one token's row in one layer."""
    return kv_width(config) * ITEM_BYTES[precision.dtype_of("kv_cache")]


def _slots(config: ModelConfig, precision: DeepSeekConfig, context: int) -> Iterator[tuple[int, int]]:
    """(rows, bytes of a row) of each layer that keeps something per request: a ring, or a state (one row, float32)."""
    ring, delta = config.ring, config.delta
    for layer in range(config.layers):
        if config.mixer(layer) == "ring" and ring is not None:
            lasting = 0 if ring.global_every is None else -(-context // ring.global_every)
            yield ring.window + lasting, _row_bytes(config, precision)
        if config.mixer(layer) == "delta" and delta is not None:
            channels = 2 * delta.key_heads * delta.key_dim + delta.value_heads * delta.value_dim
            state = delta.value_heads * delta.key_dim * delta.value_dim
            yield 1, 4 * ((delta.conv_kernel - 1) * channels + state)


def _tied_table(config: ModelConfig, precision: DeepSeekConfig) -> int:
    """Bytes of the output layer's own copy of a tied table, all of which every token reads."""
    return config.tie_embeddings * config.vocab_size * config.hidden_size * ITEM_BYTES[precision.dtype_of("lm_head")]
