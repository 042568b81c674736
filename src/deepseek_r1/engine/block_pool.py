"""The pool of KV blocks: reference counts, and the prefix cache that finds full blocks again by their hash.

A block is in one of three states: in use (references > 0), cached (no references, but its hash can still be matched)
or free. Cached blocks are reused, oldest first, only when no free block is left.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from deepseek_r1.core.errors import CapacityError


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of a full block: of its tokens and everything before them. The first parent is the cache key."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """`num_blocks` blocks of `block_size` token slots each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.reached = 0
        """Blocks below this one have been in use."""
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: low blocks first, so that few pages are touched
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that `allocate` can still give: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        """Blocks with references."""
        return self.num_blocks - self.available

    @property
    def cached(self) -> int:
        """Blocks without references whose content can still be matched."""
        return len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one reference each. Raises `CapacityError` when there are not enough."""
        if count > self.available:
            raise CapacityError(f"{count} KV blocks asked for, {self.available} available")
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            stale = self._hashes[block]
            if stale is not None:
                del self._by_hash[stale]
            self._hashes[block] = None
        self._references[block] = 1
        self.reached = max(self.reached, block + 1)
        return block

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The longest run of cached blocks for this chain of hashes; each gains a reference."""
        found = []
        for key in hashes:
            block = self._by_hash.get(key)
            if block is None:
                break
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1
            found.append(block)
        return found

    def publish(self, block: int, key: bytes) -> None:
        """Let later requests find this full block under `key`. A key that is taken keeps its first block."""
        if key not in self._by_hash and self._hashes[block] is None:
            self._by_hash[key] = block
            self._hashes[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block. The last of a run is reused first, so that prefixes stay longest."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if self._references[block] < 0:
                raise AssertionError(f"block {block} was released more often than it was taken")
            if self._hashes[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    def check(self) -> None:
        """Raise `AssertionError` unless every block is in exactly one state and every hash finds its block."""
        free, cached = set(self._free), set(self._cached)
        used = {block for block, count in enumerate(self._references) if count > 0}
        if len(free) != len(self._free) or free & cached or free & used or cached & used:
            raise AssertionError("a block is in two states")
        if free | cached | used != set(range(self.num_blocks)):
            raise AssertionError("a block is lost")
        if any(self._hashes[block] is not None for block in free) or any(self._hashes[b] is None for b in cached):
            raise AssertionError("a free block has a hash, or a cached one has none")
        if {key: block for block, key in enumerate(self._hashes) if key is not None} != self._by_hash:
            raise AssertionError("the table of hashes disagrees with the blocks")
