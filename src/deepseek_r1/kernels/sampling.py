"""The native sampling kernels as functions of tensors: see `native`, whose rules for addresses hold here too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_r1.kernels.native import address, library


@dataclass(frozen=True)
class Filter:
    """How a row is filtered before the draw: see `SamplingParams`. The temperature is above 0."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


Rows = tuple[int, int, int, int, int]


def _rows(logits: Tensor, index: Tensor | None) -> Rows:
    """Where the rows `index` (None: all) of logits (B, V) stand, in the form that every kernel here begins with."""
    rows, vocabulary = logits.shape
    if index is not None:
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < rows:
            raise ValueError("a row is outside the logits")
        rows = index.shape[0]
    step = max(logits.stride(0), vocabulary)
    return address(logits, torch.float32), rows, vocabulary, step, address(index, torch.int64)


def readable(logits: Tensor) -> bool:
    """Whether the kernels are there and can read these logits."""
    return (
        library is not None and logits.dtype is torch.float32 and logits.device.type == "cpu" and logits.stride(-1) == 1
    )


def argmax(logits: Tensor, index: Tensor | None) -> Tensor:
    """See `ops.argmax`."""
    where = _rows(logits, index)
    out = torch.empty(where[1], dtype=torch.int64)
    library.argmax(*where, address(out))
    return out


def log_sum_exp(logits: Tensor) -> Tensor:
    """See `ops.log_sum_exp`."""
    where = _rows(logits, None)
    out = torch.empty(where[1], dtype=torch.float64)
    library.log_sum_exp(*where, address(out))
    return out


def logprobs(logits: Tensor, index: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops.logprobs`."""
    where = _rows(logits, index)
    out = torch.empty(where[1], dtype=torch.float64)
    ids = torch.empty(where[1], count, dtype=torch.int64)
    values = torch.empty(where[1], count, dtype=torch.float64)
    if tokens.shape != out.shape:
        raise ValueError("there is one token per row")
    library.logprobs(*where, address(tokens, torch.int64), address(out), count, address(ids), address(values))
    return out, ids, values


def draw(logits: Tensor, index: Tensor, filters: Sequence[Filter], uniform: Sequence[float]) -> Tensor:
    """See `ops.draw`."""
    where = _rows(logits, index)
    if not len(filters) == len(uniform) == where[1]:
        raise ValueError("there is one filter and one number per row")
    rows = [(f.temperature, f.top_p, f.min_p, u) for f, u in zip(filters, uniform, strict=True)]
    settings = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).t().contiguous()
    top_k = torch.tensor([f.top_k for f in filters], dtype=torch.int64)
    out = torch.empty(where[1], dtype=torch.int64)
    temperature, top_p, min_p, points = (address(column) for column in settings)
    library.draw(*where, temperature, top_p, min_p, address(top_k), points, address(out))
    return out


def candidates(row: Tensor, chosen: Filter) -> tuple[Tensor, Tensor]:
    """See `ops.candidates`."""
    ids = torch.empty(row.shape[0], dtype=torch.int64)
    chances = torch.empty(row.shape[0], dtype=torch.float64)
    count = torch.empty(1, dtype=torch.int64)
    settings = (chosen.temperature, chosen.top_p, chosen.min_p, chosen.top_k)
    there = (row.shape[0], address(ids), address(chances), address(count))
    library.candidates(*_rows(row.unsqueeze(0), None), *settings, *there)
    return ids[: int(count)], chances[: int(count)]


def uniform(key: int, choice: int, position: int) -> float:
    """See `ops.uniform`."""
    number: float = library.uniform(key, choice, position)
    return number
