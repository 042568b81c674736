"""Frozen weights in the layout that the kernels read: one packed copy serves every number of rows, and lookups too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek_r1.kernels import native, pages
from deepseek_r1.kernels.onednn import OneDnnWeight
from deepseek_r1.kernels.quantised import QuantisedWeight

LAYOUT_VERSION = 4
"""Version of the KV row layout and of packed weights; part of every cache key."""

GROUPS = (32, 128)
"""Groups that the kernels know. A scale for a whole row is repeated for each 128 of its weights."""

_SPEC = ("out", "in", "kind", "group", "minima", "wide", "by_row", "exponent")
"""What describes packed bytes: csrc/linear.h has what each means."""

_MOST_BY_ROW = 65_536
"""Inputs that a weight with one scale per row may have to be multiplied in integers, which have 32 bits."""

_KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class PackedWeight:
    """Weights (out, in), stacked by output rows, in the layout that the CPU's kernels read, in place of the plain ones.

    `parts` are float tensors of one dtype, or quantised weights of one format. `dtype` is that of the product:
    bfloat16 for bfloat16 weights, else float32. `blob` (uint8, aligned to 64 bytes) holds the packed bytes and `spec`
    what says how to read them. Without native kernels `blob` is None, and quantised weights are held as float32.
    """

    blob: Tensor | None = None

    def __init__(self, parts: Sequence[Tensor | QuantisedWeight] | Tensor) -> None:
        given = [parts] if isinstance(parts, Tensor) else list(parts)
        coded = [in_groups(part) for part in given if isinstance(part, QuantisedWeight)]
        plain = [part.detach() for part in given if isinstance(part, Tensor)]
        if coded and (plain or len({part.format for part in coded}) > 1):
            raise ValueError("parts of different formats can't be one packed weight")
        if native.library is None or (plain and plain[0].dtype not in _KINDS):
            dense = torch.cat([part.dequantise() for part in coded] or plain)
            self._onednn = OneDnnWeight(dense)
            self.out_features, self.in_features = dense.shape
            self.dtype, self.nbytes = dense.dtype, self._onednn.nbytes
            self.spec: dict[str, Any] = {}
            return
        spec = coded_spec(coded) if coded else plain_spec(plain[0].dtype)
        spec["out"] = sum(part.out_features for part in coded) + sum(part.shape[0] for part in plain)
        spec["in"] = coded[0].in_features if coded else plain[0].shape[1]
        blob = pages.zeros(native_weight(spec, None).nbytes)
        self._take(blob, spec)
        first = 0
        for part in coded:
            native.pack_rows(self._native, blob, first, part.codes, *part.numbers)
            first += part.out_features
        for tensor in plain:
            native.pack_rows(self._native, blob, first, tensor)
            first += len(tensor)

    @classmethod
    def from_blob(cls, blob: Tensor, spec: Mapping[str, Any]) -> PackedWeight:
        """The weight whose packed bytes are `blob`, kept as they are. Raises `ValueError` where the two don't agree."""
        self = cls.__new__(cls)
        self._take(blob, dict(spec))
        return self

    def _take(self, blob: Tensor, spec: dict[str, Any]) -> None:
        self._native = native_weight(spec, blob)
        self.out_features, self.in_features = spec["out"], spec["in"]
        self.dtype = torch.bfloat16 if spec["kind"] == "bf16" else torch.float32
        self.blob, self.spec, self.nbytes = blob, spec, blob.numel()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out), in `dtype`. Not differentiable."""
        if self.blob is None:
            out = self._onednn.linear(x.to(self.dtype).reshape(-1, self.in_features), bias)
        else:
            if x.dtype not in native.FLOATS or (self.spec["kind"] == "fp32" and x.dtype is not torch.float32):
                x = x.to(self.dtype)
            if bias is not None and bias.dtype is not torch.float32:
                bias = bias.float()
            out = native.linear(x, self._native, self.out_features, bias, self.dtype)
        return out if x.dim() == 2 else out.view(*x.shape[:-1], self.out_features)

    @property
    def fuses_gate(self) -> bool:
        """Whether `gated` is there: products of matrix tiles with weights in codes."""
        return self.blob is not None and bool(self._native.fuses_gate)

    def gated(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """x (T, in) -> (T, out / 2): the product's first half through the activation, times its second half."""
        x = x if x.dtype in native.FLOATS else x.to(self.dtype)
        return native.linear(x, self._native, self.out_features // 2, bias, self.dtype, activation)

    def rows(self, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Rows `ids` (n,) of the weight -> (n, in) in `dtype` (None: the product's); the ids must exist."""
        dtype = self.dtype if dtype is None else dtype
        if self.blob is None:
            return self._onednn.rows(ids).to(dtype)
        return native.unpack_rows(self._native, ids, self.in_features, dtype)

    def repack(self, values: Tensor) -> None:
        """Take over other values (out, in) for those of a float32 or bfloat16 weight, at the same addresses."""
        values = values.detach().to(self.dtype)
        if self.blob is None:
            self._onednn = OneDnnWeight(values)
        else:
            native.pack_rows(self._native, self.blob, 0, values)


def native_weight(spec: Mapping[str, Any], blob: Tensor | None) -> Any:
    """The native description of a weight; without a blob one that only knows its size."""
    where = (0, 0) if blob is None else (native.address(blob, torch.uint8), blob.numel())
    return native.library.Weight(
        *where, *(spec[name] for name in ("out", "in", "kind", "group", "minima", "wide", "by_row", "exponent"))
    )


def in_groups(part: QuantisedWeight) -> QuantisedWeight:
    """The same weight in groups that the kernels know."""
    if part.group in GROUPS:
        return part
    if part.group != part.in_features:
        raise ValueError(f"weights in groups of {part.group} can't be packed: {GROUPS} or whole rows")
    groups = -(-part.in_features // GROUPS[-1])
    minima = None if part.minima is None else part.minima.expand(-1, groups)
    return QuantisedWeight(part.codes, part.scales.expand(-1, groups), minima, part.bits, GROUPS[-1])


def plain_spec(dtype: torch.dtype) -> dict[str, Any]:
    """How floats are packed."""
    return {"kind": _KINDS[dtype], "group": 0, "minima": False, "wide": False, "by_row": False, "exponent": 0}


def coded_spec(parts: list[QuantisedWeight]) -> dict[str, Any]:
    """How quantised weights of one format, in groups that the kernels know, are packed."""
    bits, group, minima, multiples = parts[0].format
    columns = parts[0].in_features
    if multiples and (group != GROUPS[0] or columns > _MOST_BY_ROW):
        raise ValueError(
            f"multiples of a row's scale are packed in groups of {GROUPS[0]}, of at most {_MOST_BY_ROW} inputs"
        )
    numbers = [t for part in parts for t in (part.scales, part.minima) if t is not None]
    largest = max(float(part.scales.abs().max()) for part in parts) * (15 if minima else 1 << (bits - 1))
    if minima:
        largest += max(float(part.minima.abs().max()) for part in parts if part.minima is not None)
    return {
        "kind": f"int{bits}",
        "group": group,
        "minima": minima,
        "wide": not all(torch.equal(t.half().float(), t) for t in numbers),
        "by_row": multiples or (bits == 8 and group == 128 and columns <= _MOST_BY_ROW and all(map(_by_row, parts))),
        "exponent": 14 - math.frexp(largest)[1] if largest > 0 else 0,
    }


def _by_row(part: QuantisedWeight) -> bool:
    """Whether every row has one scale."""
    return bool((part.scales == part.scales[:, :1]).all())
