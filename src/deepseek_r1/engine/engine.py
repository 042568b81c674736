"""The engine: requests in, tokens out, one step at a time. Token ids only; text stays at the edge."""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Sequence as Items

from deepseek_r1.config.speculation import Speculation
from deepseek_r1.core.errors import RequestError
from deepseek_r1.engine.block_pool import BlockPool
from deepseek_r1.engine.memory import MAX_STEP_TOKENS, SAMPLED_ROWS
from deepseek_r1.engine.paged import KVCache
from deepseek_r1.engine.populate import Populate
from deepseek_r1.engine.request import EngineStats, ExpertLoad, GenerateRequest, TokenOutput
from deepseek_r1.engine.runner import Computed, Runner
from deepseek_r1.engine.scheduler import Scheduler
from deepseek_r1.engine.sequence import Sequence
from deepseek_r1.kernels import ops
from deepseek_r1.layers.balance import utilisation
from deepseek_r1.models.decoder import Decoder

COUNTED = ("prompt_tokens", "prefix_hit_tokens", "generated_tokens", "draft_tokens", "accepted_tokens", "steps")
"""What the engine counts from its start: fields of `EngineStats`."""


class Engine:
    """Continuous batching over one decoder, a pool of KV blocks and a slot per running request.

    Not thread-safe: one thread submits and steps.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_blocks: int,
        block_size: int = 16,
        max_concurrent: int = 32,
        max_step_tokens: int = MAX_STEP_TOKENS,
        max_length: int | None = None,
        weights_version: str = "0",
        weights_bytes: int = 0,
        speculative: Speculation = "off",
    ) -> None:
        self.max_model_len = min(decoder.config.max_position, num_blocks * block_size)
        if max_length is not None:
            self.max_model_len = min(self.max_model_len, max_length)
        cache = KVCache(decoder.layouts, num_blocks, block_size, slots=max_concurrent, max_length=self.max_model_len)
        # A slot holds the state at its sequence's end. What it was at the end of a shared prefix is gone, and a request
        # that took over the prefix's blocks would have no state to go on from.
        self.scheduler = Scheduler(
            BlockPool(num_blocks, block_size),
            max_concurrent,
            max_step_tokens,
            # A prediction module guesses for every sequence: what it costs is spent by then.
            sampled_rows=2 * max_concurrent if speculative == "mtp" else SAMPLED_ROWS,
            share_prefixes=not cache.has_slot_state,
        )
        self.runner = Runner(decoder, cache, speculative, self.scheduler.budgets)
        shared = [pool for pool in cache.pools.values() if pool.shape[:2] == (num_blocks, block_size)]
        self._populate = Populate(shared)
        self._populate.reach(0)
        self.block_size = block_size
        self.kv_blocks = num_blocks
        self.kv_bytes = cache.nbytes
        self.weights_bytes = weights_bytes
        self.vocab_size = decoder.config.vocab_size
        self.precision = decoder.precision.name
        self.path = ops.PATH
        identity = (weights_version, self.precision, str(ops.LAYOUT_VERSION), self.path)
        self._identity = "|".join(identity)
        self._versions: dict[str | None, int] = {None: 0}  # of the model and of its adapters, for cached prefixes
        self._sequences: dict[str, Sequence] = {}
        self._token_bytes: Items[bytes] = ()
        self._eos: frozenset[int] = frozenset()
        self._counts = dict.fromkeys(COUNTED, 0)
        self._step_seconds = 0.0
        self._last_batch = 0

    def set_vocabulary(self, token_bytes: Items[bytes], eos_token_ids: Iterable[int]) -> None:
        """The table token id -> bytes (b"" for special tokens), and the tokens that end an answer."""
        self._token_bytes = token_bytes
        self._eos = frozenset(eos_token_ids)

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that requests may ask for."""
        return [name for name in self._versions if name is not None]

    def use_adapter(self, name: str) -> None:
        """Let requests ask for an adapter that surgery has put into the decoder.

        To be called again whenever its factors have changed: what was computed with the older ones is not reused.
        """
        known = name in self._versions
        self._versions[name] = self._versions.get(name, 0) + 1
        if not known:
            self.runner.forget_recordings()

    def weights_changed(self) -> None:
        """Don't reuse what was computed with the weights as they were. No request is running."""
        if self._sequences:
            raise RuntimeError("weights may not change under requests that are running")
        for name in self._versions:
            self._versions[name] += 1

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises `RequestError` when it can never be served: empty, too long, or unknown tokens."""
        prompt, params = request.prompt_ids, request.sampling
        if not prompt:
            raise RequestError("the prompt has no tokens", param="prompt", remedy="send at least one token")
        if params.max_tokens < 1:
            raise RequestError("max_tokens must be at least 1", param="max_tokens")
        used = [*prompt, *request.output_ids, *params.logit_bias, *params.think.close_ids]
        if min(used) < 0 or max(used) >= self.vocab_size:
            raise RequestError(
                f"a token id is outside the vocabulary (0 to {self.vocab_size - 1})",
                param="prompt",
                code="invalid_token",
            )
        if len(prompt) + params.max_tokens > self.max_model_len:
            raise RequestError(
                f"this model's context holds {self.max_model_len} tokens here; the request asks for "
                f"{len(prompt) + params.max_tokens} ({len(prompt)} in the prompt, {params.max_tokens} to generate)",
                param="prompt",
                code="context_length_exceeded",
                remedy="shorten the prompt, lower max_tokens, or give the server more --memory",
            )
        if request.request_id in self._sequences:
            raise RequestError(f"request id {request.request_id!r} is in use", param="request_id")
        if request.adapter not in self._versions:
            there = ", ".join(self.adapters) or "none"
            raise RequestError(
                f"there is no adapter {request.adapter!r}", param="model", remedy=f"adapters that are loaded: {there}"
            )
        versions = f"{self._versions[None]}|{request.adapter or ''}|{self._versions[request.adapter]}"
        cache_key = f"{self._identity}|{versions}".encode()
        sequence = Sequence(request, self._token_bytes, self._eos, cache_key, self.block_size)
        if sequence.finish_reason is not None:
            raise RequestError("the request to resume is finished already", param="output_ids")
        self._sequences[sequence.id] = sequence
        self.scheduler.waiting.append(sequence)

    def cancel(self, request_ids: Iterable[str]) -> None:
        """Drop these requests; their slots and blocks are free for the next step. Unknown ids are ignored."""
        for request_id in request_ids:
            sequence = self._sequences.pop(request_id, None)
            if sequence is not None:
                self.scheduler.finish(sequence)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    def step(self) -> list[TokenOutput]:
        """Schedule, run, take in the results: a new token per request that is ready, more where guesses were right."""
        started = time.perf_counter()
        work = self.scheduler.schedule()
        if not work:
            return []
        self._populate.reach(self.scheduler.pool.reached)
        done = self.runner.run(work)
        outputs = self._take_in(done, self.runner.sample(done))
        self._counts["steps"] += 1
        self._step_seconds += time.perf_counter() - started
        return outputs

    def _take_in(self, done: Computed, outputs: list[TokenOutput]) -> list[TokenOutput]:
        for item in done.work:
            if item.start < item.sequence.prompt_length:
                self._counts["prompt_tokens"] += min(item.count, item.sequence.prompt_length - item.start)
            self._counts["draft_tokens"] += len(item.drafts)
            self.scheduler.computed(item)
        self.runner.draft(done)
        for output in outputs:
            sequence = self._sequences[output.request_id]
            if len(sequence.tokens) - len(output.token_ids) == sequence.prompt_length:
                self._counts["prefix_hit_tokens"] += sequence.cached_tokens
            self._counts["generated_tokens"] += len(output.token_ids)
            self._counts["accepted_tokens"] += len(output.token_ids) - 1
            if sequence.finish_reason is not None:
                self.scheduler.finish(sequence)
                del self._sequences[sequence.id]
        self._last_batch = len(done.work)
        return outputs

    @property
    def expert_load(self) -> list[ExpertLoad]:
        """How evenly each layer with experts has used them; empty before the first token, and without experts."""
        loads = []
        for layer, counts in self.runner.decoder.expert_tokens().items():
            if total := int(counts.sum()):
                busiest = int(counts.max()) * len(counts) / total
                loads.append(ExpertLoad(layer, utilisation(counts), busiest))
        return loads

    @property
    def stats(self) -> EngineStats:
        """The engine's state now; counters grow from its start."""
        pool = self.scheduler.pool
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_blocks_used=pool.used,
            kv_blocks_cached=pool.cached,
            kv_blocks_total=pool.num_blocks,
            preemptions=self.scheduler.preemptions,
            step_seconds=self._step_seconds,
            last_batch=self._last_batch,
            max_batch=self.scheduler.max_concurrent,
            **self._counts,
        )
