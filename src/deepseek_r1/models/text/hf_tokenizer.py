"""Builds a tokenizer from a Hugging Face directory: tokenizer.json and the small JSON files around it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from deepseek_r1.core.errors import CheckpointError, TokenizerError, UnsupportedError
from deepseek_r1.models.text.chat_template import MAX_SOURCE, ChatTemplate
from deepseek_r1.models.text.tokenizer import THINK_TAGS, Tokenizer, byte_level_bytes, sentencepiece_bytes

MAX_TOKENIZER_BYTES = 128 << 20  # the largest published ones have some 40 MB
MAX_CONFIG_BYTES = 16 << 20
MAX_TOKENS = 2_000_000

# Classes that build their post-processor from `add_bos_token` and `add_eos_token`; elsewhere tokenizer.json decides.
# DeepSeek-R1 and its distilled models name the first one and have no begin token in tokenizer.json.
_FLAG_CLASSES = frozenset(
    f"{family}Tokenizer{suffix}" for family in ("Llama", "CodeLlama", "Gemma", "Cohere") for suffix in ("", "Fast")
)
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def tokenizer_from_directory(path: Path) -> Tokenizer:
    """The tokenizer of the model in directory `path`.

    Raises `CheckpointError` for files that are missing, too large or not what they should be, `UnsupportedError` for a
    tokenizer that is neither byte-level nor SentencePiece-like, `TokenizerError` for a template that does not compile.
    """
    backend = _read_backend(path / "tokenizer.json")
    config = _read_json(path / "tokenizer_config.json")
    named = _named_tokens(path, config)
    _complete_vocabulary(backend, path, config, named)

    ids = {name: backend.token_to_id(token) for name, token in named.items()}
    _follow_add_flags(backend, path, config, named)
    token_bytes, special_bytes, strips = _tables(backend, path)
    template = _template_source(path, config)
    return Tokenizer(
        backend,
        token_bytes=token_bytes,
        special_bytes=special_bytes,
        bos_token_id=ids.get("bos_token"),
        eos_token_ids=_end_ids(path, ids.get("eos_token")),
        special_tokens=named,
        chat_template=None if template is None else ChatTemplate(template, special_tokens=named),
        strips_space_prefix=strips,
    )


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    data = _read(path, MAX_TOKENIZER_BYTES)
    if data is None:
        remedy = "export tokenizer.json with transformers' AutoTokenizer(...).save_pretrained()"
        raise CheckpointError(path, "file", "is missing", remedy=remedy)
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:
        # The library's own panics are no Exception; an interrupt is not about the file.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise CheckpointError(path, "tokenizer", f"cannot be built: {error}") from error
    # Limits for training batches that some files carry; a prompt is never cut or padded in silence.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read(path: Path, limit: int) -> bytes | None:
    """The file's bytes, None if there is none."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(path, "file", f"has {size} bytes, more than {limit}")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(path, "file", f"cannot be read: {error.strerror}", remedy="mend the file") from error


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty if there is no file."""
    data = _read(path, MAX_CONFIG_BYTES)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "JSON", f"cannot be parsed: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "JSON", "should be an object")
    return value


def _content(path: Path, field: str, value: Any) -> str:
    """A token written as a string or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise CheckpointError(path, field, "should be a string or an object with `content`")
    return text


def _named_tokens(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like; tokenizer_config.json goes before special_tokens_map.json."""
    named: dict[str, str] = {}
    special_map = _read_json(path / "special_tokens_map.json")
    for name in _NAMED_TOKENS:
        for file, values in (("tokenizer_config.json", config), ("special_tokens_map.json", special_map)):
            if values.get(name) is not None:
                named[name] = _content(path / file, name, values[name])
                break
    return named


def _complete_vocabulary(
    backend: tokenizers.Tokenizer, path: Path, config: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    """Add what only tokenizer_config.json lists, and mark the named tokens as special."""
    file = path / "tokenizer_config.json"
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict) or not all(isinstance(key, str) and key.isdecimal() for key in listed):
        raise CheckpointError(file, "added_tokens_decoder", "should be an object whose keys are token ids")
    if len(listed) > MAX_TOKENS:
        raise CheckpointError(file, "added_tokens_decoder", f"holds {len(listed)} tokens")
    for key in sorted(listed, key=int):
        field = f"added_tokens_decoder.{key}"
        text = _content(file, field, listed[key])
        if backend.token_to_id(text) is not None:
            continue
        flags = listed[key] if isinstance(listed[key], dict) else {}
        options = {
            name: bool(flags.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")
        }
        backend.add_tokens([AddedToken(text, **options)])
        if backend.token_to_id(text) != int(key):
            raise CheckpointError(
                file, field, f"{text!r} would get id {backend.token_to_id(text)}: tokenizer.json lacks tokens before it"
            )
    known = backend.get_added_tokens_decoder()
    special = {token.content for token in known.values() if token.special}
    missing = [text for text in named.values() if text not in special and backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])


def _follow_add_flags(
    backend: tokenizers.Tokenizer, path: Path, config: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    """Where the tokenizer's class follows the flags of the configuration, they go before tokenizer.json."""
    names = [name for name in ("bos_token", "eos_token") if config.get(f"add_{name}") is not None]
    for name in names:
        if not isinstance(config[f"add_{name}"], bool):
            raise CheckpointError(path / "tokenizer_config.json", f"add_{name}", "should be a boolean")
    if not names or config.get("tokenizer_class") not in _FLAG_CLASSES:
        return
    added = {
        name: token_id
        for name in names
        if config[f"add_{name}"] and name in named and (token_id := backend.token_to_id(named[name])) is not None
    }
    template = [name for name in ("bos_token", "$A", "eos_token") if name == "$A" or name in added]
    table = [{"id": name, "ids": [token_id], "tokens": [named[name]]} for name, token_id in added.items()]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=table)


def _tables(backend: tokenizers.Tokenizer, path: Path) -> tuple[list[bytes], dict[int, bytes], bool]:
    """`token_bytes`, the text of special tokens, and whether the decoder drops a space at the start."""
    bytes_of, strips = _spelling(backend, path)
    vocab = backend.get_vocab(with_added_tokens=True)
    size = max(vocab.values(), default=-1) + 1
    if not 0 < size <= MAX_TOKENS:
        raise CheckpointError(path / "tokenizer.json", "vocab", f"has ids up to {size - 1}")
    table = [b""] * size
    for token, index in vocab.items():
        table[index] = bytes_of(token)
    special: dict[int, bytes] = {}
    for index, added in backend.get_added_tokens_decoder().items():
        text = added.content.encode()
        if added.special and added.content not in THINK_TAGS:
            special[index], text = text, b""
        table[index] = text
    return table, special, strips


def _spelling(backend: tokenizers.Tokenizer, path: Path) -> tuple[Callable[[str], bytes], bool]:
    """How this vocabulary spells bytes, told from its pre-tokenizer and decoder."""
    steps = [*_steps(backend.decoder), *_steps(backend.pre_tokenizer)]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return byte_level_bytes, False
    metaspace = [step for step in steps if step.get("type") == "Metaspace"]
    if metaspace or "ByteFallback" in kinds:
        fallback = "ByteFallback" in kinds
        strips = any(step.get("type") == "Strip" and step.get("start") for step in steps) or any(
            step.get("prepend_scheme") != "never" for step in metaspace
        )
        return (lambda token: sentencepiece_bytes(token, byte_fallback=fallback)), strips
    raise UnsupportedError(
        f"{path / 'tokenizer.json'}: decoder: neither byte-level nor SentencePiece-like ({sorted(map(str, kinds))})",
        remedy="use a model with a byte-level BPE or SentencePiece tokenizer",
    )


def _steps(component: Any) -> list[dict[str, Any]]:
    """A decoder or pre-tokenizer as the list of its steps, in the form of tokenizer.json."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    steps: list[dict[str, Any]] = state.get("decoders") or state.get("pretokenizers") or [state]
    return steps


def _template_source(path: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: its own file first, then tokenizer_config.json; of several, the one named default."""
    data = _read(path / "chat_template.jinja", 4 * MAX_SOURCE)
    if data is not None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(path / "chat_template.jinja", "file", "is not UTF-8") from error
    file = path / "tokenizer_config.json"
    template = config.get("chat_template")
    if template is None:
        file = path / "chat_template.json"
        template = _read_json(file).get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        if "default" not in named and len(named) != 1:
            raise TokenizerError(
                f"{file}: chat_template: none of {sorted(map(str, named))} is named default",
                remedy="write the one to use into chat_template.jinja beside it",
            )
        template = named.get("default", next(iter(named.values())))
    if template is not None and not isinstance(template, str):
        raise CheckpointError(file, "chat_template", "should be a string or a list of named templates")
    return template


def _end_ids(path: Path, eos: int | None) -> list[int]:
    """The tokens that end a turn, by generation_config.json, the tokenizer and config.json."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_json(path / name).get("eos_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in values):
            raise CheckpointError(path / name, "eos_token_id", "should be a token id or a list of them")
        found += values
        if name == "generation_config.json" and eos is not None:
            found.append(eos)
    return found
