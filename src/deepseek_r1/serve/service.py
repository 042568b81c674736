"""What the routes share: the served model's name, its tokenizer once it is read, the bridge to the engine, metrics."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastapi import Request

from deepseek_r1.config.adapters import BASE
from deepseek_r1.core.errors import EngineDiedError
from deepseek_r1.models.text.tokenizer import Tokenizer
from deepseek_r1.operate.metrics import ServerMetrics
from deepseek_r1.serve.bridge import Bridge
from deepseek_r1.serve.errors import ApiError
from deepseek_r1.serve.messages import Hello
from deepseek_r1.serve.output_text import Vocabulary

P = ParamSpec("P")
T = TypeVar("T")

MOST_NAMED = 10
"""Models that an error names at most."""

LONG_TEXT = 4096
"""Characters above which text is handled off the event loop: streams must not stall behind one long prompt."""


class Service:
    """The state behind the routes of one app.

    `adapters` are the folders of the low-rank adapters by name; `default_adapter` answers who names no model.
    """

    def __init__(
        self,
        model_id: str,
        bridge: Bridge,
        metrics: ServerMetrics,
        *,
        stream_interval: float,
        adapters: Mapping[str, str] = {},
        default_adapter: str | None = None,
    ) -> None:
        self.model_id = model_id
        self.default_adapter = default_adapter
        self._folders = dict(adapters)
        self.bridge = bridge
        self.metrics = metrics
        self.stream_interval = stream_interval
        self.created = int(time.time())
        self.close_ids: tuple[int, ...] = ()
        self._tokenizer: Tokenizer | None = None
        self._vocabulary: Vocabulary | None = None
        # One thread: prompts of many megabytes queue up here instead of taking the cores from the engine.
        self._text_pool = ThreadPoolExecutor(1, thread_name_prefix="text")

    def set_tokenizer(self, tokenizer: Tokenizer) -> Hello:
        """Take the tokenizer; the message that gives the engine its table."""
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer.token_bytes, tokenizer.id_to_token)
        self.close_ids = tuple(tokenizer.encode("</think>\n\n", add_special_tokens=False))
        return Hello(list(tokenizer.token_bytes), tuple(tokenizer.eos_token_ids))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises `EngineDiedError` (503) until it is read."""
        if self._tokenizer is None:
            raise EngineDiedError("the model is being loaded", remedy="try again shortly")
        return self._tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """The table token id -> bytes. Raises as `tokenizer` does."""
        if self._vocabulary is None:
            raise EngineDiedError("the model is being loaded", remedy="try again shortly")
        return self._vocabulary

    @property
    def models(self) -> list[str]:
        """The ids of the model and of its adapters, the one that `default` means first."""
        first = self.default_adapter or self.model_id
        return [first, *(name for name in (self.model_id, *self._folders) if name != first)]

    def root_of(self, adapter: str) -> str:
        """The name of an adapter's folder."""
        return Path(self._folders[adapter]).absolute().name

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that a request for the model `name` asks for. Raises the 404 of a model that isn't served."""
        if name in (None, BASE):
            return self.default_adapter
        if name == self.model_id:
            return None
        if name in self._folders:
            return name
        *others, last = map(repr, [BASE, *self.models[:MOST_NAMED]])
        raise ApiError(
            404,
            f"the model {name[:200]!r} is not served here; use {', '.join(others)} or {last}",
            code="model_not_found",
            param="model",
        )

    async def with_text(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` on a text of `size` characters: here when short, else off the event loop."""
        if size <= LONG_TEXT:
            return work(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._text_pool, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Let the text thread end."""
        self._text_pool.shutdown(wait=False, cancel_futures=True)


def service_of(request: Request) -> Service:
    """The service behind a request's app."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def new_id(prefix: str) -> str:
    """An unguessable id such as "chatcmpl-…"."""
    return f"{prefix}-{secrets.token_hex(12)}"
