"""Reasoning and content, told apart however the tags arrive."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from server_process import Running, chat

SPLIT_TAGS = ["<th", "ink", ">\n", "Let me", " see", ".</", "think>\n", "\nThe ", "answer"]
PLAIN_CASES: list[tuple[dict[str, Any], str | None, str]] = [
    ({"say": "<think>\nLet me see.\n</think>\n\nThe answer"}, "Let me see.\n", "The answer"),
    ({"pieces": SPLIT_TAGS}, "Let me see.", "The answer"),
    ({"say": "<think>never closed 世界"}, "never closed 世界", ""),
    ({"say": "no <think>tag</think> first"}, None, "no <think>tag</think> first"),
    ({"say": "<thin ice"}, None, "<thin ice"),
    ({"say": "<think></think>ok"}, None, "ok"),
    ({"say": "<think>a</think>b</think>c"}, "a", "b</think>c"),
]
OPEN_CASES: list[tuple[dict[str, Any], str | None, str]] = [
    ({"say": "Let me see.</think>\n\nThe answer"}, "Let me see.", "The answer"),
    ({"say": "never closed"}, "never closed", ""),
    ({"say": "<think>\nagain</think>ok"}, "again", "ok"),
    ({"pieces": ["hm", "</", "think", ">", "\n", "\n", "ok"]}, "hm", "ok"),
]


def ask(server: Running, stream: bool, words: dict[str, Any], **options: Any) -> tuple[str | None, str, Any]:
    """Reasoning, content and usage of one answer."""
    with server.client() as client:
        if not stream:
            answer = client.chat.completions.create(model="default", messages=chat(**words), **options)
            message = answer.choices[0].message
            return getattr(message, "reasoning_content", None), message.content, answer.usage
        reasoning, content, usage = "", "", None
        chunks = client.chat.completions.create(
            model="default", messages=chat(**words), stream=True, stream_options={"include_usage": True}, **options
        )
        for chunk in chunks:
            if chunk.usage is not None:
                usage = chunk.usage
                continue
            delta = chunk.choices[0].delta
            more = getattr(delta, "reasoning_content", None) or ""
            assert not (more and content), "reasoning after content"
            reasoning += more
            content += delta.content or ""
        return reasoning or None, content, usage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", range(len(PLAIN_CASES)))
def test_tags_in_the_output(server: Running, stream: bool, case: int) -> None:
    words, reasoning, content = PLAIN_CASES[case]
    assert ask(server, stream, {"delay": 0.003, **words})[:2] == (reasoning, content)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", range(len(OPEN_CASES)))
def test_the_template_opens(thinker: Running, stream: bool, case: int) -> None:
    words, reasoning, content = OPEN_CASES[case]
    assert ask(thinker, stream, {"delay": 0.003, **words})[:2] == (reasoning, content)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_tokens(server: Running, stream: bool) -> None:
    said = "<think>abc</think>\n\nxyz"
    _, _, usage = ask(server, stream, {"say": said})
    # One token per byte; the tags count as reasoning, the blank line after them and the end of sequence do not.
    assert usage.completion_tokens_details.reasoning_tokens == len("<think>abc</think>")
    assert usage.completion_tokens == len(said) + 1


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_budget(thinker: Running, stream: bool) -> None:
    words = {"say": "one two three four</think>\n\nThe answer"}
    reasoning, content, usage = ask(thinker, stream, words, extra_body={"max_thinking_tokens": 7})
    assert reasoning == "one two"
    assert content == "The answer"
    assert usage.completion_tokens_details.reasoning_tokens == 7 + len("</think>")


def test_stop_strings_see_the_raw_text(server: Running) -> None:
    assert ask(server, False, {"say": "<think>one two</think>three"}, stop=["wo</th"])[:2] == ("one t", "")
    assert ask(server, True, {"say": "<think>one two</think>three"}, stop=["hre"])[:2] == ("one two", "t")


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_stand_with_their_text(server: Running, stream: bool) -> None:
    with server.client() as client:
        words = {"model": "default", "messages": chat(say="<think>ab</think>cd"), "logprobs": True}
        found: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        if stream:
            parts = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**words, stream=True)]
        else:
            parts = [client.chat.completions.create(**words).choices[0].logprobs]
        for part in parts:
            for name, tokens in found.items():
                tokens += [token["token"] for token in part.model_dump()[name]] if part is not None else []
    assert "".join(found["reasoning_content"]) == "<think>ab</think>"
    assert "".join(found["content"]) == "cd"


def test_earlier_reasoning_is_accepted(client: openai.OpenAI) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        *chat(say="ok"),
    ]
    assert client.chat.completions.create(model="default", messages=messages).choices[0].message.content == "ok"
