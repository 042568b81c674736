"""What this floor asks of a tokenizer: it may not import `models`, which has the real one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class TextTokenizer(Protocol):
    """The part of `models.text.tokenizer.Tokenizer` that examples are made with."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end a turn, the one that ends a text first."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, in which special tokens may stand."""

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""

    def apply_chat_template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation, up to where the assistant speaks when `add_generation_prompt`."""
