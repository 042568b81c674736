"""How a step's rows belong to sequences, in the form that the attention kernel reads: plain numbers at fixed addresses.

A recording keeps the addresses; what stands there may change from one replay to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class Spans:
    """Spans of rows over a paged pool: up to `spans` of them, `tokens` rows and `blocks` block ids in all.

    `slots` (tokens,) int64 are the pool's slots that the rows are stored in, `count` (1,) int64 the number of spans,
    `table` (spans, 4) int64 their (first row, rows, position of the first row, place in `blocks`), and `blocks` int32
    the block ids, each span's one after the other.
    """

    def __init__(self, tokens: int, spans: int, blocks: int, block_size: int, reach: int | None = None) -> None:
        self.block_size = block_size
        self._reach = reach
        self.slots = torch.zeros(tokens, dtype=torch.int64)
        self.count = torch.zeros(1, dtype=torch.int64)
        self.table = torch.zeros(max(spans, 1), 4, dtype=torch.int64)
        self.blocks = torch.zeros(max(blocks, 1), dtype=torch.int32)
        self._longest = 0

    @property
    def reach(self) -> int:
        """Positions up to which attention may be shared out among threads: as given, or those of the longest span."""
        return self._longest if self._reach is None else self._reach

    def fill(self, spans: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        """Take in (start, count, block ids) of each span, in the order of their rows."""
        slots, table, blocks = self.slots.numpy(), self.table.numpy(), self.blocks.numpy()
        size = self.block_size
        row = place = longest = 0
        for index, (start, count, ids) in enumerate(spans):
            used = -(-(start + count) // size)
            own = np.asarray(ids[:used], dtype=np.int32)
            blocks[place : place + used] = own
            table[index] = (row, count, start, place)
            if count == 1:
                slots[row] = int(own[start // size]) * size + start % size
            else:
                positions = np.arange(start, start + count)
                slots[row : row + count] = own[positions // size].astype(np.int64) * size + positions % size
            row, place, longest = row + count, place + used, max(longest, start + count)
        self.count[0] = len(spans)
        self._longest = longest

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int, Sequence[int]]], block_size: int) -> Spans:
        """Just as large as these spans need."""
        tokens = sum(count for _, count, _ in spans)
        blocks = sum(-(-(start + count) // block_size) for start, count, _ in spans)
        self = cls(tokens, len(spans), blocks, block_size)
        self.fill(spans)
        return self
