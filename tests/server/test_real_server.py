"""The official client against the real server: command line, SmolLM2, engine process. Nothing here is scripted."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from real_server import embedded, refuse_to_start, start_real, with_chat_template
from server_process import Running, wait_for

from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.models.text.tokenizer import Tokenizer

FRANCE = [{"role": "user", "content": "Name the capital of France."}]
STORY = [{"role": "user", "content": "Tell me a short story about a fox."}]
OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
PATIENCE = 240.0
"""Seconds a client waits: other tests may have the cores."""


def thinking_examples(question: str) -> list[dict[str, str]]:
    """A conversation in which the assistant always thinks first; SmolLM2 goes on like that."""
    messages = []
    for a, b in ((2, 3), (4, 4), (1, 6)):
        said = f"<think>\nWe add {a} and {b}.\n</think>\n\nThe answer is {a + b}."
        messages += [{"role": "user", "content": f"What is {a}+{b}?"}, {"role": "assistant", "content": said}]
    return [*messages, {"role": "user", "content": question}]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The base alone: what is asked of the engine here, the base's answers show."""
    sizes = ("--memory", "1500MiB", "--max-concurrent", "8")
    running = start_real(tmp_path_factory.mktemp("r"), *sizes, "--adapter", "none")
    yield running
    running.close()


@pytest.fixture(scope="module")
def ask(real: Running) -> Iterator[openai.OpenAI]:
    with real.client(timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(embedded())


def stream_chat(client: openai.OpenAI, **words: Any) -> tuple[list[str], list[str], list[str | None], Any]:
    """Contents, reasonings and ends per choice of a streamed answer, and the usage."""
    count = words.get("n", 1)
    contents, reasonings, ends = [""] * count, [""] * count, [None] * count
    usage = None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(model="default", **words, **options):
        if not chunk.choices:
            usage = chunk.usage
            continue
        choice = chunk.choices[0]
        contents[choice.index] += choice.delta.content or ""
        reasonings[choice.index] += getattr(choice.delta, "reasoning_content", None) or ""
        if choice.finish_reason:
            assert ends[choice.index] is None
            ends[choice.index] = choice.finish_reason
    return contents, reasonings, ends, usage


def token_texts(answer: Any) -> tuple[list[str], list[str]]:
    """Reasoning tokens and content tokens of an answer, as its log-probabilities name them."""
    found = answer.choices[0].logprobs.model_dump()
    return [t["token"] for t in found["reasoning_content"]], [t["token"] for t in found["content"]]


def test_a_greedy_answer_is_right(ask: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = ask.chat.completions.create(model="default", messages=FRANCE, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "SmolLM2-135M-Instruct"
    prompt = tokenizer.apply_chat_template(FRANCE)
    assert answer.usage.prompt_tokens == len(tokenizer.encode(prompt, add_special_tokens=False))
    text = tokenizer.encode(answer.choices[0].message.content, add_special_tokens=False)
    assert answer.usage.completion_tokens == len(text) + 1  # and the end of the turn


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 11, "top_p": 0.9}])
def test_a_stream_equals_the_whole(ask: openai.OpenAI, sampling: dict[str, Any]) -> None:
    words = {"messages": STORY, "max_tokens": 40, **sampling}
    whole = ask.chat.completions.create(model="default", **words)
    contents, _, ends, usage = stream_chat(ask, **words)
    assert contents == [whole.choices[0].message.content]
    assert ends == [whole.choices[0].finish_reason] == ["length"]
    assert usage.completion_tokens == whole.usage.completion_tokens == 40
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    # The second one found the first one's prompt, all whole blocks of it that leave a token to compute.
    assert usage.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 16 * 16


def test_seeds_and_choices(ask: openai.OpenAI) -> None:
    def texts(seed: int, n: int) -> list[str]:
        words = {"model": "default", "messages": STORY, "max_tokens": 24, "temperature": 1.0}
        return [c.message.content for c in ask.chat.completions.create(**words, seed=seed, n=n).choices]

    three = texts(5, 3)
    assert len(set(three)) == 3
    assert texts(5, 3) == three
    assert texts(5, 1) == three[:1], "a choice does not depend on how many there are"
    assert texts(6, 1) != three[:1]
    contents, _, _, usage = stream_chat(ask, messages=STORY, max_tokens=24, temperature=1.0, seed=5, n=3)
    assert contents == three
    assert usage.completion_tokens == 72


def test_logprobs_are_those_of_the_model(ask: openai.OpenAI, tokenizer: Tokenizer) -> None:
    """What decoding reported is what a prefill over the same tokens reports: another path through the engine."""
    ids = tokenizer.encode("The three largest oceans are", add_special_tokens=False)
    words = {"model": "default", "temperature": 0.8, "seed": 3, "logprobs": 5}
    found = ask.completions.create(prompt=ids, max_tokens=12, **words).choices[0]
    chosen = tokenizer.encode(found.text, add_special_tokens=False)
    assert "".join(found.logprobs.tokens) == found.text
    assert found.logprobs.text_offset == [len("".join(found.logprobs.tokens[:i])) for i in range(12)]
    assert len(chosen) == 12
    for place, (token, logprob, top) in enumerate(
        zip(found.logprobs.tokens, found.logprobs.token_logprobs, found.logprobs.top_logprobs, strict=True)
    ):
        assert top[token] == logprob
        assert 5 <= len(top) <= 6 and sum(map(math.exp, top.values())) <= 1 + 1e-9
        assert list(top.values())[:5] == sorted(list(top.values())[:5], reverse=True)
        if place % 4 == 0:
            again = ask.completions.create(prompt=ids + chosen[:place], max_tokens=1, **words).choices[0]
            assert again.logprobs.tokens == [token], "the same seed and position give the same token"
            assert again.logprobs.token_logprobs[0] == pytest.approx(logprob, abs=1e-4)
            assert again.logprobs.top_logprobs[0] == pytest.approx(top, abs=1e-4)


def test_completion_prompts_of_every_form(ask: openai.OpenAI, tokenizer: Tokenizer) -> None:
    texts = ["The capital of France is", "1, 2, 3, 4, 5,"]
    ids = [tokenizer.encode(text) for text in texts]
    words = {"model": "default", "temperature": 0, "max_tokens": 8}
    alone = [ask.completions.create(prompt=text, **words).choices[0].text for text in texts]
    assert "Paris" in alone[0] and " 6, 7" in alone[1]
    for prompt in (texts, ids):
        answer = ask.completions.create(prompt=prompt, **words)
        assert [choice.text for choice in answer.choices] == alone
        assert answer.usage.prompt_tokens == sum(map(len, ids))
        assert answer.usage.completion_tokens == 16
    assert ask.completions.create(prompt=ids[1], **words).choices[0].text == alone[1]


def test_stop_strings(ask: openai.OpenAI) -> None:
    words = {"model": "default", "prompt": "1, 2, 3, 4, 5,", "temperature": 0, "max_tokens": 24}
    free = ask.completions.create(**words)
    assert " 8, 9" in free.choices[0].text
    cut = ask.completions.create(**words, stop=["8, 9", "never"])
    assert cut.choices[0].text == free.choices[0].text.partition("8, 9")[0]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < free.usage.completion_tokens
    streamed = ask.completions.create(**words, stop=["8, 9"], stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == cut.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_thinks_and_closes_by_itself(ask: openai.OpenAI, stream: bool) -> None:
    """The tags, which are three tokens each here, come out of SmolLM2 itself."""
    words = {"messages": thinking_examples("What is 3+5?"), "temperature": 0, "max_tokens": 60}
    if stream:
        (content,), (reasoning,), (end,), usage = stream_chat(ask, **words)
    else:
        answer = ask.chat.completions.create(model="default", **words)
        message, usage, end = answer.choices[0].message, answer.usage, answer.choices[0].finish_reason
        content, reasoning = message.content, message.reasoning_content
    assert reasoning == "We add 3 and 5.\n"
    assert content == "The answer is 8."
    assert end == "stop"
    # <, think, >, newline, We, add, space, 3, and, space, 5, ., newline, </, think, >
    assert usage.completion_tokens_details.reasoning_tokens == 16


@pytest.mark.parametrize("budget", [4, 7, 11])
def test_thinking_is_closed_at_the_exact_token(ask: openai.OpenAI, budget: int) -> None:
    words = {"model": "default", "messages": thinking_examples("What is 3+5?"), "temperature": 0, "logprobs": True}
    free = ask.chat.completions.create(max_tokens=16, **words)
    answer = ask.chat.completions.create(max_tokens=60, extra_body={"max_thinking_tokens": budget}, **words)
    reasoning, content = token_texts(answer)
    assert reasoning[:budget] == token_texts(free)[0][:budget], "up to there nothing is changed"
    assert reasoning[budget:] == ["</", "think", ">"]
    assert content[0] == "\n\n" and len(content) > 1
    assert answer.usage.completion_tokens_details.reasoning_tokens == budget + 3
    assert answer.choices[0].message.content == "".join(content[1:])
    thoughts = answer.choices[0].message.reasoning_content or ""
    assert thoughts == "".join(reasoning[3:budget]).lstrip("\n")
    contents, reasonings, _, _ = stream_chat(
        ask,
        messages=words["messages"],
        temperature=0,
        max_tokens=60,
        extra_body={"max_thinking_tokens": budget},
    )
    assert contents == [answer.choices[0].message.content]
    assert reasonings == [thoughts]


def test_a_template_that_opens_the_tag(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same weights with a template as R1's: the prompt ends inside the reasoning."""
    folder = tmp_path_factory.mktemp("t")
    model = with_chat_template(embedded(), folder / "thinker.gguf", OPENS)
    server = start_real(folder, str(model), "--memory", "1500MiB", "--max-concurrent", "2")
    try:
        with server.client(timeout=PATIENCE) as client:
            words = {"model": "thinker", "messages": STORY, "temperature": 0, "logprobs": True}
            answer = client.chat.completions.create(max_tokens=30, extra_body={"max_thinking_tokens": 9}, **words)
            reasoning, _ = token_texts(answer)
            assert len(reasoning) == 12 and reasoning[9:] == ["</", "think", ">"]
            assert answer.choices[0].message.reasoning_content == "".join(reasoning[:9]).lstrip("\n")
            assert answer.choices[0].message.content.strip()
            assert answer.usage.completion_tokens_details.reasoning_tokens == 12
            # Without a budget, a tag that never closes leaves all of it in the reasoning.
            never = client.chat.completions.create(max_tokens=9, **words)
            assert token_texts(never) == (reasoning[:9], [])
            assert never.choices[0].message.content == ""
            assert never.choices[0].message.reasoning_content == "".join(reasoning[:9]).lstrip("\n")
            # A budget of nothing closes at once, and the answer follows.
            at_once = client.chat.completions.create(max_tokens=12, extra_body={"max_thinking_tokens": 0}, **words)
            assert token_texts(at_once)[0] == ["</", "think", ">"]
            assert not at_once.choices[0].message.reasoning_content
            assert at_once.choices[0].message.content.strip()
    finally:
        server.close()


def test_a_client_that_leaves_frees_its_slot_and_blocks(real: Running, ask: openai.OpenAI) -> None:
    stream = ask.chat.completions.create(
        model="default", messages=STORY, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert real.metric("deepseek_r1_requests_running") == 1
    assert real.metric("deepseek_r1_kv_blocks_used") > 0
    stream.close()
    wait_for(lambda: real.metric("deepseek_r1_requests_running") == 0, 20)
    assert real.metric("deepseek_r1_kv_blocks_used") == 0


def test_errors_name_the_field(ask: openai.OpenAI) -> None:
    limit = ask.models.retrieve("default").model_dump()["max_model_len"]
    for words, param, code in (
        ({"prompt": [9] * 10, "max_tokens": limit}, "max_tokens", "context_length_exceeded"),
        ({"prompt": [9] * (limit + 1)}, "prompt", "context_length_exceeded"),
        ({"prompt": [49152]}, "prompt", "invalid_value"),
        ({"prompt": "x", "logit_bias": {"49152": 1}}, "logit_bias", "invalid_value"),
        ({"prompt": "x", "extra_body": {"tools": [{}]}}, "tools", "unsupported_parameter"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask.completions.create(model="default", **words)
        assert (caught.value.param, caught.value.code) == (param, code)


def test_the_second_start_is_quick(
    tmp_path: Path, real: Running, capsys: pytest.CaptureFixture[str], record_property: Any
) -> None:
    """The files are in the page cache by now. Wall time is the machine's; processor time is ours."""
    server = start_real(tmp_path, "--memory", "1500MiB", "--max-concurrent", "1")
    try:
        processes = [psutil.Process(server.process.pid), server.engine()]
        seconds = sum(p.cpu_times().user + p.cpu_times().system for p in processes)
        age = time.time() - processes[0].create_time()
    finally:
        server.close()
    record_property("ready_seconds", age)
    with capsys.disabled():
        print(f"\n  ready after {age:.1f} s ({seconds:.1f} s of processor time)")
    assert seconds < 10
    assert server.process.returncode == 0
    assert server.sockets() == []


def one_clear_line(stderr: str) -> tuple[str, str]:
    """The error and its remedy: nothing else may have been written."""
    assert "Traceback" not in stderr
    match = re.fullmatch(r"error: ([^\n]+)\n  mend: ([^\n]+)\n", stderr)
    assert match is not None, stderr
    return match[1], match[2]


def test_two_servers_on_one_port(tmp_path: Path, real: Running) -> None:
    port = real.url.rpartition(":")[2]
    code, stderr, seconds = refuse_to_start(tmp_path, "--port", port)
    assert code == 2
    error, remedy = one_clear_line(stderr)
    assert error == f"port {port} is in use on 127.0.0.1" and "--port" in remedy
    assert seconds < 30
    assert real.ready()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    code, stderr, _ = refuse_to_start(tmp_path, str(tmp_path / "no.gguf"), "--port", "0")
    error, remedy = one_clear_line(stderr)
    assert code == 1
    assert "no.gguf: no such file" in error and remedy


@pytest.mark.parametrize("size", [0, 20_000, 1_000_000, 40_000_000])
def test_a_truncated_file(tmp_path: Path, size: int) -> None:
    """The tokenizer's part, the header, or the tensors are cut: whichever process meets it, one line says so."""
    model = tmp_path / "cut.gguf"
    with embedded().open("rb") as source, model.open("wb") as target:
        target.write(source.read(size))
    code, stderr, _ = refuse_to_start(tmp_path, str(model), "--port", "0")
    error, remedy = one_clear_line(stderr)
    assert code == 1
    assert "cut.gguf" in error and remedy
    assert not list((tmp_path / "run").glob("deepseek-r1-*")), "no socket folder is left"


def test_memory_that_is_too_small(tmp_path: Path) -> None:
    code, stderr, _ = refuse_to_start(tmp_path, "--memory", "300MiB", "--port", "0")
    error, remedy = one_clear_line(stderr)
    assert code == 1
    found = re.search(r"needs at least (\d+)MiB in int4, and the budget is 300MiB", error)
    assert found is not None and f"--memory {found[1]}MiB" in remedy
    # The remedy is true: with what it names the server starts.
    shutil.rmtree(tmp_path / "run")
    server = start_real(tmp_path, "--memory", f"{int(found[1])}MiB")
    try:
        assert server.ready()
    finally:
        server.close()
