from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.models.text.detokenizer import Detokenizer
from deepseek_r1.models.text.gguf_tokenizer import tokenizer_from_gguf
from deepseek_r1.models.text.tokenizer import Tokenizer

WORDS = (
    "the quick brown fox jumps over the lazy dog and then there were three more of them sitting in the thin shade "
    "def return import for in range if else while print self data value test the theory that these things think "
    "banana bananas ananas aaaa aaaaaa abab ababab 你好 世界 中文 文本 模型 1234 2024 17 3.14 <tag> </tag> __init__ "
).split()

TEXTS = [
    "",
    " ",
    "   ",
    "the quick brown fox",
    " the  quick   brown",
    "banana bananaananas aaaaaaaaaaaaaaaaaaa abababab",
    "def f(self):\n    return self.value  # 17\n\n\n\tx",
    "你好，世界！中文模型",
    "👩‍👩‍👧‍👦 emoji é ü ß ٣",
    "\x00\x07\x7f\u2028\ufeff",
    "▁already▁escaped",
    "tabs\t\tand\r\nnewlines\n",
    "<0x41> <unk> is text",
    "a" * 500 + " " * 100,
]


def train(**options: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    generator = np.random.default_rng(7)
    sentences = [" ".join(generator.choice(WORDS, size=12)) for _ in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def as_gguf(oracle: sentencepiece.SentencePieceProcessor, **changes: Any) -> dict[str, Any]:
    ids = range(oracle.get_piece_size())
    types = [
        2
        if oracle.is_unknown(i)
        else 3
        if oracle.is_control(i)
        else 6
        if oracle.is_byte(i)
        else 5
        if oracle.is_unused(i)
        else 1
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [oracle.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": np.array([oracle.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": oracle.bos_id(),
        "tokenizer.ggml.eos_token_id": oracle.eos_id(),
        "tokenizer.ggml.unknown_token_id": oracle.unk_id(),
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def pair(request: pytest.FixtureRequest) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    oracle = train(add_dummy_prefix=request.param)
    return oracle, tokenizer_from_gguf(as_gguf(oracle, add_space_prefix=request.param), "x.gguf")


def check(pair: tuple[sentencepiece.SentencePieceProcessor, Tokenizer], text: str) -> None:
    oracle, tokenizer = pair
    expected = oracle.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False) == expected
    assert tokenizer.encode(text) == [1, *expected]
    assert tokenizer.decode([1, *expected]) == text.replace("▁", " ")
    pieces = Detokenizer(tokenizer.token_bytes)
    streamed = "".join(pieces.push([i]) for i in expected) + pieces.flush()
    assert streamed.encode() == b"".join(tokenizer.token_bytes[i] for i in expected)


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_as_sentencepiece(pair: tuple[sentencepiece.SentencePieceProcessor, Tokenizer], text: str) -> None:
    check(pair, text)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.text(st.sampled_from("aban thein\n1 你好世<>"), max_size=60),
        st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join),
    )
)
def test_encodes_any_text_as_sentencepiece(
    pair: tuple[sentencepiece.SentencePieceProcessor, Tokenizer], text: str
) -> None:
    check(pair, text)


def test_bytes_of_tokens(pair: tuple[sentencepiece.SentencePieceProcessor, Tokenizer]) -> None:
    oracle, tokenizer = pair
    assert tokenizer.token_bytes[oracle.piece_to_id("<0xAB>")] == b"\xab"
    assert tokenizer.token_bytes[oracle.piece_to_id("▁the")] == b" the"
    assert tokenizer.token_bytes[:3] == [b"", b"", b""]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2,))


def test_control_tokens_in_a_text_become_ids() -> None:
    oracle = train()
    tokenizer = tokenizer_from_gguf(as_gguf(oracle, add_bos_token=False), "x.gguf")
    # The word after a control token begins with a space again, as llama.cpp and the published tokenizers have it.
    assert tokenizer.encode("the</s>dog") == [*oracle.encode("the"), 2, *oracle.encode("dog")]


def test_invalid_utf8_among_the_tokens() -> None:
    oracle = train()
    data = as_gguf(oracle)
    data["tokenizer.ggml.tokens"].append("\udce4\udcb8")
    data["tokenizer.ggml.scores"] = np.append(data["tokenizer.ggml.scores"], np.float32(0))
    data["tokenizer.ggml.token_type"] = np.append(data["tokenizer.ggml.token_type"], np.int32(1))
    tokenizer = tokenizer_from_gguf(data, "x.gguf")
    assert tokenizer.token_bytes[-1] == b"\xe4\xb8"
    assert tokenizer.encode("the dog", add_special_tokens=False) == oracle.encode("the dog")


def test_a_token_of_absurd_length_is_refused() -> None:
    data = as_gguf(train())
    data["tokenizer.ggml.tokens"][-1] = "a" * 1_000_000
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.tokens"):
        tokenizer_from_gguf(data, "x.gguf")
