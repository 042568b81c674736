from __future__ import annotations

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from deepseek_r1.core.errors import UnsupportedError
from deepseek_r1.models.text.pretokenizers import PRE_TOKENIZERS, pre_tokenizer

TO_BYTE = {
    chr(code): byte
    for byte, code in zip(
        [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x21), *range(0x7F, 0xA1), 0xAD],
        [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144)],
        strict=True,
    )
}

# The patterns as the models' own tokenizer.json or source code publish them; `regex` is another engine than ours.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUBLISHED = {
    "gpt-2": (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",),
    "llama-bpe": (LLAMA3,),
    "qwen2": (LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "gpt-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"),
}


def published_split(name: str, text: str) -> list[str]:
    """Each pattern in turn isolates its matches in the pieces that the one before it left."""
    pieces = [text]
    for pattern in PUBLISHED[name]:
        pieces = [part for piece in pieces for part in regex.split(f"({pattern})", piece) if part]
    return pieces


SAMPLE = "I'm HERE'LL  17\n\n\tfooBar(x): 12345 = 你好，世界！ “é” \r\n  "

# Written out by hand from the definitions. "“" stands alone in deepseek-coder and -llm: their range of Chinese and
# Korean letters begins at U+0800.
EXPECTED = {
    "gpt-2": "I|'m| HERE|'|LL| | 17|\n\n|\t|fooBar|(|x|):| 12345| =| 你好|，|世界|！| “|é|”| \r\n  ",
    "smollm": "I|'m| HERE|'|LL|  |1|7|\n\n|\t|fooBar|(|x|):| |1|2|3|4|5| =| 你好|，|世界|！| “|é|”| \r\n  ",
    "llama-bpe": "I|'m| HERE|'LL| | |17|\n\n|\tfooBar|(x|):| |123|45| =| 你好|，世界|！| “|é|”| \r\n|  ",
    "qwen2": "I|'m| HERE|'LL| | |1|7|\n\n|\tfooBar|(x|):| |1|2|3|4|5| =| 你好|，世界|！| “|é|”| \r\n|  ",
    "tekken": "I|'m| HERE|'LL| | |1|7|\n\n|\tfoo|Bar|(x|):| |1|2|3|4|5| =| 你好|，世界|！| “|é|”| \r\n|  ",
    "gpt-4o": "I'm| HERE'LL| | |17|\n\n|\tfoo|Bar|(x|):| |123|45| =| 你好|，世界|！| “|é|”| \r\n|  ",
    "deepseek-v3": "I|'m| HERE|'LL|  |17|\n\n|\tfooBar|(x|):| |123|45| =| |你好|，|世界|！| “|é|”| \r\n|  ",
    "deepseek-coder": "I|'|m| HERE|'|LL|  |1|7|\n|\n|\tfooBar|(|x|):| |1|2|3|4|5| =| |你好|，|世界|！| "
    "|“|é|”| |\r|\n|  ",
    "deepseek-llm": "I|'|m| HERE|'|LL|  |17|\n|\n|\tfooBar|(|x|):| |12345| =| |你好|，|世界|！| |“|é|”| |\r|\n|  ",
    "default": "I|'|m| HERE|'|LL| | |17|\n\n|\t|fooBar|(|x|):| |123|45| |=| 你好|，|世界|！| |“|é|”| \r\n  ",
    "falcon": "I|'|m| HERE|'|LL| | 17|\n\n|\t|fooBar|(|x|):| |123|45| |=| 你好|，|世界|！| |“|é|”| \r\n  ",
}
ALIASES = {
    "deepseek-r1-qwen": "qwen2",
    "stablelm2": "qwen2",
    "llama3": "llama-bpe",
    "dbrx": "llama-bpe",
    "chatglm-bpe": "llama-bpe",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "olmo": "gpt-2",
    "llama4": "gpt-4o",
}


def split(name: str, text: str) -> list[str]:
    built: pre_tokenizers.PreTokenizer = pre_tokenizer(name).build()
    return [bytes(TO_BYTE[c] for c in piece).decode() for piece, _ in built.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", [*EXPECTED, *ALIASES])
def test_the_pieces_of_a_sample(name: str) -> None:
    assert "|".join(split(name, SAMPLE)) == EXPECTED[ALIASES.get(name, name)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(PUBLISHED)),
    st.one_of(
        st.text(st.sampled_from("aZé中ñ'sSmre19٣½ \t\n\r\u3000.!/，“€_ー\u0301ǅ👍"), max_size=30),
        st.text(st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x2FFF), max_size=20),
    ),
)
def test_the_published_pattern_in_another_engine(name: str, text: str) -> None:
    assert split(name, text) == published_split(name, text)


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_text_is_lost(name: str, text: str) -> None:
    built = pre_tokenizer(name).build()
    pieces = "".join(piece for piece, _ in built.pre_tokenize_str(text))
    assert bytes(TO_BYTE[c] for c in pieces).decode() == text


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"'smolm'.*did you mean 'smollm'.*command-r.*tekken"):
        pre_tokenizer("smolm")
