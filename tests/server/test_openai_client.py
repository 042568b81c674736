"""The official client against the real server; the scripted engine says what must come out."""

from __future__ import annotations

import json

import openai
import pytest
from server_process import Running, chat, script, wait_for


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="default", messages=chat(say="Hello, the 世界 🙂!"))
    choice = answer.choices[0]
    assert choice.message.content == "Hello, the 世界 🙂!"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.model == "tiny"
    assert answer.object == "chat.completion"
    assert answer.system_fingerprint == "fp32/scripted"
    assert answer.usage is not None
    tokens = len("Hello, the 世界 🙂!".encode()) + 1  # one per byte, and the end of sequence
    assert answer.usage.completion_tokens == tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + tokens
    # The scripted engine says that all whole blocks of 16 were cached.
    assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens // 16 * 16


def test_prompt_tokens_are_those_of_the_template(client: openai.OpenAI, server: Running) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    tokens = server.http.post("/tokenize", json={"messages": messages}).json()
    assert answer.usage.prompt_tokens == tokens["count"] == len(tokens["tokens"])
    text = server.http.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"]
    assert text == ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n")


def test_chat_stream_equals_whole(client: openai.OpenAI) -> None:
    said = "All the 世界's 🙂 pieces: " + "word " * 40
    chunks = list(
        client.chat.completions.create(
            model="default",
            messages=chat(say=said, delay=0.003),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == said
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
    assert sum(chunk.choices[0].finish_reason is not None for chunk in chunks[:-1]) == 1
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(said.encode()) + 1
    assert "�" not in "".join(chunk.model_dump_json() for chunk in chunks)
    # 220 tokens in 0.7 s or more, 0.05 s between events: coalesced, but not into one.
    assert 6 <= len(chunks) <= 60


def test_stream_without_usage_has_none(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="default", messages=chat(say="hi"), stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_on_the_wire(server: Running) -> None:
    body = {"messages": chat(say="hi"), "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        text = response.read().decode()
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    assert json.loads(events[0][6:])["object"] == "chat.completion.chunk"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_cut_the_text(client: openai.OpenAI, stream: bool) -> None:
    words = {"model": "default", "messages": chat(say="one two three", delay=0.02), "stop": ["thX", " thr"]}
    if stream:
        chunks = list(client.chat.completions.create(**words, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = client.chat.completions.create(**words).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    assert text == "one two"
    assert reason == "stop"


def test_a_half_stop_string_at_the_end_is_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="default", messages=chat(say="one two"), stop="two three")
    assert answer.choices[0].message.content == "one two"


def test_length(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model="default", messages=chat(say="abcdef"), **{name: 3})
        assert answer.choices[0].message.content == "abc"
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3


def test_default_length_is_the_rest_of_the_context(client: openai.OpenAI, server: Running) -> None:
    answer = client.chat.completions.create(model="default", messages=chat(forever=True))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 1024
    assert client.models.retrieve("default").model_dump()["max_model_len"] == 1024


def test_ignore_eos(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=chat(say="ab"), max_tokens=5, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].message.content == "ab"
    assert answer.choices[0].finish_reason == "length"


def test_seed_and_n(client: openai.OpenAI) -> None:
    def texts(seed: int | None, n: int = 3) -> list[str]:
        words = {"model": "default", "messages": [{"role": "user", "content": "x"}], "max_tokens": 20, "n": n}
        answer = client.chat.completions.create(**words, seed=seed)
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    first = texts(7)
    assert texts(7) == first
    assert len(set(first)) == 3
    assert texts(7, n=1) == first[:1]
    assert texts(-7) != first
    assert texts(None) != texts(None)  # drawn anew each time


def test_n_streams_every_choice(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "x"}], n=4, seed=1, max_tokens=30
    )
    texts = ["", "", "", ""]
    ends = []
    for chunk in client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "x"}], n=4, seed=1, max_tokens=30, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        if chunk.choices[0].finish_reason:
            ends.append(chunk.choices[0].index)
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(client: openai.OpenAI, stream: bool) -> None:
    words = {"model": "default", "messages": chat(say="né STOP"), "logprobs": True, "top_logprobs": 2}
    words["stop"] = "STOP"
    if stream:
        tokens = []
        for chunk in client.chat.completions.create(**words, stream=True):
            if chunk.choices[0].logprobs is not None:
                tokens += chunk.choices[0].logprobs.content
    else:
        tokens = client.chat.completions.create(**words).choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == "né "  # cut as the text is
    assert [token.token for token in tokens] == ["n", "bytes:\\xc3", "bytes:\\xa9", " "]
    assert [token.logprob for token in tokens] == [-0.25] * 4
    assert [other.logprob for other in tokens[0].top_logprobs] == [-0.25, -1.25]
    assert [other.token for other in tokens[0].top_logprobs] == ["n", "o"]


def test_logprobs_of_the_chosen_token_alone(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="default", messages=chat(say="a"), logprobs=True)
    assert answer.choices[0].logprobs.content[0].top_logprobs == []


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt=script(say=" went on"), max_tokens=100)
    assert answer.choices[0].text == " went on"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "text_completion"
    # Reasoning stays in the text here.
    answer = client.completions.create(model="default", prompt=script(say="<think>a</think>b"))
    assert answer.choices[0].text == "<think>a</think>b"


def test_completion_prompts_of_every_form(client: openai.OpenAI) -> None:
    one, two = script(say="one"), script(say="two")
    ids = [list(text.encode()) for text in (one, two)]
    for prompt in ([one, two], ids):
        answer = client.completions.create(model="default", prompt=prompt, n=2)
        assert [choice.text for choice in answer.choices] == ["one", "one", "two", "two"]
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage.completion_tokens == 16
        tokenized = sum(len(text.encode()) for text in (one, two))
        assert answer.usage.prompt_tokens == tokenized  # once per prompt, not per choice
    assert client.completions.create(model="default", prompt=ids[0]).choices[0].text == "one"


def test_a_prompts_answer_does_not_depend_on_its_neighbours(client: openai.OpenAI) -> None:
    words = {"model": "default", "seed": 5, "max_tokens": 20}
    alone = client.completions.create(prompt="bb", **words).choices[0].text
    both = client.completions.create(prompt=["aa", "bb"], **words).choices
    assert both[1].text == alone


@pytest.mark.parametrize("stream", [False, True])
def test_echo(client: openai.OpenAI, stream: bool) -> None:
    prompt = script(say="!")
    answer = client.completions.create(model="default", prompt=prompt, echo=True, stream=stream)
    text = "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text
    assert text == prompt + "!"
    ids = list(prompt.encode())
    assert client.completions.create(model="default", prompt=ids, echo=True).choices[0].text == prompt + "!"


def test_completion_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt=script(say="aé the"), logprobs=2)
    found = answer.choices[0].logprobs
    assert found.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", " ", "t", "h", "e"]
    assert found.token_logprobs == [-0.25] * 7
    assert found.text_offset == [0, 1, 1, 2, 3, 4, 5]
    assert found.top_logprobs[0] == {"a": -0.25, "b": -1.25}


def test_tokens_of_several_bytes(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt=script(pieces=["the", " x"]), logprobs=0)
    assert answer.choices[0].logprobs.tokens == ["the", " ", "x"]
    assert answer.choices[0].logprobs.text_offset == [0, 3, 4]
    assert answer.usage.completion_tokens == 4


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_tokenize(server: Running) -> None:
    answer = server.http.post("/tokenize", json={"prompt": "the é"}).json()
    assert answer == {"tokens": [257, 32, 0xC3, 0xA9], "count": 4, "max_model_len": 1024}
    assert server.http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "the é"}
    assert server.http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_long_prompts_are_tokenized_off_the_loop(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="default", prompt="word " * 200_000)
    assert caught.value.code == "context_length_exceeded"
    assert "1000000 tokens" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(server: Running, stream: bool) -> None:
    with server.client(timeout=0.5) as client:
        words = {"model": "default", "messages": chat(forever=True, delay=0.05)}
        if stream:
            answer = client.chat.completions.create(**words, stream=True)
            next(iter(answer))
            assert server.metric("deepseek_r1_requests_running") == 1
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(**words)
    wait_for(lambda: server.metric("deepseek_r1_requests_running") == 0, 1.0)
    assert server.metric("deepseek_r1_kv_blocks_used") == 0
