"""Builds a tokenizer from the metadata of a GGUF file: byte-level BPE ("gpt2") and SentencePiece BPE ("llama")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from deepseek_r1.core.errors import CheckpointError, UnsupportedError
from deepseek_r1.models.text.chat_template import ChatTemplate
from deepseek_r1.models.text.pretokenizers import pre_tokenizer
from deepseek_r1.models.text.tokenizer import SPACE, THINK_TAGS, Tokenizer, byte_level_bytes, sentencepiece_bytes

MODELS = ("gpt2", "llama")
MAX_TOKENS = 2_000_000
# Bounds of the work that deriving merges takes; published vocabularies have tokens of at most some hundred characters.
MAX_PIECE = 1024
MAX_PIECES_TOTAL = 16 << 20

# tokenizer.ggml.token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

# Control tokens by which the published chat models end a turn, whatever the file says about eos and eot.
END_OF_TURN = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "[EOT]",
        "</s>",
        "<｜end▁of▁sentence｜>",
    }
)


class _Fields:
    """Typed access to the metadata: whatever is missing or of another type is a `CheckpointError` naming the key."""

    def __init__(self, metadata: Mapping[str, Any], path: str | PathLike[str]) -> None:
        self._metadata = metadata
        self.path = path

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(self.path, f"tokenizer.{key}", problem)

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self._metadata.get(f"tokenizer.{key}", default)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"should be a string, is {type(value).__name__}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.{key}", default)
        if not isinstance(value, bool):
            raise self.error(key, f"should be a boolean, is {type(value).__name__}")
        return value

    def strings(self, key: str) -> list[str]:
        value = self._metadata.get(f"tokenizer.{key}")
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, list) or not set(map(type, value)) <= {str}:
            raise self.error(key, "should be an array of strings")
        return value

    def numbers(self, key: str, size: int, default: float | None) -> list[Any]:
        """One number per token; `default` for each when the key is absent and there is a default."""
        value = self._metadata.get(f"tokenizer.{key}")
        if value is None:
            if default is None:
                raise self.error(key, "is missing")
            return [default] * size
        numbers: list[Any] = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(numbers, list) or len(numbers) != size:
            raise self.error(key, f"should be an array of {size} numbers, one per token")
        if not all(isinstance(item, (int, float)) for item in numbers):
            raise self.error(key, "should hold numbers only")
        return numbers

    def token_id(self, key: str, size: int) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"ggml.{key}_token_id", "should be an integer")
        if not 0 <= value < size:
            raise self.error(f"ggml.{key}_token_id", f"is {value}, but there are {size} tokens")
        return value


def tokenizer_from_gguf(metadata: Mapping[str, Any], path: str | PathLike[str]) -> Tokenizer:
    """The tokenizer that GGUF `metadata` describes; `path` is named in errors.

    Raises `UnsupportedError` for another `tokenizer.ggml.model` or pre-tokenizer, `CheckpointError` for metadata that
    is missing or contradicts itself, `TokenizerError` for a chat template that does not compile.
    """
    fields = _Fields(metadata, path)
    model = fields.text("ggml.model")
    if model is None:
        raise fields.error("ggml.model", "is missing: the file holds no tokenizer")
    if model not in MODELS:
        raise UnsupportedError(
            f"{path}: tokenizer.ggml.model: {model!r} is not supported", remedy=f"supported: {', '.join(MODELS)}"
        )
    tokens = fields.strings("ggml.tokens")
    size = len(tokens)
    if not 0 < size <= MAX_TOKENS:
        raise fields.error("ggml.tokens", f"holds {size} tokens")
    types = fields.numbers("ggml.token_type", size, _NORMAL)
    if not set(map(type, types)) <= {int}:
        raise fields.error("ggml.token_type", "should hold integers")
    names = _distinct(tokens)
    ids = {key: fields.token_id(key, size) for key in ("bos", "eos", "eot", "eom", "unknown", "padding")}

    if model == "gpt2":
        backend, adds_bos = _byte_level(fields, names)
        bytes_of = byte_level_bytes
    else:
        backend, adds_bos = _sentencepiece(fields, names, types, ids["unknown"])
        bytes_of = sentencepiece_bytes

    _add_tokens(backend, tokens, names, types)
    _add_post_processor(fields, backend, names, ids, adds_bos)
    token_bytes, special_bytes = _tables(tokens, types, bytes_of)
    special_tokens = {
        f"{name}_token": tokens[token_id]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (token_id := ids[key]) is not None
    }
    source = fields.text("chat_template")
    return Tokenizer(
        backend,
        token_bytes=token_bytes,
        special_bytes=special_bytes,
        bos_token_id=ids["bos"],
        eos_token_ids=_end_ids(tokens, types, ids),
        special_tokens=special_tokens,
        chat_template=ChatTemplate(source, special_tokens=special_tokens) if source else None,
        strips_space_prefix=model == "llama" and fields.flag("ggml.add_space_prefix", True),
    )


def _distinct(tokens: Sequence[str]) -> list[str]:
    """A distinct, valid name for each token: broken files repeat tokens, leave them empty or not UTF-8.

    The lowest id keeps the text; the others get a name that no text is read as.
    """
    names = list(tokens)
    if len(set(names)) == len(names) and "" not in names and _is_utf8("".join(names)):
        return names
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not name or name in seen or not _is_utf8(name):
            names[index] = f"[UNREACHABLE_{index}]"
        seen.add(names[index])
    return names


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _byte_level(fields: _Fields, names: list[str]) -> tuple[tokenizers.Tokenizer, bool]:
    """GPT-2 style BPE with the pre-tokenizer that the file names."""
    pre = pre_tokenizer(fields.text("ggml.pre") or "default")
    vocab = {name: index for index, name in enumerate(names)}
    merges: list[tuple[str, str]] = []
    for index, merge in enumerate(fields.strings("ggml.merges")):
        # A part may itself be a space's stand-in but never holds a space, except as its first character.
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or left not in vocab or right not in vocab or left + right not in vocab:
            raise fields.error("ggml.merges", f"entry {index} does not join two tokens into a third")
        merges.append((left, right))
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=pre.ignore_merges))
    backend.pre_tokenizer = pre.build()
    backend.decoder = decoders.ByteLevel()
    return backend, pre.adds_bos


def _sentencepiece(
    fields: _Fields, names: list[str], types: list[int], unknown: int | None
) -> tuple[tokenizers.Tokenizer, bool]:
    """SentencePiece BPE: of all neighbours whose join is a token, the best-scored join is made first."""
    scores = fields.numbers("ggml.scores", len(names), None)
    vocab = {name: index for index, name in enumerate(names)}
    normal = {name: index for name, index in vocab.items() if types[index] == _NORMAL}
    if max(map(len, normal), default=0) > MAX_PIECE or sum(map(len, normal)) > MAX_PIECES_TOTAL:
        raise fields.error("ggml.tokens", f"holds tokens of more than {MAX_PIECE} characters, or too many long ones")
    ranked: list[tuple[float, int, int, str, str]] = []
    for name, index in normal.items():
        for at in range(1, len(name)):
            left, right = name[:at], name[at:]
            if left in normal and right in normal:
                ranked.append((-scores[index], index, normal[left], left, right))
    ranked.sort()
    if unknown is None and _UNKNOWN in types:
        unknown = types.index(_UNKNOWN)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab,
            [(left, right) for *_, left, right in ranked],
            unk_token=None if unknown is None else names[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", SPACE)
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.flag("ggml.add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = replace
    backend.decoder = decoders.Sequence(steps)
    return backend, True


def _add_tokens(backend: tokenizers.Tokenizer, tokens: list[str], names: list[str], types: list[int]) -> None:
    """Tell the backend which tokens are found in the text before anything else."""
    added = [
        AddedToken(name, special=kind == _CONTROL, normalized=False)
        for token, name, kind in zip(tokens, names, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED) and name == token
    ]
    backend.add_tokens(added)


def _add_post_processor(
    fields: _Fields, backend: tokenizers.Tokenizer, names: list[str], ids: Mapping[str, int | None], adds_bos: bool
) -> None:
    """Put the begin and end tokens around a text, where the file or its kind says so."""
    bos = ids["bos"] if fields.flag("ggml.add_bos_token", adds_bos) else None
    eos = ids["eos"] if fields.flag("ggml.add_eos_token", False) else None
    if bos is None and eos is None:
        return
    # Placeholder names, since a template splits its own tokens at spaces and reads `$` and `:`.
    template = [*(["bos"] if bos is not None else []), "$A", *(["eos"] if eos is not None else [])]
    table: list[dict[str, Any]] = [
        {"id": name, "ids": [token_id], "tokens": [names[token_id]]}
        for name, token_id in (("bos", bos), ("eos", eos))
        if token_id is not None
    ]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=table)


def _tables(tokens: list[str], types: list[int], bytes_of: Any) -> tuple[list[bytes], dict[int, bytes]]:
    """`token_bytes`, and the text of the tokens that `decode` leaves out."""
    token_bytes: list[bytes] = []
    special: dict[int, bytes] = {}
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_NORMAL, _BYTE):
            token_bytes.append(bytes_of(token))
            continue
        text = token.encode("utf-8", "surrogateescape")
        if kind == _USER_DEFINED or token in THINK_TAGS:
            token_bytes.append(text)
        else:
            token_bytes.append(b"")
            special[index] = text
    return token_bytes, special


def _end_ids(tokens: list[str], types: list[int], ids: Mapping[str, int | None]) -> list[int]:
    """All tokens that end a turn: the file's own first, then the well-known ones among its control tokens."""
    found = [token_id for key in ("eos", "eot", "eom") if (token_id := ids[key]) is not None]
    control = {token: index for index, token in enumerate(tokens) if types[index] == _CONTROL}
    known = {index for token, index in control.items() if token in END_OF_TURN}
    if "<|return|>" in control:
        # In this format <|end|> only closes one of several messages of a turn.
        known.discard(control.get("<|end|>", -1))
    return found + sorted(known)
