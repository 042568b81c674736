"""What goes into the engine and what comes out of it: plain data, the same in process and across the process border."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled"]


class ThinkFormat(msgspec.Struct, frozen=True):
    """How the model marks its reasoning, and how the engine ends it when the budget is spent.

    `close_ids` are the tokens inserted when `SamplingParams.max_thinking_tokens` is reached (usually the tokens of
    "</think>" and a blank line). `starts_open` says that the prompt ends inside the reasoning already.
    """

    open: bytes = b"<think>"
    close: bytes = b"</think>"
    close_ids: tuple[int, ...] = ()
    starts_open: bool = False


class SamplingParams(msgspec.Struct, frozen=True):
    """How tokens are chosen, and when to stop. The ranges are checked at the edge (`serve`, `DeepSeekModel`).

    `temperature=0` is greedy. `top_k=0`, `top_p=1`, `min_p=0` switch those filters off. `logprobs` is None for none,
    else how many alternatives to report beside the chosen token (0 reports the chosen one alone); the values are those
    of the raw distribution. The random number of a token is a function of (`seed`, choice index, absolute position).
    """

    max_tokens: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    stop: tuple[bytes, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_thinking_tokens: int | None = None
    think: ThinkFormat = ThinkFormat()

    @property
    def uses_penalties(self) -> bool:
        """Whether a token's chance depends on the tokens before it."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


class GenerateRequest(msgspec.Struct, tag="generate"):
    """One choice of one request. `output_ids` are tokens emitted earlier (a resume continues after them).

    `adapter` names one that the engine has loaded; None asks the model without any.
    """

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    choice_index: int = 0
    output_ids: list[int] = []
    adapter: str | None = None


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Raw log-probability of one chosen token, and of the `top` most likely ones, most likely first."""

    logprob: float
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class TokenOutput(msgspec.Struct, array_like=True):
    """What one step added to one request. `logprobs` has one entry per token when asked for, else it is empty.

    `cached_tokens` counts prompt tokens taken from the prefix cache; `queue_seconds` is the time from submission to
    the first step that worked on the request (both are set on the first output).
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    queue_seconds: float = 0.0

    def extend(self, later: TokenOutput) -> None:
        """Add what the same step gave the same request after this."""
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.finish_reason = later.finish_reason


class ExpertLoad(msgspec.Struct, array_like=True, frozen=True):
    """How evenly a layer's experts were used since the engine's start.

    `utilisation` is the normalised entropy of their loads (1: even, 0: one expert has everything), `busiest` the
    largest load as a multiple of the mean.
    """

    layer: int
    utilisation: float
    busiest: float


class EngineStats(msgspec.Struct, frozen=True):
    """The state of the engine after a step, for metrics. Counters grow from the engine's start."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_cached: int = 0
    kv_blocks_total: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    last_batch: int = 0
    max_batch: int = 0
