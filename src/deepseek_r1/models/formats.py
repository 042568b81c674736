"""How each weight is kept at a precision, by how its file stores it: what loading does and planning counts. No torch.

A file's own 4- and 8-bit blocks stay as they are in "int4" and "int8": bringing 4 bits to 8 would lose accuracy and
take more memory. The rest is quantised anew.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.kernels.built import path_name
from deepseek_r1.models.checkpoint import fp8
from deepseek_r1.models.checkpoint.base import Checkpoint, TensorInfo
from deepseek_r1.models.checkpoint.gguf_quants import GROUP, GROUPED
from deepseek_r1.models.config import ModelConfig
from deepseek_r1.models.families.base import Family
from deepseek_r1.models.registry import read_config, read_family
from deepseek_r1.models.shapes import parameter_shapes

GROUP8 = 0 if path_name() == "amx" else 128
"""The groups of what is quantised to 8 bits here, where the file's own form has none; 0 for one scale per row.

Activations in 8 bits lose so much where a row has outliers that a scale per 128 inputs pays for itself. On the AMX path
they have 16 bits, and one scale per row leaves nothing but integers to add up (csrc/linear_amx_int8.h).
"""

QUANTISER_VERSION = 4
"""Counts changes of what quantising gives; part of the packed cache's key."""

PANEL = 64
"""Output columns of a panel of the native layout (csrc/linear.h): rows of a weight are padded to whole panels."""

KERNEL_GROUP = 128
"""Inputs for which the native layout repeats the scale of a row that has only one."""

_FIVE_AND_SIX = ("Q5_0", "Q5_1", "Q5_K", "Q6_K")
_NO_LINEAR = (".router.", ".conv_weight")
_FUSED = ("qkv", "gate_up", "inputs")  # the names of `LinearGroup`s

Types = Mapping[str, str]
"""Storage type by our name of the weight; a weight that isn't there counts as a float."""


class WeightFormat(NamedTuple):
    """Codes of `bits` with a scale per `group` of a row, or per row where that is 0.

    `wide`: scales and minima need float32. `own`: these are the file's own blocks, taken over without loss.
    `multiples`: the scales are whole multiples of one per row.
    """

    bits: int
    group: int
    minima: bool = False
    wide: bool = False
    own: bool = False
    multiples: bool = False


EIGHT_BITS = WeightFormat(8, GROUP8)
FOUR_BITS = WeightFormat(4, 32, multiples=path_name() == "amx")
"""What is quantised to 4 bits here. With multiples products are sums of integers to the end, as those of 8 bits."""


def operator_class(name: str) -> str:
    """The operator class of a weight, by our name of it."""
    if name in ("embedding.weight", "lm_head.weight"):
        return name.removesuffix(".weight")
    return "norm" if "norm." in name else "linear"


def is_product(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is that of a `Linear`. Tables are none, nor are routers, experts and maps per head."""
    return operator_class(name) == "linear" and len(shape) == 2 and not any(part in name for part in _NO_LINEAR)


def is_experts(name: str) -> bool:
    """Whether a weight holds the matrices of all experts (experts, out, in)."""
    return ".experts." in name


def quantised_format(
    precision: DeepSeekConfig, name: str, shape: tuple[int, ...], stored: str | None, *, as_class: str | None = None
) -> WeightFormat | None:
    """How a weight that the file stores as `stored` is kept, None where it is a plain float tensor.

    `as_class` says which operator class reads it, where its name doesn't: a tied table is also the output layer's.
    """
    kind = as_class or operator_class(name)
    if kind == "norm" or (kind == "linear" and not is_product(name, shape) and not is_experts(name)):
        return None
    dtype = precision.dtype_of(kind)
    if dtype not in ("int8", "int4"):
        return None
    if stored in GROUPED:
        bits, minima = GROUPED[stored]
        return WeightFormat(bits, GROUP, minima, wide=stored == "Q4_K", own=True)
    if dtype == "int8":
        return EIGHT_BITS
    if stored in _FIVE_AND_SIX:
        return WeightFormat(8, GROUP)
    return FOUR_BITS if kind == "linear" else EIGHT_BITS


def stored_types(
    family: Family, format: str, config: ModelConfig, tensors: Mapping[str, TensorInfo] | Collection[TensorInfo]
) -> dict[str, str]:
    """Storage type by our name of the weight. Experts that are stored apart have the first one's."""
    infos = tensors if isinstance(tensors, Mapping) else {info.name: info for info in tensors}
    types: dict[str, str] = {}
    for weight in family.weights(format, config, parameter_shapes(config)):
        info = infos.get(weight.names(1)[0])
        if info is not None:
            types |= dict.fromkeys(weight.ours, info.dtype)
    return types


def checkpoint_types(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, str]:
    """`stored_types` of an open checkpoint."""
    return stored_types(read_family(checkpoint), checkpoint.format, config, checkpoint.tensors)


def resolve(precision: DeepSeekConfig, checkpoint: Checkpoint, *, bf16: bool) -> DeepSeekConfig:
    """`precision`, with "auto" replaced by the mode that comes nearest to how the checkpoint stores its weights.

    4 to 6 bits make "int4", Q8_0 and FP8 "int8", the others "bf16", or "fp32" where there are no `bf16` kernels. What
    most weights are decides. Classes that `precision` names do as named.
    """
    if precision.precision_mode != "auto":
        return precision
    config = read_config(checkpoint)
    types = checkpoint_types(checkpoint, config)
    plain = "bf16" if bf16 else "fp32"
    votes = dict.fromkeys((plain, "int8", "int4"), 0)
    for name, shape in parameter_shapes(config).items():
        stored = types.get(name) if is_product(name, shape) or is_experts(name) else None
        four = stored in _FIVE_AND_SIX or (stored in GROUPED and GROUPED[stored][0] == 4)
        if name not in ("embedding.weight", "lm_head.weight"):
            mode = "int4" if four else "int8" if stored in ("Q8_0", fp8.DTYPE) else plain
            votes[mode] += math.prod(shape)
    mode = max(votes, key=lambda mode: votes[mode])
    return parse_precision(precision.name.replace("auto", mode, 1))


def packed_bytes(rows: int, columns: int, form: WeightFormat | int) -> int:
    """Bytes of a weight (rows, columns) in the native layout; `form` is a format, or the bytes of a plain element."""
    panels = -(-rows // PANEL)
    if isinstance(form, int):
        return panels * PANEL * _padded(columns, 32 if form == 2 else 1) * form
    group = form.group or KERNEL_GROUP
    scales = (4 if form.wide else 2) * (2 if form.minima else 1)
    groups, of_rows = -(-columns // group), 0
    if form.multiples:  # their products take two groups a step
        groups, of_rows = _padded(groups, 2), 4
    return panels * PANEL * (groups * (group * form.bits // 8 + scales) + of_rows)


def product_of(name: str) -> str:
    """The product that a linear is part of: those of a group, which read one input, share it where formats agree."""
    parent, _, leaf = name.removesuffix(".weight").rpartition(".")
    return parent if parent.rpartition(".")[2] in _FUSED else f"{parent}.{leaf}"


def _padded(count: int, step: int) -> int:
    return -(-count // step) * step
