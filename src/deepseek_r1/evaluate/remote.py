"""An OpenAI-compatible server as the one that is asked, over its chat completions."""

from __future__ import annotations

import http.client
import json
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from deepseek_r1.core.errors import DeepSeekError
from deepseek_r1.evaluate.targets import Ask, Reply

MAX_BODY_BYTES = 16 << 20
TRIES = 6
LONGEST_WAIT = 60.0
"""Seconds between two tries of a request that the server has no room for."""

Answered = tuple[int, Reply | Exception]


class UrlTarget:
    """A server. `concurrency` requests are in flight; one that it has no room for (429, 503) is tried again."""

    def __init__(
        self, url: str, model: str, *, api_key: str | None = None, concurrency: int = 16, timeout: float = 600.0
    ) -> None:
        parts = urlsplit(url)
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname or "", parts.port
        path = parts.path.rstrip("/")
        self._path = f"{path if path.endswith('/v1') else path + '/v1'}/chat/completions"
        self._url, self._model = url, model
        self._concurrency, self._timeout = concurrency, timeout
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    @property
    def identity(self) -> Mapping[str, Any]:
        """The address and the model's name there; nobody can tell whether other weights stand behind them."""
        return {"url": self._url, "model": self._model}

    def answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """See `Target.answers`. Raises `DeepSeekError` for a refusal, or a server that can't be reached."""
        waiting: queue.SimpleQueue[tuple[int, Ask]] = queue.SimpleQueue()
        finished: queue.SimpleQueue[Answered] = queue.SimpleQueue()
        stopped = threading.Event()
        for pair in enumerate(asks):
            waiting.put(pair)

        def work() -> None:
            while not stopped.is_set():
                try:
                    place, ask = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    finished.put((place, self._ask(ask, stopped)))
                except Exception as error:  # a dead thread would leave the run waiting for ever
                    finished.put((place, error))

        for _ in range(min(self._concurrency, len(asks))):
            threading.Thread(target=work, daemon=True).start()  # daemon: Ctrl-C need not wait for answers
        try:
            for _ in asks:
                place, reply = finished.get()
                if isinstance(reply, Exception):
                    raise reply
                yield place, reply
        finally:
            stopped.set()

    def _ask(self, ask: Ask, stopped: threading.Event) -> Reply:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": ask.prompt}],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": 1.0,
            "seed": ask.seed,
        }
        for attempt in range(TRIES):
            status, after, data = self._post(json.dumps(body))
            if status not in (429, 503) or attempt == TRIES - 1:
                break
            if stopped.wait(min(_seconds(after, 2.0**attempt), LONGEST_WAIT)):
                break
        if status != 200:
            raise DeepSeekError(f"{self._url}: {ask.name}: {status} {_refusal(data)}")
        try:
            return _reply(json.loads(data))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise DeepSeekError(
                f"{self._url}: {ask.name}: the answer is no chat completion", remedy="give an OpenAI-compatible server"
            ) from None

    def _post(self, body: str) -> tuple[int, str | None, bytes]:
        """The status, the header Retry-After and the body."""
        connection = self._connect(self._host, self._port, timeout=self._timeout)
        try:
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            data = response.read(MAX_BODY_BYTES + 1)
            if len(data) > MAX_BODY_BYTES:
                raise ValueError(f"an answer of more than {MAX_BODY_BYTES >> 20} MiB")
            return response.status, response.headers.get("Retry-After"), data
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeepSeekError(
                f"{self._url}: {error or type(error).__name__}", remedy="check that the server runs there"
            ) from None
        finally:
            connection.close()


def _reply(answer: Any) -> Reply:
    choice = answer["choices"][0]
    message = choice["message"]
    text = message.get("content") or ""
    if reasoning := message.get("reasoning_content") or message.get("reasoning"):  # vLLM's newer name
        # Thinking that was cut off is followed by no answer.
        thinking = "<think>\n" + reasoning.strip("\n")
        text = f"{thinking}\n</think>\n{text}" if text else thinking
    if not isinstance(text, str):
        raise TypeError("content is no text")
    tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
    return Reply(text.encode("utf-8", "replace").decode(), tokens, choice.get("finish_reason") == "length")


def _seconds(header: str | None, otherwise: float) -> float:
    return float(header) if header is not None and header.isdecimal() else otherwise


def _refusal(data: bytes) -> str:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return data[:200].decode("utf-8", "replace").strip()
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
