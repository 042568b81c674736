"""What a model would take on a machine, and how fast it could be: computed from its header alone. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.core import environment
from deepseek_r1.core.errors import ConfigError, UnsupportedError
from deepseek_r1.engine import memory
from deepseek_r1.kernels.built import native_kernels
from deepseek_r1.models.checkpoint import fp8
from deepseek_r1.models.checkpoint.base import TensorInfo
from deepseek_r1.models.checkpoint.safetensors import DTYPE_BITS
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.families.base import Family, Weight, stored_shape
from deepseek_r1.models.shapes import active_count, parameter_count, parameter_shapes
from deepseek_r1.operate.catalogue import Header, find_local, read_header
from deepseek_r1.operate.doctor import copy_bandwidth

PRECISIONS = ("fp32", "bf16", "int8", "int4")

DEFAULT_CONTEXT = 4096
"""Tokens of a request where nothing else is asked for; the model's own limit where that is less."""

_STORED_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Estimate:
    """What one form of the weights takes. Bytes throughout; `name` is a precision, or "on disk".

    `kv_tokens` fit beside the weights. `slot_bytes_per_request` are rings and states. `needed_bytes` is what
    `serve --memory` has to be for the tokens asked for, `peak_bytes` what the engine's process is then expected to have
    resident at most (None for a form that isn't served), `missing_bytes` what the memory lacks, with the way out.
    Tokens per second are bounds, for one request: of an empty context, and of the context asked for.
    """

    name: str
    stored_as: tuple[str, ...]
    weights_bytes: int
    read_bytes_per_token: int
    kv_bytes_per_token: int
    slot_bytes_per_request: int
    kv_tokens: int
    needed_bytes: int
    peak_bytes: int | None
    missing_bytes: int
    way_out: str
    tokens_per_second: float
    tokens_per_second_at_context: float

    @property
    def fits(self) -> bool:
        """Whether the tokens asked for find room beside the weights."""
        return self.missing_bytes == 0


@dataclass(frozen=True)
class Plan:
    """A model on a machine. Bytes, and bytes per second. `memory_total` and `measured` tell given from found out.

    `file_bytes` are all tensors of the checkpoint; of a config.json alone, of those that the family names.
    """

    model: str
    path: Path
    format: str
    family: str
    layers: int
    max_position: int
    parameters: int
    active_parameters: int
    prediction_parameters: int
    memory_bytes: int
    memory_given: bool
    bandwidth: float
    bandwidth_given: bool
    context: int
    concurrent: int
    file_bytes: int | None
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class _Machine:
    """What is asked of which machine."""

    memory_bytes: int
    bandwidth: float
    context: int
    concurrent: int

    @property
    def tokens(self) -> int:
        """Tokens to keep, a request's last block counted whole."""
        return self.concurrent * -(-self.context // memory.BLOCK_SIZE) * memory.BLOCK_SIZE


def plan(
    model: str,
    *,
    memory_bytes: int | None = None,
    context: int | None = None,
    concurrent: int = 1,
    bandwidth: float | None = None,
    native: bool | None = None,
) -> Plan:
    """Plan `concurrent` requests of `context` tokens each. Memory (what is free), bandwidth and whether there are
    native kernels are found out if None.

    Raises the errors of locating and opening, `UnsupportedError` for an architecture that isn't built here,
    `ConfigError` for a context beyond the model's.
    """
    header = read_header(find_local(model))
    if header.unsupported is not None:
        raise header.unsupported
    assert header.config is not None and header.family is not None
    config = memory.served(header.config)
    if context is not None and context > config.max_position:
        raise ConfigError(
            f"context {context} is beyond this model's {config.max_position} tokens",
            remedy=f"give --context {config.max_position} or less",
        )
    machine = _Machine(
        environment.memory_available() if memory_bytes is None else memory_bytes,
        copy_bandwidth() if bandwidth is None else bandwidth,
        min(DEFAULT_CONTEXT, config.max_position) if context is None else context,
        concurrent,
    )
    stored = _stored(header, header.family, header.config)
    types = {} if stored is None else stored.by_name
    storage = memory.Storage(native_kernels() if native is None else native, types)
    served = [_served(config, parse_precision(name), storage, machine) for name in PRECISIONS]
    on_disk = [] if stored is None else [_on_disk(config, stored, machine)]
    whole = parameter_count(header.config)
    return Plan(
        model=model,
        path=header.path,
        format=header.format,
        family=config.family,
        layers=config.layers,
        max_position=config.max_position,
        parameters=parameter_count(config),
        active_parameters=active_count(config),
        prediction_parameters=whole - parameter_count(config),
        memory_bytes=machine.memory_bytes,
        memory_given=memory_bytes is not None,
        bandwidth=machine.bandwidth,
        bandwidth_given=bandwidth is not None,
        context=machine.context,
        concurrent=concurrent,
        file_bytes=_file_bytes(header, stored),
        estimates=tuple(replace(each, way_out=_way_out(each, served, machine)) for each in served + on_disk),
    )


def _served(config: ModelConfig, precision: DeepSeekConfig, storage: memory.Storage, machine: _Machine) -> Estimate:
    """The model in a precision that it can be served in."""
    weights, read = (each(config, precision, storage) for each in (memory.weights_bytes, memory.read_bytes))
    peak = memory.peak_bytes(config, precision, storage, context=machine.context, concurrent=machine.concurrent)
    return replace(_estimate(config, precision, weights, read, machine), peak_bytes=peak)


def _on_disk(config: ModelConfig, stored: _Stored, machine: _Machine) -> Estimate:
    """The model in the form of its file, as if it were computed in that, with keys and values in bf16."""
    sizes = {name: size for name, size in stored.sizes.items() if not name.startswith("mtp.")}
    read = memory.active_bytes(config, sizes) + config.tie_embeddings * sizes["embedding.weight"]
    estimate = _estimate(config, parse_precision("bf16"), sum(sizes.values()), read, machine)
    return replace(estimate, name="on disk", stored_as=stored.types)


def _estimate(config: ModelConfig, precision: DeepSeekConfig, weights: int, read: int, machine: _Machine) -> Estimate:
    per_token = memory.kv_bytes_per_token(config, precision)
    fixed = memory.fixed_bytes(config, precision, machine.context, machine.concurrent)
    slot = memory.slot_bytes(config, precision, machine.context)
    cached = memory.kv_read_bytes(config, precision, machine.context)
    needed = weights + fixed + machine.tokens * per_token
    room = machine.memory_bytes - weights - fixed
    if per_token:
        tokens = max(0, room) // (per_token * memory.BLOCK_SIZE) * memory.BLOCK_SIZE
    else:
        tokens = machine.concurrent * config.max_position if room >= 0 else 0
    return Estimate(
        name=precision.name,
        stored_as=(precision.name,),
        weights_bytes=weights,
        read_bytes_per_token=read,
        kv_bytes_per_token=per_token,
        slot_bytes_per_request=slot,
        kv_tokens=tokens,
        needed_bytes=needed,
        peak_bytes=None,
        missing_bytes=max(0, needed - machine.memory_bytes),
        way_out="",
        tokens_per_second=machine.bandwidth / read,
        tokens_per_second_at_context=machine.bandwidth / (read + cached),
    )


def _way_out(estimate: Estimate, served: list[Estimate], machine: _Machine) -> str:
    """What to change so that it fits, the least change first."""
    if estimate.fits:
        return ""
    ways = []
    each = estimate.kv_tokens // machine.concurrent // memory.BLOCK_SIZE * memory.BLOCK_SIZE
    if each >= memory.LEAST_TOKENS:
        ways.append(f"--context {each} fits")
    ways += [f"{other.name} fits" for other in served if other.fits][:1]
    needed = memory.advised(estimate.needed_bytes)
    amount = f"{needed >> 20}MiB" if needed < 16 << 30 else f"{-(-needed >> 30)}GiB"
    return ", or ".join([*ways, f"give it {amount} of memory"])


@dataclass(frozen=True)
class _Stored:
    """Bytes on disk by our names of the weights (of several that are stored as one: the first), scales included.

    `types` are the storage types, the one with most bytes first; `by_name` has that of every weight.
    """

    sizes: dict[str, int]
    types: tuple[str, ...]
    by_name: dict[str, str]


def _stored(header: Header, family: Family, config: ModelConfig) -> _Stored | None:
    """What the checkpoint holds, or would hold by its config.json; None where that doesn't say."""
    shapes = parameter_shapes(config)
    experts = 0 if config.moe is None else config.moe.experts
    format = "gguf" if header.format == "gguf" else "safetensors"
    weights = list(family.weights(format, config, shapes))
    if header.format == "config":
        named = header.metadata.get("dtype") or header.metadata.get("torch_dtype")
        dtype = _STORED_NAMES.get(named) if isinstance(named, str) else None
        try:
            block = fp8.block_size(header.path, header.metadata)
        except UnsupportedError:
            return None
        if dtype is None:
            return None
        entries = [_expected(weight, stored_shape(weight, shapes), dtype, block) for weight in weights]
        counts = [experts if "{e}" in weight.stored else 1 for weight in weights]
        found = [(kind, size * count) for (kind, size), count in zip(entries, counts, strict=True)]
    else:
        found = [_found(header.tensors, weight.names(experts)) for weight in weights]
    types: dict[str, int] = {}
    for kind, size in found:
        types[kind] = types.get(kind, 0) + size
    sizes = {weight.ours[0]: size for weight, (_, size) in zip(weights, found, strict=True)}
    by_name = {name: kind for weight, (kind, _) in zip(weights, found, strict=True) for name in weight.ours}
    return _Stored(sizes, tuple(sorted(types, key=lambda kind: -types[kind])), by_name)


def _found(tensors: Mapping[str, TensorInfo], names: list[str]) -> tuple[str, int]:
    """Storage type and bytes of these tensors, with the scales of their blocks."""
    scales = [tensors[name + fp8.SCALE_SUFFIX] for name in names if name + fp8.SCALE_SUFFIX in tensors]
    return tensors[names[0]].dtype, sum(tensor.nbytes for tensor in [*(tensors[name] for name in names), *scales])


def _expected(weight: Weight, shape: tuple[int, ...], dtype: str, block: tuple[int, int] | None) -> tuple[str, int]:
    """Storage type and bytes of one tensor of this entry in a checkpoint that was saved as its config.json says.

    Of FP8 checkpoints, as DeepSeek saves them, the tables, routers and prediction modules' projections stay `dtype`.
    """
    plain = ("embedding.weight", "lm_head.weight")
    ours = weight.ours[0]
    if block is None or len(shape) != 2 or ours in plain or ".router." in ours or ours.endswith(".project.weight"):
        return dtype, math.prod(shape) * DTYPE_BITS[dtype] // 8
    scales = math.prod(fp8.grid_shape((shape[0], shape[1]), block))
    return fp8.DTYPE, math.prod(shape) + 4 * scales


def _file_bytes(header: Header, stored: _Stored | None) -> int | None:
    if header.tensors:
        return sum(tensor.nbytes for tensor in header.tensors.values())
    return None if stored is None else sum(stored.sizes.values())
