from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from deepseek_r1.core.errors import CheckpointError, DeepSeekError, TokenizerError, UnsupportedError
from deepseek_r1.models.text.load import load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 12345 67890",
    "def f(x):\n    return x + 1  # comment\n",
    "你好，世界！这是一个测试。今天天气很好。",
    "emoji 👋 👩‍👩‍👧 and café naïve",
] * 20
TEXTS = [
    "",
    "Hello the fox",
    "  17\n\n\tx",
    "你好世界 测试",
    "👩‍👩‍👧‍👦👋🏽",
    "a<|im_end|>b <tool> <think>x</think> <s>",
    "x" * 300,
    "\x00\x07 é",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


def byte_level() -> tokenizers.Tokenizer:
    """A small byte-level BPE in qwen's manner, with a begin token in the post-processor as llama 3 has it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+|[^\s]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(["<s>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<think>", special=True)])
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return backend


def sentencepiece_like() -> tokenizers.Tokenizer:
    """A small BPE in llama 2's manner: spaces as a sign, byte fallback."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({c for text in CORPUS for c in text.replace(" ", "▁") if c.isascii() or c in "▁你好"})
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "f"), ("o", "x"), ("▁f", "ox")]
    vocab = {name: i for i, name in enumerate([*names, *letters, *(a + b for a, b in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    return backend


def write(path: Path, name: str, value: Any) -> None:
    (path / name).write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    backend = byte_level()
    backend.enable_truncation(8)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    write(
        tmp_path,
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"content": "<s>", "__type": "AddedToken"},
            "eos_token": "<|im_end|>",
            "pad_token": None,
            "chat_template": TEMPLATE,
        },
    )
    return tmp_path


@pytest.fixture(scope="module", params=[byte_level, sentencepiece_like])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[], tokenizers.Tokenizer] = request.param
    path = tmp_path_factory.mktemp(make.__name__)
    make().save(str(path / "tokenizer.json"))
    eos = "<|im_end|>" if make is byte_level else "</s>"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos}
    write(path, "tokenizer_config.json", config | {"clean_up_tokenization_spaces": False})
    return path


@pytest.fixture(scope="module")
def pair(built: Path) -> tuple[PreTrainedTokenizerFast, Any]:
    return AutoTokenizer.from_pretrained(built), load_tokenizer(built)


def check(pair: tuple[PreTrainedTokenizerFast, Any], text: str) -> None:
    oracle, tokenizer = pair
    ids = tokenizer.encode(text)
    assert ids == oracle.encode(text)
    plain = tokenizer.encode(text, add_special_tokens=False)
    assert plain == oracle.encode(text, add_special_tokens=False)
    assert tokenizer.decode(plain, skip_special_tokens=False) == oracle.decode(plain, skip_special_tokens=False)
    if "<think>" not in text:  # a think tag marked as special stays text here
        assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_as_transformers(pair: tuple[PreTrainedTokenizerFast, Any], text: str) -> None:
    check(pair, text)


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
def test_encodes_any_text_as_transformers(pair: tuple[PreTrainedTokenizerFast, Any], text: str) -> None:
    check(pair, text)


def test_vocabulary_and_bytes(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    oracle = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.vocab_size == len(oracle)
    assert tokenizer.bos_token_id == oracle.bos_token_id
    assert [tokenizer.id_to_token(i) for i in range(len(oracle))] == oracle.convert_ids_to_tokens(range(len(oracle)))
    by_name = {name: tokenizer.token_bytes[tokenizer.token_to_id(name) or 0] for name in ("<tool>", "<think>", "<s>")}
    assert by_name == {"<tool>": b"<tool>", "<think>": b"<think>", "<s>": b""}
    assert tokenizer.decode(tokenizer.encode("<think>a<tool><s>b")) == "<think>a<tool>b"


def test_truncation_and_padding_of_the_file_are_off(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    text = "The quick brown fox " * 50
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    "flags",
    [{"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}, {"add_eos_token": False}],
)
def test_the_flags_of_the_configuration(directory: Path, flags: dict[str, bool]) -> None:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    write(directory, "tokenizer_config.json", config | flags)
    expected = AutoTokenizer.from_pretrained(directory)("fox", truncation=False, padding=False).input_ids
    tokenizer = load_tokenizer(directory)
    assert tokenizer.encode("fox") == expected
    # The classes that follow the flags, as DeepSeek-R1's files name one: begin and end tokens exactly as flagged.
    write(directory, "tokenizer_config.json", config | flags | {"tokenizer_class": "LlamaTokenizerFast"})
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("<|im_end|>")
    plain = tokenizer.encode("fox", add_special_tokens=False)
    begin, end = flags.get("add_bos_token", False), flags.get("add_eos_token", False)
    assert load_tokenizer(directory).encode("fox") == [bos] * begin + plain + [eos] * end


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, ["<|im_end|>"]),
        ({"eos_token_id": 501}, None, [501, "<|im_end|>"]),
        ({"eos_token_id": [501, 3]}, {"eos_token_id": 4}, [501, 3, "<|im_end|>", 4]),
    ],
)
def test_end_tokens_come_from_all_files(directory: Path, generation: Any, config: Any, expected: list[Any]) -> None:
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not None:
            write(directory, name, value)
    tokenizer = load_tokenizer(directory)
    ids = [tokenizer.token_to_id(item) if isinstance(item, str) else item for item in expected]
    assert tokenizer.eos_token_ids == tuple(dict.fromkeys(ids))


def test_where_the_template_comes_from(directory: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    expected = AutoTokenizer.from_pretrained(directory).apply_chat_template(messages, tokenize=False)
    assert load_tokenizer(directory).apply_chat_template(messages) == expected == "<s>[user]hi<|im_end|>"
    config = json.loads((directory / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain {{ eos_token }}"}]
    write(directory, "tokenizer_config.json", config | {"chat_template": named})
    assert load_tokenizer(directory).apply_chat_template(messages) == "plain <|im_end|>"
    write(
        directory, "tokenizer_config.json", config | {"chat_template": [*named[:1], {"name": "rag", "template": "x"}]}
    )
    with pytest.raises(TokenizerError, match=r"'rag', 'tool_use'.*chat_template.jinja"):
        load_tokenizer(directory)
    write(directory, "chat_template.jinja", "its own file: {{ messages[0].content }}")
    assert load_tokenizer(directory).apply_chat_template(messages) == "its own file: hi"


def test_tokens_that_only_the_configuration_lists(directory: Path) -> None:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    size = load_tokenizer(directory).vocab_size
    added = {str(size): {"content": "<extra>", "special": True}, str(size + 1): {"content": "<plain>"}}
    write(directory, "tokenizer_config.json", config | {"added_tokens_decoder": added})
    tokenizer = load_tokenizer(directory)
    assert tokenizer.encode("<extra><plain>", add_special_tokens=False) == [size, size + 1]
    assert tokenizer.decode([size, size + 1]) == "<plain>"
    write(directory, "tokenizer_config.json", config | {"added_tokens_decoder": {str(size + 5): {"content": "<e>"}}})
    with pytest.raises(CheckpointError, match=rf"added_tokens_decoder\.{size + 5}"):
        load_tokenizer(directory)


def test_special_tokens_map_is_the_second_source(directory: Path) -> None:
    write(directory, "tokenizer_config.json", {})
    write(directory, "special_tokens_map.json", {"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>"})
    tokenizer = load_tokenizer(directory)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    assert tokenizer.chat_template is None


def test_a_file_in_the_directory_names_it_too(directory: Path) -> None:
    write(directory, "model.safetensors", "")
    assert load_tokenizer(directory / "model.safetensors").vocab_size == load_tokenizer(directory).vocab_size


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("tokenizer.json", "{", CheckpointError, "tokenizer.json: tokenizer"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Nope"}}', CheckpointError, "cannot be built"),
        ("tokenizer.json", "\x00" * 100, CheckpointError, "cannot be built"),
        ("tokenizer_config.json", "[1]", CheckpointError, "tokenizer_config.json: JSON"),
        ("tokenizer_config.json", "[" * 100_000, CheckpointError, "tokenizer_config.json: JSON"),
        ("tokenizer_config.json", '{"bos_token": 5}', CheckpointError, "bos_token"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', CheckpointError, "added_tokens_decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"900": {}}}', CheckpointError, "added_tokens_decoder.900"),
        ("tokenizer_config.json", '{"add_bos_token": "yes"}', CheckpointError, "add_bos_token"),
        ("tokenizer_config.json", '{"chat_template": 5}', CheckpointError, "chat_template"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', TokenizerError, "does not compile"),
        ("generation_config.json", '{"eos_token_id": "x"}', CheckpointError, "generation_config.json: eos_token_id"),
        ("config.json", '{"eos_token_id": [true]}', CheckpointError, "config.json: eos_token_id"),
        ("special_tokens_map.json", "nope", CheckpointError, "special_tokens_map.json: JSON"),
    ],
)
def test_broken_files_are_typed_errors(
    directory: Path, name: str, content: str, error: type[DeepSeekError], words: str
) -> None:
    write(directory, name, content)
    with pytest.raises(error, match=words):
        load_tokenizer(directory)


def test_a_file_that_is_too_large(directory: Path) -> None:
    with (directory / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: file: has 1073741824 bytes"):
        load_tokenizer(directory)


def test_a_template_that_is_not_text(directory: Path) -> None:
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        load_tokenizer(directory)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: file: is missing.*save_pretrained"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_kind(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedError, match="neither byte-level nor SentencePiece-like"):
        load_tokenizer(tmp_path)
