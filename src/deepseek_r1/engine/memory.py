"""What a model takes and reads, from its shape alone: the arithmetic behind `plan` and `load_engine`. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.kernels.built import native_kernels
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.formats import (
    Types,
    WeightFormat,
    is_product,
    operator_class,
    packed_bytes,
    product_of,
    quantised_format,
)
from deepseek_r1.models.shapes import kv_row_bytes, parameter_shapes

ITEM_BYTES = {"fp32": 4, "bf16": 2, "int8": 4, "int4": 4}
"""Bytes of a plain number of an operator class. Classes whose weights are kept in 8 or 4 bits are float32 besides."""

BLOCK_SIZE = 16
MAX_STEP_TOKENS = 512
GATHER_TOKENS = 8192
"""Key positions gathered at once for decoding: bounds the arena, and keeps the gathered rows near the caches."""

SAMPLED_ROWS = 12
"""Rows of logits of a step with guesses at most: more sequences and guesses than that cost as much as steps."""

LEAST_TOKENS = 256
"""A pool smaller than this serves no conversation: refuse to start instead."""

MARGIN = 96 << 20
"""Bytes kept free for what grows after the start: message buffers, requests in flight, allocator slack."""

LOADING = 64 << 20
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

_RUNNING = 24 << 20
"""Of `LOADING`, what stays, and the kernels compiled for each number of rows, as measured."""


_FLOAT32 = (".router.", ".conv_weight", ".A_log", ".dt_bias")


def served(config: ModelConfig) -> ModelConfig:
    """`config` without the prediction modules, which serving loads only to guess ahead with."""
    return replace(config, mtp_layers=0)


@dataclass(frozen=True)
class Storage:
    """What the bytes of weights depend on besides the model: whether the kernels are `native`, and how the file stores
    them (`types`, by our names). Without native kernels weights in 8 or 4 bits are held as float32.
    """

    native: bool
    types: Types = field(default_factory=dict)


HERE = Storage(native_kernels())
"""Weights that a file stores as floats, with the kernels of this machine."""


def weights_bytes(config: ModelConfig, precision: DeepSeekConfig, storage: Storage = HERE) -> int:
    """Bytes that a loaded, packed decoder of this shape takes."""
    total = sum(_kept(config, precision, storage).values())
    # A tied table stands twice, plain for lookups and packed for the output layer, unless both read the same codes.
    return total if _is_shared(config, precision, storage) else total + _tied_table(config, precision, storage)


def read_bytes(config: ModelConfig, precision: DeepSeekConfig, storage: Storage = HERE) -> int:
    """Bytes of weights that decoding one token of one request reads: active experts, and one row of the embedding."""
    sizes = _kept(served(config), precision, storage)
    return active_bytes(config, sizes) + _tied_table(config, precision, storage)


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
    kept = precision.dtype_of("kv_cache")
    gathered = 2 * max(GATHER_TOKENS, length) * kv_row_bytes(config, "fp32" if kept == "int8" else kept)
    masks = max_step_tokens * length * 5
    # Guesses are verified together with the token before them; a prediction module makes one for every sequence.
    rows = max(SAMPLED_ROWS, max_concurrent * (2 if config.mtp_layers else 1))
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


def peak_bytes(
    config: ModelConfig, precision: DeepSeekConfig, storage: Storage = HERE, *, context: int, concurrent: int
) -> int:
    """The most that the engine's process is expected to have resident, when `concurrent` requests reach `context`.

    Pages of the KV pool count once they are written, however large the pool is.
    """
    base = LIBRARIES + weights_bytes(served(config), precision, storage)
    tokens = concurrent * -(-context // BLOCK_SIZE) * BLOCK_SIZE
    kept = tokens * kv_bytes_per_token(config, precision)
    besides = length_bytes(config, precision, context, concurrent, MAX_STEP_TOKENS)
    return base + max(LOADING, _RUNNING + kept + besides)


def advised(nbytes: int) -> int:
    """The --memory to advise where at least `nbytes` are needed: processes differ by some MiB from start to start."""
    return (nbytes // ADVICE_STEP + 2) * ADVICE_STEP


def _kept(config: ModelConfig, precision: DeepSeekConfig, storage: Storage) -> dict[str, int]:
    """Bytes of every weight by our name; of those that are packed into one product, under the first one's name."""
    sizes: dict[str, int] = {}
    products: dict[object, tuple[str, int, int]] = {}  # what they have in common -> (first name, rows, columns)
    for name, shape in parameter_shapes(config).items():
        kept = _format(precision, storage, name, shape)
        if is_product(name, shape):
            key = (product_of(name), kept)
            first, rows, columns = products.get(key, (name, 0, shape[1]))
            products[key] = first, rows + shape[0], columns
            sizes[first] = _matrix_bytes(rows + shape[0], columns, kept, storage)
        elif len(shape) == 3:  # a matrix per expert or per head
            sizes[name] = shape[0] * _matrix_bytes(shape[1], shape[2], kept, storage)
        elif name.endswith(".router.weight"):
            sizes[name] = _matrix_bytes(shape[0], shape[1], ITEM_BYTES["fp32"], storage)
        elif name == "lm_head.weight" or not isinstance(kept, int):
            sizes[name] = _matrix_bytes(shape[0], shape[1], kept, storage)
        else:
            sizes[name] = math.prod(shape) * (4 if any(part in name for part in _FLOAT32) else kept)
    return sizes


def _format(
    precision: DeepSeekConfig, storage: Storage, name: str, shape: tuple[int, ...], as_class: str | None = None
) -> WeightFormat | int:
    """How a weight is kept: a quantised format, or the bytes of a plain element."""
    kept = quantised_format(precision, name, shape, storage.types.get(name), as_class=as_class)
    return kept or ITEM_BYTES[precision.dtype_of(as_class or operator_class(name))]


def _matrix_bytes(rows: int, columns: int, kept: WeightFormat | int, storage: Storage) -> int:
    """Bytes of a packed matrix."""
    if storage.native:
        return packed_bytes(rows, columns, kept)
    return rows * columns * (kept if isinstance(kept, int) else ITEM_BYTES["fp32"])


def _row_bytes(config: ModelConfig, precision: DeepSeekConfig) -> int:
    """Bytes of one token's row in one layer."""
    return kv_row_bytes(config, precision.dtype_of("kv_cache"))


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


def _tied_table(config: ModelConfig, precision: DeepSeekConfig, storage: Storage) -> int:
    """Bytes that the output layer of a tied table reads for every token."""
    if not config.tie_embeddings:
        return 0
    shape = (config.vocab_size, config.hidden_size)
    return _matrix_bytes(*shape, _format(precision, storage, "embedding.weight", shape, "lm_head"), storage)


def _is_shared(config: ModelConfig, precision: DeepSeekConfig, storage: Storage) -> bool:
    shape = (config.vocab_size, config.hidden_size)
    formats = {_format(precision, storage, "embedding.weight", shape, kind) for kind in ("embedding", "lm_head")}
    return config.tie_embeddings and len(formats) == 1 and not isinstance(formats.pop(), int)
