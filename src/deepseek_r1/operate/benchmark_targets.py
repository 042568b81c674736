"""What the benchmark can measure: a model in this process, or an OpenAI-compatible server."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.operate.benchmark import Sample

_MAX_LINE = 1 << 20


class LocalTarget:
    """A loaded `DeepSeekModel`. Prompts are token ids, so their length is exact."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        self._model = model
        self._max_tokens = max_tokens

    def prompt(self, words: Sequence[str], tokens: int) -> list[int]:
        """The first `tokens` ids of the words' encoding."""
        ids: list[int] = self._model.tokenizer.encode(" " + " ".join(words), add_special_tokens=False)
        return ids[:tokens]

    def run(self, prompt: list[int], sample: Sample) -> None:
        """Generate greedily, past any end-of-text token."""
        sample.prompt_tokens = len(prompt)
        stream = self._model.generate(
            prompt, max_tokens=self._max_tokens, temperature=0.0, ignore_eos=True, stream=True
        )
        for chunk in stream:
            if chunk.token_ids:
                sample.event()
                sample.output_tokens += len(chunk.token_ids)


class HttpTarget:
    """A server that streams `/v1/completions`. Prompts are text: their length in tokens is what the server reports."""

    def __init__(self, url: str, model: str, api_key: str | None, max_tokens: int, timeout: float) -> None:
        parts = urlsplit(url)
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host = parts.hostname or ""
        self._port = parts.port
        path = parts.path.rstrip("/")
        self._path = f"{path if path.endswith('/v1') else path + '/v1'}/completions"
        self._url = url
        self._model = model
        self._max_tokens = max_tokens
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def prompt(self, words: Sequence[str], tokens: int) -> str:
        """The first `tokens` words."""
        return " ".join(words[:tokens])

    def run(self, prompt: str, sample: Sample) -> None:
        """Stream one greedy completion. Raises `DeepSeekError` for a refusal or a stream that breaks off."""
        connection = self._connect(self._host, self._port, timeout=self._timeout)
        try:
            body = {
                "model": self._model,
                "prompt": prompt,
                "max_tokens": self._max_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                "ignore_eos": True,
            }
            connection.request("POST", self._path, json.dumps(body), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise DeepSeekError(f"{self._url}: {response.status} {_refusal(response.read(_MAX_LINE))}")
            usage = self._follow(response, sample)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeepSeekError(
                f"{self._url}: {error or type(error).__name__}", remedy="check that the server runs there"
            ) from None
        finally:
            connection.close()
        sample.prompt_tokens = int(usage.get("prompt_tokens", 0))
        sample.output_tokens = int(usage.get("completion_tokens", len(sample.events)))

    def _follow(self, response: http.client.HTTPResponse, sample: Sample) -> dict[str, Any]:
        """Note the stream's events; the usage it reports at the end, {} from servers that report none."""
        usage: dict[str, Any] = {}
        for event in _events(response):
            if "error" in event:
                raise DeepSeekError(f"{self._url}: {_message(event)}")
            usage = event.get("usage") or usage
            if any(choice.get("text") for choice in event.get("choices", ())):
                sample.event()
        return usage


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream that ends with [DONE]."""
    while line := response.readline(_MAX_LINE):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("the stream holds something else than JSON objects")
        yield event
    raise ValueError("the stream broke off before its end")


def _refusal(body: bytes) -> str:
    try:
        return _message(json.loads(body))
    except ValueError:
        return body[:200].decode("utf-8", "replace").strip()


def _message(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error) if isinstance(error, dict) else error)
