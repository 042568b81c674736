"""The tokenizer that the rest of the project sees: text to ids and back, over the `tokenizers` library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from deepseek_r1.core.errors import RequestError
from deepseek_r1.models.text.chat_template import ChatTemplate
from deepseek_r1.models.text.detokenizer import join_tokens

THINK_TAGS = ("<think>", "</think>")
SPACE = "\u2581"  # SentencePiece writes a space as this

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Text to token ids and back.

    `token_bytes[i]` are the bytes that token `i` adds to the output: none for a special token, except for the think
    tags, which keep their text. `eos_token_ids` are all tokens that end a turn. `special_tokens` are the named ones
    (`bos_token`, `eos_token`, …) as chat templates see them. Safe to use from several threads.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        token_bytes: list[bytes],
        special_bytes: Mapping[int, bytes],
        bos_token_id: int | None,
        eos_token_ids: Sequence[int],
        special_tokens: Mapping[str, str],
        chat_template: ChatTemplate | None,
        strips_space_prefix: bool = False,
    ) -> None:
        self._backend = backend
        self.token_bytes = token_bytes
        self._special_bytes = dict(special_bytes)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template
        self._strips_space_prefix = strips_space_prefix

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id. A model may have more rows than that: those ids have no bytes."""
        return len(self.token_bytes)

    def files(self) -> dict[str, str]:
        """tokenizer.json, tokenizer_config.json and generation_config.json of this tokenizer, for transformers."""
        template = {} if self.chat_template is None else {"chat_template": self.chat_template.source}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        ends = {"eos_token_id": list(self.eos_token_ids)} if self.eos_token_ids else {}
        return {
            "tokenizer.json": self._backend.to_str(),
            "tokenizer_config.json": json.dumps(config | self.special_tokens | template, indent=2) + "\n",
            "generation_config.json": json.dumps(ends, indent=2) + "\n",
        }

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`. Special tokens that stand in the text become their ids.

        `add_special_tokens` adds what the model expects around a plain text (usually a begin token). Switch it off for
        a rendered chat, whose template has written those already. Lone surrogates are read as U+FFFD.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`, invalid UTF-8 as U+FFFD; ids outside the vocabulary have none.

        A SentencePiece model's space before the first word is dropped, as its own decoder does.
        """
        if skip_special_tokens:
            data = join_tokens(self.token_bytes, ids)
        else:
            data = b"".join([self._special_bytes.get(i) or join_tokens(self.token_bytes, (i,)) for i in ids])
        text = data.decode("utf-8", "replace")
        return text.removeprefix(" ") if self._strips_space_prefix else text

    def id_to_token(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token (`Ġthe`, `▁the`, `<0x0A>`), "" for an id that is not in it."""
        if not 0 <= token_id < self.vocab_size:
            return ""
        return self._backend.id_to_token(token_id) or ""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token in the vocabulary's spelling, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a control token, which `decode` leaves out."""
        return token_id in self._special_bytes

    def apply_chat_template(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Render `messages` as the model was trained to read them; encode the result without special tokens.

        Raises `RequestError` with code `chat_template_missing` for a model without a template, else what
        `ChatTemplate.render` raises.
        """
        if self.chat_template is None:
            raise RequestError(
                "this model has no chat template, so it cannot answer a list of messages",
                param="messages",
                code="chat_template_missing",
                remedy="send a prompt to /v1/completions, or serve an instruction-tuned model",
            )
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token in GPT-2's alphabet, in which every byte is a printable character."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, token))
    except KeyError:
        return token.encode("utf-8", "surrogateescape")


def sentencepiece_bytes(token: str, *, byte_fallback: bool = True) -> bytes:
    """The bytes of a SentencePiece token; `<0xAB>` is one byte where the vocabulary has byte tokens."""
    if byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(match[1], 16)])
    return token.replace(SPACE, " ").encode("utf-8", "surrogateescape")


def _byte_alphabet() -> dict[str, int]:
    """Character to byte of GPT-2's alphabet: printable Latin-1 stands for itself, the rest follows from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(rest)}


_BYTE_OF = _byte_alphabet()
