"""A request inside the engine: its tokens, its blocks, and everything that decides its next token or its end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Items

from deepseek_r1.engine.block_pool import block_hash
from deepseek_r1.engine.drafts import Lookup
from deepseek_r1.engine.request import FinishReason, GenerateRequest, TokenLogprobs, TokenOutput
from deepseek_r1.models.text.detokenizer import StopMatcher
from deepseek_r1.models.text.think import ThinkCounter


class Sequence:
    """One choice of one request.

    `tokens` are prompt and output; the keys and values of the first `computed` of them stand in `blocks`, rings and
    states in `slot` (-1 while it waits). `drafts` are guesses of the tokens to come. What was emitted before a resume
    is replayed through the same rules, so a resumed request is in the state it would be in.
    """

    def __init__(
        self,
        request: GenerateRequest,
        token_bytes: Items[bytes],
        eos: frozenset[int],
        cache_key: bytes,
        block_size: int,
    ) -> None:
        self.id = request.request_id
        self.sampling = request.sampling
        self.choice_index = request.choice_index
        self.adapter = request.adapter
        self.prompt_length = len(request.prompt_ids)
        self.tokens = list(request.prompt_ids)
        self.blocks: list[int] = []
        self.slot = -1
        self.drafts: tuple[int, ...] = ()
        self._lookup: Lookup | None = None
        self.computed = 0
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.submitted_at = time.monotonic()
        self.queue_seconds: float | None = None
        self._token_bytes = token_bytes
        self._ends = frozenset(self.sampling.stop_token_ids) | (frozenset() if self.sampling.ignore_eos else eos)
        self._block_size = block_size
        self._hashes: list[bytes] = [cache_key]
        self._stop = StopMatcher(self.sampling.stop) if self.sampling.stop else None
        self._forced: deque[int] = deque()
        self._thinking: ThinkCounter | None = None
        if self.sampling.max_thinking_tokens is not None:
            think = self.sampling.think
            self._thinking = ThinkCounter(think.open, think.close, starts_open=think.starts_open)
            self._check_thinking_budget()
        for token in request.output_ids:
            self._advance(token)

    @property
    def output_ids(self) -> list[int]:
        """Tokens generated so far."""
        return self.tokens[self.prompt_length :]

    @property
    def forced_token(self) -> int | None:
        """The token that has to come next whatever the model says, or None."""
        return self._forced[0] if self._forced else None

    @property
    def room_for_drafts(self) -> int:
        """How many tokens may still come after the next one."""
        return 0 if self.finish_reason else self.sampling.max_tokens - len(self.output_ids) - 1

    def look_up_drafts(self) -> None:
        """Guess the tokens to come from what followed the last ones earlier in prompt or output."""
        self.drafts = ()
        if self.computed < len(self.tokens) - 1 or self._forced or self.room_for_drafts < 1:
            return
        if self._lookup is None:  # not before the first token: requests that wait need no index
            self._lookup = Lookup(self.tokens, self.prompt_length)
        self.drafts = self._lookup.guess(self.room_for_drafts)

    def hashes(self, count: int) -> list[bytes]:
        """Chained hashes of the first `count` full blocks."""
        while len(self._hashes) <= count:
            done = (len(self._hashes) - 1) * self._block_size
            self._hashes.append(block_hash(self._hashes[-1], self.tokens[done : done + self._block_size]))
        return self._hashes[1 : count + 1]

    def append(self, token: int, logprobs: TokenLogprobs | None) -> TokenOutput:
        """Take the step's token: extend, decide whether this is the end, and say what to report."""
        self._advance(token)
        output = TokenOutput(
            self.id, [token], [] if logprobs is None else [logprobs], self.finish_reason, self.cached_tokens
        )
        output.queue_seconds = self.queue_seconds or 0.0
        return output

    def _advance(self, token: int) -> None:
        self.tokens.append(token)
        text = self._token_bytes[token] if token < len(self._token_bytes) else b""
        if self._forced:
            self._forced.popleft()
        if self._thinking is not None:
            self._thinking.push(text)
            self._check_thinking_budget()
        if token in self._ends or (self._stop is not None and self._stop.push(text)[1]):
            self.finish_reason = "stop"
        elif len(self.tokens) - self.prompt_length >= self.sampling.max_tokens:
            self.finish_reason = "length"

    def _check_thinking_budget(self) -> None:
        budget = self.sampling.max_thinking_tokens
        if self._thinking is None or budget is None or self._forced or not self._thinking.in_reasoning:
            return
        if self._thinking.reasoning_tokens >= budget:
            self._forced.extend(self.sampling.think.close_ids)
