"""An engine that follows a script in the prompt, run behind the real process border by the real loop.

The last `@{...}@` in the prompt's text is a JSON object:
  say        text to emit, one token per piece (pieces: a list of strings or of byte lists)
  name       emit the name of the request's adapter, or "none"
  forever    emit "x" until max_tokens
  delay      seconds per step
  crash      die by SIGKILL at this many tokens
  raise      raise inside a step at this many tokens
  refuse     "request" or "capacity"
Without a script the tokens are letters drawn from (seed, choice index, position).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time

from deepseek_r1.core.errors import CapacityError, CheckpointError, RequestError
from deepseek_r1.engine.request import EngineStats, ExpertLoad, GenerateRequest, TokenLogprobs, TokenOutput
from deepseek_r1.models.text.detokenizer import StopMatcher
from deepseek_r1.models.text.think import ThinkCounter
from deepseek_r1.serve.engine_process import main
from deepseek_r1.serve.messages import EngineSettings

CONTEXT = 1024
BLOCK = 16


class Running:
    """One choice on its way."""

    def __init__(self, request: GenerateRequest, script: dict, token_bytes: list[bytes], eos: int) -> None:
        self.request = request
        self.script = script
        self.token_bytes = token_bytes
        self.eos = eos
        self.arrived = time.monotonic()
        self.first = True
        self.emitted: list[int] = []
        self.matcher = StopMatcher(request.sampling.stop)
        think = request.sampling.think
        self.counter = ThinkCounter(think.open, think.close, think.starts_open)
        self.forced: list[int] = []
        self.planned: list[int] | None = None
        if script.get("name"):
            self.planned = list((request.adapter or "none").encode())
        if "say" in script or "pieces" in script:
            pieces = script.get("pieces") or [script["say"]]
            data = [bytes(piece) if isinstance(piece, list) else piece.encode() for piece in pieces]
            # A piece that is one token stays one; any other is spelled in bytes, whose ids are the bytes themselves.
            self.planned = [
                i for piece in data for i in ([token_bytes.index(piece)] if piece in token_bytes else piece)
            ]

    def next_token(self) -> int:
        params = self.request.sampling
        limit = params.max_thinking_tokens
        if self.forced:
            return self.forced.pop(0)
        if limit is not None and self.counter.in_reasoning and self.counter.reasoning_tokens >= limit:
            self.forced = list(params.think.close_ids)
            # The answer after a forced close: what the script says after its own close tag.
            said = b"".join(self.token_bytes[i] for i in self.planned or [])
            self.planned = list(said.partition(params.think.close)[2].lstrip(b"\n"))
            self.request = self.request
            return self.forced.pop(0)
        if self.planned is not None:
            return self.planned.pop(0) if self.planned else self.eos
        if self.script.get("forever"):
            return ord("x")
        position = len(self.request.prompt_ids) + len(self.emitted)
        key = f"{params.seed}/{self.request.choice_index}/{position}" if params.temperature else str(position)
        digest = hashlib.sha256(key.encode()).digest()
        if digest[1] < 8:
            return self.eos
        return ord("a") + digest[0] % 26

    def step(self) -> TokenOutput:
        script, params = self.script, self.request.sampling
        if script.get("crash") == len(self.emitted):
            os.kill(os.getpid(), signal.SIGKILL)
        if script.get("raise") == len(self.emitted):
            raise ValueError(bytes(self.request.prompt_ids[:40]).decode())
        token = self.next_token()
        self.emitted.append(token)
        data = self.token_bytes[token]
        self.counter.push(data)
        _, matched = self.matcher.push(data)
        reason = None
        if matched or (token == self.eos and not params.ignore_eos):
            reason = "stop"
        elif len(self.emitted) == params.max_tokens:
            reason = "length"
        logprobs = []
        if params.logprobs is not None:
            others = [(token + k) % 256 for k in range(params.logprobs)]
            logprobs = [TokenLogprobs(-0.25, others, [-0.25 - k for k in range(params.logprobs)])]
        output = TokenOutput(self.request.request_id, [token], logprobs, reason)
        if self.first:
            self.first = False
            output.cached_tokens = len(self.request.prompt_ids) // BLOCK * BLOCK
            output.queue_seconds = time.monotonic() - self.arrived
        return output


class ScriptedEngine:
    max_model_len = CONTEXT
    kv_blocks = 64
    block_size = BLOCK
    weights_bytes = 1000
    kv_bytes = 2000
    precision = "fp32"
    path = "scripted"

    def __init__(self, max_concurrent: int) -> None:
        self.vocab_size = 0
        self.max_concurrent = max_concurrent
        self.requests: dict[str, Running] = {}
        self.counts = dict.fromkeys(("steps", "generated_tokens", "prompt_tokens", "prefix_hit_tokens"), 0)
        self.seconds = 0.0
        self.last_batch = 0

    def set_vocabulary(self, token_bytes: list[bytes], eos_token_ids: tuple[int, ...]) -> None:
        self.token_bytes = token_bytes
        self.eos = eos_token_ids[0]
        self.vocab_size = len(token_bytes)

    def submit(self, request: GenerateRequest) -> None:
        text = b"".join(self.token_bytes[i] for i in request.prompt_ids).decode("utf-8", "replace")
        found = re.findall(r"@(\{.*?\})@", text, re.DOTALL)
        script = json.loads(found[-1]) if found else {}
        if script.get("refuse") == "request":
            raise RequestError("the engine refuses this one", param="prompt", code="context_length_exceeded")
        if script.get("refuse") == "capacity":
            raise CapacityError("no blocks for this one")
        self.requests[request.request_id] = Running(request, script, self.token_bytes, self.eos)
        self.counts["prompt_tokens"] += len(request.prompt_ids)

    def cancel(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[TokenOutput]:
        began = time.monotonic()
        batch = list(self.requests.values())[: self.max_concurrent]
        time.sleep(max(running.script.get("delay", 0.0005) for running in batch))
        outputs = [running.step() for running in batch]
        for output in outputs:
            self.counts["prefix_hit_tokens"] += output.cached_tokens
            if output.finish_reason is not None:
                del self.requests[output.request_id]
        self.counts["steps"] += 1
        self.counts["generated_tokens"] += len(outputs)
        self.seconds += time.monotonic() - began
        self.last_batch = len(batch)
        return outputs

    @property
    def expert_load(self) -> list[ExpertLoad]:
        return [ExpertLoad(3, 0.9, 1.5)]

    @property
    def stats(self) -> EngineStats:
        running = min(len(self.requests), self.max_concurrent)
        return EngineStats(
            running=running,
            waiting=len(self.requests) - running,
            kv_blocks_used=running,
            kv_blocks_total=self.kv_blocks,
            step_seconds=self.seconds,
            last_batch=self.last_batch,
            max_batch=self.max_concurrent,
            **self.counts,
        )


def load(settings: EngineSettings) -> ScriptedEngine:
    problem = os.environ.get("SCRIPTED_ENGINE_PROBLEM")
    if problem == "broken":
        raise CheckpointError(settings.model_path, "tensor x", "is cut short")
    if problem == "defect":
        raise KeyError("nothing")
    if problem == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if problem == "slow":
        time.sleep(1.5)
    if problem == "fails-later":
        marker = f"{settings.model_path}/started"
        if os.path.exists(marker):
            raise CheckpointError(settings.model_path, "tensor x", "is cut short")
        open(marker, "w").close()
    for folder in settings.adapters.values():
        if not os.path.isdir(folder):
            raise CheckpointError(folder, "file", "cannot be read", remedy="give an adapter's folder")
    engine = ScriptedEngine(settings.max_concurrent)
    engine.vocab_size = 262
    return engine


if __name__ == "__main__":
    sys.exit(main(load))
