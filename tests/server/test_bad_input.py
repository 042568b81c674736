"""Whatever is wrong with a request is answered with OpenAI's error object, never with a 5xx or a traceback."""

from __future__ import annotations

import http.client
import json
from typing import Any

import openai
import pytest
from server_process import Running, script

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def check_error(status: int, body: dict[str, Any]) -> dict[str, Any]:
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert "Traceback" not in error["message"]
    if status < 500:
        assert error["code"]
    return error


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"12",
    b"\xff\xfe{}",
    b'{"messages": [{"role": "user", "content": "a\x00b"}]}',
    b'{"messages": [{"role": "user", "content": "\xc3("}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": Infinity}',
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
    b'{"messages": [{"role": "user", "content": "hi"}], "top_p": ' + b"9" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "hi"}], "logit_bias": {"\\ud800": 1}}',
    b'{"messages": [{"role": "user", "content": "hi"}], "model": "\\ud800"}',
    b'{"messages": [{"role": "user", "content": "hi"}], "stop": "\\udfff"}',
    b'{"a": ' * 50_000,
    b"[" * 100_000,
    b'{"messages": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("case", range(len(MALFORMED)))
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize"])
def test_malformed_bodies(server: Running, path: str, case: int) -> None:
    answer = server.http.post(path, content=MALFORMED[case], headers={"Content-Type": "application/json"})
    check_error(answer.status_code, answer.json())
    assert answer.status_code == 400


FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_value"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role", "unsupported_parameter"),
    ({"messages": [*HI, {"role": "user"}]}, "messages[1].content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
        "messages[0].content[1].type",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
        "messages[0].content[0].type",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]},
        "messages[0].tool_calls",
        "unsupported_parameter",
    ),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 10**400}, "top_p", "invalid_value"),
    ({"seed": 10**400}, "seed", "invalid_value"),
    ({"top_p": 1.1}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 1.5}, "min_p", "invalid_value"),
    ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -2.5}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
    ({"max_thinking_tokens": -1}, "max_thinking_tokens", "invalid_value"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"stop": [""]}, "stop[0]", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_value"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five.[key]", "invalid_value"),
    ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": 3}, "logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "auto"}, "tool_choice", "unsupported_parameter"),
    ({"functions": [{}]}, "functions", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"response_format": 5}, "response_format", "unsupported_parameter"),
    ({"audio": {}}, "audio", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
    ({"max_completion_tokens": 5000}, "max_completion_tokens", "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "long " * 1000}]}, "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize("case", range(len(FIELDS)))
def test_fields_out_of_range_are_named(client: openai.OpenAI, server: Running, case: int) -> None:
    words, param, code = FIELDS[case]
    answer = server.http.post(CHAT, json={"messages": HI, **words})
    assert answer.status_code == 400
    error = check_error(400, answer.json())
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


COMPLETION_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "missing_required_parameter"),
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
    ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
    ({"prompt": ["a", 5]}, "prompt[1]", "invalid_value"),
    ({"prompt": [5, "a"]}, "prompt[1]", "invalid_value"),
    ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
    ({"prompt": [99999]}, "prompt", "invalid_value"),
    ({"prompt": [[1], [2, 99999]]}, "prompt[1]", "invalid_value"),
    ({"prompt": {"a": 1}}, "prompt", "invalid_value"),
    ({"prompt": "a", "best_of": 2}, "best_of", "unsupported_parameter"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_parameter"),
    ({"prompt": "a", "echo": True, "logprobs": 0}, "echo", "unsupported_parameter"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "invalid_value"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "invalid_value"),
    ({"prompt": ["a"] * 100, "n": 2}, "n", "invalid_value"),
    ({"prompt": script(refuse="request")}, "prompt", "context_length_exceeded"),
    ({"prompt": script(refuse="request"), "stream": True}, "prompt", "context_length_exceeded"),
]


@pytest.mark.parametrize("case", range(len(COMPLETION_FIELDS)))
def test_completion_fields(server: Running, case: int) -> None:
    words, param, code = COMPLETION_FIELDS[case]
    answer = server.http.post("/v1/completions", json=words)
    assert answer.status_code == 400
    error = check_error(400, answer.json())
    assert (error["param"], error["code"]) == (param, code)


def test_numbers_are_named_when_the_context_is_too_short(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="default", prompt="x" * 1000, max_tokens=100)
    assert caught.value.code == "context_length_exceeded"
    for number in ("1000", "100", "1024", "24"):
        assert number in caught.value.message


def test_harmless_and_unknown_fields(server: Running) -> None:
    words = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "best_of": None,
        "frobnicate": "secret words",
        "temperature": None,
        "stop": None,
        "logit_bias": {"120": -100, "121": 5.5},
        "n": None,
    }
    answer = server.http.post(CHAT, json={"messages": HI, "max_tokens": 2, **words})
    assert answer.status_code == 200
    log = server.log.read_text()
    lines = [line for line in log.splitlines() if "frobnicate" in line]
    assert len(lines) == 1
    assert "metadata" not in lines[0]
    assert "secret words" not in log


def test_prompts_are_not_logged(server: Running) -> None:
    server.http.post(CHAT, json={"messages": [{"role": "user", "content": "my-private-words"}], "max_tokens": 2})
    server.http.post(CHAT, json={"messages": [{"role": "user", "content": ["my-private-words"]}]})
    assert "my-private-words" not in server.log.read_text()


def test_models_that_are_not_served(client: openai.OpenAI) -> None:
    for create in (
        lambda: client.chat.completions.create(model="gpt-4", messages=HI),
        lambda: client.completions.create(model="gpt-4", prompt="a"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            create()
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"


def test_routes_and_methods(server: Running) -> None:
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page/%2e%2e/app.py", 404),
        ("GET", "/page/%00", 404),
        ("GET", "/v1/models/%00%ff", 404),
    ]:
        answer = server.http.request(method, path)
        assert answer.status_code == status, path
        check_error(status, answer.json())
        assert "access-control-allow-origin" not in answer.headers


def test_content_type(server: Running) -> None:
    body = json.dumps({"messages": HI})
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {} if kind is None else {"Content-Type": kind}
        answer = server.http.post(CHAT, content=body, headers=headers)
        assert answer.status_code == 400  # a page of another site can send these without asking first
        assert "Content-Type" in answer.json()["error"]["message"]


def test_bodies_that_are_too_large(server: Running) -> None:
    large = b'{"messages": "' + b"a" * (8 << 20) + b'"}'
    headers = {"Content-Type": "application/json"}
    declared = server.http.post(CHAT, content=large, headers=headers)
    assert declared.status_code == 413
    assert check_error(413, declared.json())["code"] == "request_too_large"

    def pieces() -> Any:
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    chunked = server.http.post(CHAT, content=pieces(), headers=headers)
    assert chunked.status_code == 413
    check_error(413, chunked.json())


def test_foreign_hosts_are_refused(server: Running) -> None:
    port = server.url.rpartition(":")[2]
    for host, status in [
        ("evil.example", 403),
        (f"evil.example:{port}", 403),
        ("testserver", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
        (f"localhost:{port}", 200),
        ("[::1]:1", 200),
        ("127.0.0.1", 200),
        ("LOCALHOST", 200),
        ("", 403),
    ]:
        answer = server.http.get("/health", headers={"Host": host})
        assert answer.status_code == status, host
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.endheaders()
    assert connection.getresponse().status in (400, 403)
    connection.close()


def test_the_page_and_its_policy(server: Running) -> None:
    page = server.http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for answer in (page, server.http.get("/page/app.js")):
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
