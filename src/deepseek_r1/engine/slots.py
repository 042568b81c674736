"""Slots: what a running sequence owns alone, where blocks can be shared. Who holds which, and a ring's rows in one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class SlotPool:
    """`count` slots, each held by at most one sequence."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))  # a stack: low slots first, so that few pages are touched

    @property
    def used(self) -> int:
        """Slots that are held."""
        return self.count - len(self._free)

    def take(self) -> int:
        """A free slot. Raises `IndexError` when none is left: the scheduler runs no more sequences than slots."""
        return self._free.pop()

    def release(self, slot: int) -> None:
        """Give a slot back."""
        if slot in self._free or not 0 <= slot < self.count:
            raise AssertionError(f"slot {slot} was released, and nobody held it")
        self._free.append(slot)


@dataclass(frozen=True)
class Ring:
    """The rows of a slot under a layout with a window: position p at p % window; behind those, every global token.

    A row is read only at a position that its sequence has written: what an earlier holder left is never seen.
    """

    window: int
    global_every: int | None

    def kept(self, start: int) -> tuple[Tensor, Tensor]:
        """Positions below `start` that a query from `start` on may see, and the rows they stand at; both (n,)."""
        first = max(0, start - self.window + 1)
        recent = torch.arange(first, start)
        far = torch.arange(0, first, self.global_every) if self.global_every else recent[:0]
        return torch.cat((far, recent)), torch.cat((self._global_rows(far), recent % self.window))

    def stored(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Which of `count` tokens from `start` on are stored (offsets), and the rows they go to; both (n,)."""
        positions = torch.arange(start, start + count)
        recent = positions[-self.window :]
        far = positions[positions % self.global_every == 0] if self.global_every else positions[:0]
        return torch.cat((recent, far)) - start, torch.cat((recent % self.window, self._global_rows(far)))

    def _global_rows(self, positions: Tensor) -> Tensor:
        return self.window + positions // (self.global_every or 1)
