"""Stacks of packed weights, and the native routing of experts. The rules of `native` for addresses hold here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek_r1.kernels import native, pages
from deepseek_r1.kernels.native import FLOATS, address
from deepseek_r1.kernels.packed import coded_spec, in_groups, native_weight, plain_spec
from deepseek_r1.kernels.quantised import QuantisedWeight
from deepseek_r1.kernels.recording import empty


class PackedStack:
    """Weights of one shape (out, in), one per head or per expert, each packed as a `PackedWeight`'s is.

    `parts` are float32 or bfloat16 tensors, one tensor (count, out, in) of these, or quantised weights of one format.
    `blob` holds the packed bytes, one weight's behind the other's, and `spec` what says how to read them. Native
    kernels only.
    """

    def __init__(self, parts: Sequence[Tensor | QuantisedWeight] | Tensor) -> None:
        given = list(parts)
        coded = [in_groups(part) for part in given if isinstance(part, QuantisedWeight)]
        plain = [part.detach() for part in given if isinstance(part, Tensor)]
        shapes = {(part.out_features, part.in_features) for part in coded} | {tuple(part.shape) for part in plain}
        if len(shapes) != 1 or (coded and (plain or len({part.format for part in coded}) > 1)):
            raise ValueError("weights of different shapes or formats can't be one stack")
        spec = coded_spec(coded) if coded else plain_spec(plain[0].dtype)
        (spec["out"], spec["in"]), spec["count"] = shapes.pop(), len(given)
        one = native_weight(spec, None).nbytes
        blob = pages.zeros(one * len(given))
        self._take(blob, spec)
        for index, part in enumerate(given):
            piece = blob[index * one : (index + 1) * one]
            if isinstance(part, Tensor):
                native.pack_rows(native_weight(spec, piece), piece, 0, part.detach())
            else:
                native.pack_rows(native_weight(spec, piece), piece, 0, coded[index].codes, *coded[index].numbers)

    @classmethod
    def from_blob(cls, blob: Tensor, spec: Mapping[str, Any]) -> PackedStack:
        """The stack whose packed bytes are `blob`, kept as they are. Raises `ValueError` where the two don't agree."""
        self = cls.__new__(cls)
        self._take(blob, dict(spec))
        return self

    def _take(self, blob: Tensor, spec: dict[str, Any]) -> None:
        self._weight = native_weight(spec, None)
        where = address(blob, torch.uint8), blob.numel()
        self._native = native.library.Stack(self._weight, spec["count"], *where)
        self.count, self.out_features, self.in_features = spec["count"], spec["out"], spec["in"]
        self.dtype = torch.bfloat16 if spec["kind"] == "bf16" else torch.float32
        self.blob, self.spec, self.nbytes = blob, spec, blob.numel()

    def values(self) -> Tensor:
        """The weights themselves, (count, out, in) in `dtype`."""
        one, every = self.nbytes // self.count, torch.arange(self.out_features)
        pieces = (self.blob[i * one : (i + 1) * one] for i in range(self.count))
        rows = (native.unpack_rows(native_weight(self.spec, p), every, self.in_features, self.dtype) for p in pieces)
        return torch.stack(list(rows))

    def heads(self, x: Tensor) -> Tensor:
        """x (T, count, in) -> (T, count, out) in `dtype`: weight h for x[:, h]."""
        x = self._readable(x)
        tokens, heads, dim = x.shape
        self._check(x, (tokens, self.count, self.in_features))
        codes, act = native.room(self._weight, tokens * heads)
        out = empty((tokens, heads, self.out_features), self.dtype)
        native.library.head_linear(
            *(self._native, address(x, *FLOATS), x.dtype is torch.bfloat16, tokens),
            *(x.stride(0), max(x.stride(1), dim), address(codes), address(act)),
            *(address(out), self.dtype is torch.bfloat16, heads * self.out_features, self.out_features),
        )
        return out

    def experts(self, x: Tensor, ends: Tensor) -> Tensor:
        """x (N, in) -> (N, out) in `dtype`: weight e for rows ends[e - 1] to ends[e] (int32)."""
        x = self._readable(x)
        self._check(x, (len(x), self.in_features))
        if ends.shape != (self.count,):
            raise ValueError(f"{tuple(ends.shape)} ends of rows for {self.count} experts")
        flat, step = native.rows(x)
        codes, act = native.room(self._weight, len(x))
        out = empty((len(x), self.out_features), self.dtype)
        native.library.expert_linear(
            *(self._native, address(ends, torch.int32), address(flat, *FLOATS), flat.dtype is torch.bfloat16),
            *(len(flat), step, address(codes), address(act)),
            *(address(out), self.dtype is torch.bfloat16, self.out_features),
        )
        return out

    def _readable(self, x: Tensor) -> Tensor:
        """x as the product can read it: float32 for fp32 weights, else any float; elements of a row side by side."""
        if x.stride(-1) != 1 and x.shape[-1] != 1:
            x = x.contiguous()
        if x.dtype not in FLOATS:
            return x.to(self.dtype)
        if self.spec["kind"] == "fp32" and x.dtype is not torch.float32:
            return native.copy(x, None, 1.0, torch.float32)
        return x

    def _check(self, x: Tensor, shape: tuple[int, ...]) -> None:
        if x.shape != shape:
            raise ValueError(f"a stack that reads {shape} was given {tuple(x.shape)}")


def _rows(x: Tensor) -> tuple[int, int, int, int]:
    """Where the rows of x (T, E) float32 stand: address, T, E, and the distance between rows."""
    return address(x, torch.float32), *x.shape, max(x.stride(0), x.shape[1])


def scores(logits: Tensor, kind: str) -> Tensor:
    """See `ops.scores`."""
    out = empty(tuple(logits.shape), torch.float32)
    native.library.scores(*_rows(logits), kind == "sigmoid", address(out))
    return out


def route(scores: Tensor, bias: Tensor | None, active: int, groups: int, active_groups: int) -> Tensor:
    """See `ops.route`."""
    chosen = empty((scores.shape[0], active), torch.int64)
    library = native.library
    library.route(*_rows(scores), address(bias, torch.float32), active, groups, active_groups, address(chosen))
    return chosen


def route_weights(scores: Tensor, chosen: Tensor, normalise: bool, scale: float) -> Tensor:
    """See `ops.route_weights`."""
    weights = empty(tuple(chosen.shape), torch.float32)
    where = address(chosen.contiguous(), torch.int64), chosen.shape[1]
    native.library.route_weights(*_rows(scores), *where, normalise, scale, address(weights))
    return weights


def by_expert(chosen: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops.by_expert`."""
    sources, places = empty((chosen.numel(),), torch.int64), empty(tuple(chosen.shape), torch.int64)
    ends = empty((len(totals),), torch.int32)
    where = address(chosen.contiguous(), torch.int64), *chosen.shape, len(totals)
    native.library.by_expert(*where, address(sources), address(places), address(ends), address(totals, torch.int64))
    return sources, places, ends


def combine(x: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """See `ops.combine`."""
    flat, step = native.rows(x)
    out = empty((places.shape[0], flat.shape[1]), torch.float32)
    native.library.combine(
        *(address(flat, *FLOATS), flat.dtype is torch.bfloat16, *flat.shape, step),
        *(address(places.contiguous(), torch.int64), address(weights.contiguous(), torch.float32)),
        *(*places.shape, address(out)),
    )
    return out
