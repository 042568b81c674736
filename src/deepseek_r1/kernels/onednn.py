"""Packed weights without the native kernels: oneDNN's layout, where torch has it."""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

from deepseek_r1.kernels import reference

ROWS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Numbers of rows that packed products are computed with; beyond the last, its multiples.

oneDNN compiles and keeps code and scratch memory for every number of rows it meets (0.6 MB each for a 576-wide model):
a server that meets them all would grow without end. Four rows also read the weights faster than one (docs/LOG.md).
"""


def padded_rows(rows: int) -> int:
    """The number of rows that a product of `rows` rows is computed with."""
    place = bisect.bisect_left(ROWS, rows)
    return ROWS[place] if place < len(ROWS) else -(-rows // ROWS[-1]) * ROWS[-1]


class OneDnnWeight:
    """A frozen weight (out, in) reordered once into the layout that oneDNN's GEMM reads, in place of the plain one.

    It reads weights at about twice the bandwidth of torch's own linear on the CPUs measured (docs/LOG.md), and the
    same packed bytes serve every number of rows.
    """

    def __init__(self, weight: Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.numel() * weight.element_size()
        packs = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if packs and weight.dtype is torch.bfloat16:
            packs = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._packed = packs
        # 16 rows: the layout that this hint selects measured fastest, or equal, from 1 to 256 rows.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, 16) if packs else weight

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (rows, in) -> (rows, out), in the weight's dtype."""
        if not self._packed:
            return reference.linear(x, self._weight, bias)
        rows = x.shape[0]
        extra = padded_rows(rows) - rows
        if extra:
            x = torch.nn.functional.pad(x, (0, 0, 0, extra))
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._weight, bias, "none", [], "")
        return out[:rows]

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` (n,) of the weight -> (n, in)."""
        plain = self._weight.to_dense() if self._packed else self._weight
        return plain[ids]
