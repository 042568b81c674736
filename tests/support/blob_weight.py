"""A packed weight for tests of what surrounds it: its bytes are those of its parts, whatever kernels there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek_r1.kernels.quantised import QuantisedWeight


class BlobWeight:
    """Has the interface of `ops.PackedWeight`; `blob` are the float32 weights, `spec` says what they were made from."""

    made = 0

    def __init__(self, parts: Sequence[Tensor | QuantisedWeight]) -> None:
        BlobWeight.made += 1
        formats = {part.format if isinstance(part, QuantisedWeight) else part.dtype for part in parts}
        assert len(formats) == 1, "parts of one product agree in their format"
        dense = torch.cat([p.dequantise() if isinstance(p, QuantisedWeight) else p.detach().float() for p in parts])
        kind = "x".join(map(str, formats.pop())) if isinstance(parts[0], QuantisedWeight) else str(parts[0].dtype)
        self._take(dense.view(-1).view(torch.uint8), {"out": dense.shape[0], "in": dense.shape[1], "kind": kind})

    @classmethod
    def from_blob(cls, blob: Tensor, spec: Mapping[str, Any]) -> BlobWeight:
        self = cls.__new__(cls)
        if blob.numel() != spec["out"] * spec["in"] * 4:
            raise ValueError("the packed data has another size")
        self._take(blob, dict(spec))
        return self

    def _take(self, blob: Tensor, spec: dict[str, Any]) -> None:
        self.blob, self.spec, self.nbytes = blob, spec, blob.numel()
        self.out_features, self.in_features = spec["out"], spec["in"]
        self.dtype = torch.bfloat16 if spec["kind"] == "torch.bfloat16" else torch.float32
        self.dense = blob.view(torch.float32).view(spec["out"], spec["in"])


class BlobStack(BlobWeight):
    """Has the interface of `ops.PackedStack`: the weights of all members stand one below the other."""

    def __init__(self, parts: Sequence[Tensor | QuantisedWeight] | Tensor) -> None:
        super().__init__(list(parts))
        self._take(self.blob, self.spec | {"count": len(parts), "out": self.out_features // len(parts)})

    @classmethod
    def from_blob(cls, blob: Tensor, spec: Mapping[str, Any]) -> BlobStack:
        self = cls.__new__(cls)
        if blob.numel() != spec["count"] * spec["out"] * spec["in"] * 4:
            raise ValueError("the packed data has another size")
        self._take(blob, dict(spec))
        return self

    def _take(self, blob: Tensor, spec: dict[str, Any]) -> None:
        self.count = spec.get("count", 1)
        super()._take(blob, {**spec, "out": self.count * spec["out"]})
        self.spec, self.out_features = spec, spec["out"]
