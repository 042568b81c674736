from __future__ import annotations

from itertools import groupby
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from deepseek_r1.data.errors import DataError
from deepseek_r1.data.examples import Example, TrainOn, encode_record
from deepseek_r1.data.records import Record
from deepseek_r1.data.tokenizer import TextTokenizer
from deepseek_r1.models.locate import locate_model
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.models.text.tokenizer import Tokenizer
from support.small_text import BARE, CHATML, CLOSES, DROPS_EARLIER, R1, small_backend, small_tokenizer

BACKEND = small_backend()
EVERY_TEMPLATE = {"chatml": CHATML, "r1": R1, "drops": DROPS_EARLIER, "closes": CLOSES, "bare": BARE}


@pytest.fixture(scope="module")
def default() -> Tokenizer:
    return load_tokenizer(locate_model("default"))


def talk(*contents: str, system: str = "") -> list[dict[str, str]]:
    """User and assistant in turn."""
    turns = [{"role": ("user", "assistant")[index % 2], "content": words} for index, words in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def encode(tokenizer: TextTokenizer, train_on: TrainOn = "assistant", /, **fields: Any) -> Example:
    return encode_record(Record(fields, "file:7"), tokenizer, train_on=train_on)


def trained_parts(example: Example, tokenizer: TextTokenizer) -> list[str]:
    """The text of each run of trained tokens."""
    pairs = zip(example.ids, example.trained, strict=True)
    runs = [(trained, [token for token, _ in run]) for trained, run in groupby(pairs, key=lambda pair: pair[1])]
    return [tokenizer.decode(ids, skip_special_tokens=False) for trained, ids in runs if trained]


def refused(tokenizer: TextTokenizer, train_on: TrainOn = "assistant", /, **fields: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        encode(tokenizer, train_on, **fields)
    assert caught.value.place == "file:7" and caught.value.remedy
    return caught.value


# --- conversations ----------------------------------------------------------------------------------------------------


def test_the_default_models_turns(default: Tokenizer) -> None:
    messages = talk("2+2?", "It is 4.", "And 你好 👋?", " Fünf\n\n- a\n", "bye", system="Be brief.")
    example = encode(default, messages=messages)
    # The line break before " Fünf" is no part of a token with its space; what follows the last turn is left out.
    assert trained_parts(example, default) == ["It is 4.<|im_end|>", " Fünf\n\n- a\n<|im_end|>"]
    text = default.apply_chat_template(messages[:-1], add_generation_prompt=False)
    assert list(example.ids) == default.encode(text, add_special_tokens=False)
    assert trained_parts(encode(default, "last", messages=messages), default) == [" Fünf\n\n- a\n<|im_end|>"]
    everything = encode(default, "all", messages=messages)
    assert list(everything.ids) == default.encode(
        default.apply_chat_template(messages, add_generation_prompt=False), add_special_tokens=False
    )
    assert everything.trained == (False, *[True] * (len(everything.ids) - 1))


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=3))
def test_exactly_the_default_models_words_are_trained(default: Tokenizer, turns: list[tuple[str, str]]) -> None:
    """The answers' first letter can't join the line break before it, so that their tokens are theirs alone."""
    words = [words for question, answer in turns for words in (question, f"a{answer}")]
    # A few bytes that no common letter has are not in the vocabulary.
    assume(all(default.decode(default.encode(word)) == word for word in words))
    messages = talk(*words)
    example = encode(default, messages=messages)
    assert trained_parts(example, default) == [f"a{answer}<|im_end|>" for _, answer in turns]


WORDS = st.text(st.sampled_from(" \n\tabox:12.é你👋<|_"), max_size=12)


@settings(max_examples=150)
@given(st.sampled_from(["chatml", "closes", "bare"]), st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_masks_are_those_of_the_librarys_letter_offsets(name: str, turns: list[tuple[str, str]]) -> None:
    """The reference finds the answers in the rendered text by search, and tokens by the library's offsets."""
    tokenizer = small_tokenizer(EVERY_TEMPLATE[name], backend=BACKEND)
    turns = [(f"q{index}{question}", f"{answer}x{index}") for index, (question, answer) in enumerate(turns)]
    messages = talk(*[words for turn in turns for words in turn])
    opening, ending = {
        "chatml": ("assistant\n", "<|im_end|>"),
        "closes": ("<|assistant|>\n", "<|end|>"),
        "bare": ("assistant: ", ""),
    }[name]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    spans, place = [], 0
    for question, answer in turns:
        place = text.index(question, place) + len(question)
        place = text.index(opening + answer + ending, place) + len(opening)
        spans.append((place, place + len(answer + ending)))
    if name == "closes":
        spans[-1] = (spans[-1][0], len(text))
    encoded = BACKEND.encode(text, add_special_tokens=False)
    expected = [any(start < end <= stop for start, stop in spans) for _, end in encoded.offsets]
    example = encode(tokenizer, messages=messages)
    assert list(example.ids) == encoded.ids
    assert list(example.trained) == expected


def test_masks_are_those_of_transformers() -> None:
    oracle = PreTrainedTokenizerFast(tokenizer_object=BACKEND, chat_template=CHATML)
    tokenizer = small_tokenizer(CHATML, backend=BACKEND)
    for messages in (
        talk("hi", "hello"),
        talk("the quick", "brown fox\n", "jumps 你好", "over 👋 é", system="Be brief."),
        talk("a", " leading space", "b", "\n\nleading lines"),
    ):
        theirs = cast(
            "dict[str, list[int]]",
            oracle.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True),
        )
        example = encode(tokenizer, messages=messages)
        assert list(example.ids) == theirs["input_ids"]
        assert list(map(int, example.trained)) == theirs["assistant_masks"]


REASONED = "<think>\nhm\n</think>\n\nhello"


def test_a_template_that_drops_reasoning_keeps_it_in_the_turn_that_is_trained() -> None:
    tokenizer = small_tokenizer(R1)
    messages = talk("hi", REASONED, "and", "<think>\nso\n</think>\n\nbye")
    example = encode(tokenizer, "last", messages=messages)
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == (
        "<|begin|><|user|>hi<|assistant|>\n\nhello<|end_of_text|><|user|>and"
        "<|assistant|><think>\nso\n</think>\n\nbye<|end_of_text|>"
    )
    assert trained_parts(example, tokenizer) == ["so\n</think>\n\nbye<|end_of_text|>"]
    error = refused(tokenizer, messages=messages)
    assert error.field == "messages[1]" and "train_on=last" in error.remedy
    assert "train_on=last" in refused(tokenizer, "all", messages=messages).remedy


@pytest.mark.parametrize(
    ("answer", "trained"),
    [
        (REASONED, "hm\n</think>\n\nhello<|end_of_text|>"),
        ("<think>hm</think>hello", "hm</think>hello<|end_of_text|>"),
        ("hm\n</think>\n\nhello", "hm\n</think>\n\nhello<|end_of_text|>"),
        ("<think></think>hello", "</think>hello<|end_of_text|>"),
    ],
)
def test_the_prompt_opens_the_reasoning_once(answer: str, trained: str) -> None:
    tokenizer = small_tokenizer(R1)
    example = encode(tokenizer, messages=talk("hi", answer))
    assert trained_parts(example, tokenizer) == [trained]
    assert tokenizer.decode(example.ids, skip_special_tokens=False).count("<think>") == 1


def test_an_answer_without_reasoning_after_a_prompt_that_opens_it() -> None:
    error = refused(small_tokenizer(R1), "last", messages=talk("hi", "hello"))
    assert error.field == "messages[1]" and "<think></think>" in error.remedy


def test_a_template_that_drops_earlier_reasoning() -> None:
    tokenizer = small_tokenizer(DROPS_EARLIER)
    messages = talk("hi", REASONED, "and", REASONED)
    assert refused(tokenizer, messages=messages).field == "messages[1]"
    example = encode(tokenizer, "last", messages=messages)
    assert trained_parts(example, tokenizer) == [f"{REASONED}<|im_end|>"]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == text and text.count("<think>") == 1
    # Turns without reasoning are the same wherever they stand.
    example = encode(tokenizer, messages=talk("hi", "hello ", "and", REASONED))
    assert trained_parts(example, tokenizer) == ["hello<|im_end|>", f"{REASONED}<|im_end|>"]


def test_a_template_that_closes_a_conversation() -> None:
    tokenizer = small_tokenizer(CLOSES)
    example = encode(tokenizer, messages=talk("hi", "hello", "and", "bye"))
    assert trained_parts(example, tokenizer) == ["hello<|end|>", "bye<|end|>\n<|end_of_text|>"]


def test_a_template_that_closes_a_conversation_with_words() -> None:
    """Without a known token at its end, nobody knows where an earlier turn ends."""
    tokenizer = small_tokenizer(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ 'unending' }}{% endif %}"
    )
    messages = talk("hi", "hello", "and", "bye")
    assert refused(tokenizer, messages=messages).field == "messages[1]"
    assert trained_parts(encode(tokenizer, "last", messages=messages), tokenizer)[0].strip() == "bye\nunending"


def test_a_completion_of_messages_trains_its_own_turns_only() -> None:
    tokenizer = small_tokenizer()
    first, second = talk("hi", "hello", "and"), [*talk("", "bye")[1:], *talk("more", "end")]
    example = encode(tokenizer, prompt=first, completion=second)
    assert trained_parts(example, tokenizer) == ["bye<|im_end|>", "end<|im_end|>"]
    assert example.ids == encode(tokenizer, messages=[*first, *second]).ids
    assert trained_parts(encode(tokenizer, "last", prompt=first, completion=second), tokenizer) == ["end<|im_end|>"]


def test_nothing_of_a_conversation_without_answer_is_trained() -> None:
    assert not any(encode(small_tokenizer(), messages=talk("hi")).trained)
    assert not any(encode(small_tokenizer(R1), "last", prompt=talk("hi", REASONED), completion=talk("hi")).trained)


def test_conversations_that_are_refused() -> None:
    tokenizer = small_tokenizer()
    assert refused(tokenizer, messages=talk("hi", " \n")).field == "messages[1].content"
    assert refused(tokenizer, prompt=talk("hi"), completion=talk("", "")[1:]).field == "completion[0].content"
    assert trained_parts(encode(tokenizer, "last", messages=talk("a", "", "b", "c")), tokenizer) == ["c<|im_end|>"]
    assert "speaks first" in refused(tokenizer, messages=talk("", "hello")[1:]).problem
    assert "no chat template" in refused(small_tokenizer(None), messages=talk("hi", "hello")).problem
    strict = small_tokenizer("{{ raise_exception('roles must alternate') }}")
    assert "roles must alternate" in refused(strict, messages=talk("hi", "hello")).problem
    mute = small_tokenizer("{% for m in messages %}{{ m['content'] if m['role'] == 'user' }}{% endfor %}")
    assert "leaves out" in refused(mute, messages=talk("hi", "hello")).problem


# --- prompts with completions, and texts ------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "completion"), [("the quick ", "brown fox"), ("Q: 12\n", "12345"), ("", "x")])
def test_a_completion_and_the_token_after_it(prompt: str, completion: str) -> None:
    tokenizer = small_tokenizer(None)
    example = encode(tokenizer, prompt=prompt, completion=completion)
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == f"<|begin|>{prompt}{completion}<|end_of_text|>"
    assert trained_parts(example, tokenizer)[0].lstrip() == f"{completion}<|end_of_text|>"
    everything = encode(tokenizer, "all", prompt=prompt, completion=completion)
    assert everything.ids == example.ids
    assert everything.trained == (False, *[True] * (len(example.ids) - 1))


def test_a_token_over_the_border_belongs_to_the_completion(default: Tokenizer) -> None:
    example = encode(default, prompt="The cap", completion="ital of France is Paris.")
    assert trained_parts(example, default) == [" capital of France is Paris.<|im_end|>"]


@settings(max_examples=150)
@given(WORDS, WORDS)
def test_borders_are_those_of_the_librarys_letter_offsets(prompt: str, completion: str) -> None:
    tokenizer = small_tokenizer(None, backend=BACKEND)
    completion += "x"
    example = encode(tokenizer, prompt=prompt, completion=completion)
    encoded = BACKEND.encode(prompt + completion, add_special_tokens=False)
    assert list(example.ids[1:-1]) == encoded.ids
    assert list(example.trained) == [False, *[end > len(prompt) for _, end in encoded.offsets], True]


def test_everything_of_a_text_is_trained_but_its_first_token() -> None:
    tokenizer = small_tokenizer()
    example = encode(tokenizer, text="the fox<|end_of_text|>")
    assert tokenizer.decode(example.ids, skip_special_tokens=False) == "<|begin|>the fox<|end_of_text|>"
    assert trained_parts(example, tokenizer) == ["the fox<|end_of_text|>"]
    assert refused(tokenizer, text="\n").field == "text"
    assert refused(tokenizer, prompt="a", completion="").field == "completion"


class Upper:
    """A tokenizer that can't give texts back: it joins pairs of letters and forgets their case."""

    eos_token_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        pairs = [text[place : place + 2].upper() for place in range(0, len(text), 2)]
        return [sum(ord(letter) << 21 * index for index, letter in enumerate(pair)) for pair in pairs]

    def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(i & 0x1FFFFF) + (chr(i >> 21) if i >> 21 else "") for i in ids)

    def apply_chat_template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        return "".join(message["content"] for message in messages)


class Scripted(Upper):
    """A tokenizer that cuts the texts of a table into the bytes that the table says."""

    def __init__(self, cuts: dict[str, list[bytes]]) -> None:
        self.cuts = cuts
        self.tokens = sorted({token for cut in cuts.values() for token in cut})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [self.tokens.index(token) for token in self.cuts[text]]

    def decode(self, ids: Any, *, skip_special_tokens: bool = True) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("prompt", "prompt_cut", "whole_cut", "trained"),
    [
        # The prompt alone is cut otherwise, and a token of the whole ends at the border all the same.
        ("zab", [b"z", b"a", b"b"], [b"z", b"ab", b"x"], [False, False, True]),
        ("zab", [b"z", b"ab"], [b"z", b"a", b"bx"], [False, False, True]),
        # The first token that differs begins within a letter.
        ("zé", [b"z", b"\xc3", b"\xa9"], [b"z", b"\xc3", b"\xa9x"], [False, False, True]),
        ("👋", [b"\xf0", b"\x9f", b"\x91", b"\x8b"], [b"\xf0", b"\x9f", b"\x91", b"\x8bx"], [False] * 3 + [True]),
    ],
)
def test_borders_within_tokens(
    prompt: str, prompt_cut: list[bytes], whole_cut: list[bytes], trained: list[bool]
) -> None:
    example = encode(Scripted({prompt: prompt_cut, f"{prompt}x": whole_cut}), prompt=prompt, completion="x")
    assert list(example.trained) == trained


def test_a_tokenizer_that_cannot_give_texts_back() -> None:
    example = encode(Upper(), prompt="ab", completion="cd")
    assert example.trained == (False, True)  # no end-of-text token is known
    assert "joins letters" in refused(Upper(), prompt="abc", completion="de").problem
    assert encode(Upper(), prompt="ABC", completion="de").trained == (False, True, True)
