"""The steps of `prove`: each takes a count, a seed, the code's digest and a progress, and returns (result, passed)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from deepseek_r1.core.environment import state_dir
from proof_progress import Progress

TESTS = Path(__file__).resolve().parent
FAMILIES = ("llama", "mistral-window", "qwen3", "deepseek_v3")
"""The last gets a prediction module, which guesses in its schedules too."""
PRECISIONS = ("fp32", "bf16", "int8", "int4")
SAVE_EVERY = 20
GREEDY_TOKENS = 64

for folder in ("invariant", "parity", "server"):
    sys.path.append(str(TESTS / folder))


def state_file(name: str) -> Path:
    """Where an unfinished step is kept: outside the work tree."""
    path = state_dir() / "prove" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write by rename: an interrupted run leaves the older file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


def schedules(count: int, seed: int, code: str, progress: Progress) -> tuple[dict[str, Any], bool]:
    """Random schedules over tiny models in every precision, every other one guessing ahead.

    It goes on where an interrupted run of the same code ended.
    """
    import torch
    from schedules import TOLERANCE, run_schedule
    from transformers.utils.logging import disable_progress_bar

    from deepseek_r1.config.precision import parse_precision
    from deepseek_r1.kernels import ops
    from deepseek_r1.models.loading import load_decoder
    from deepseek_r1.models.surgery import pack_linears
    from support import tiny

    torch.set_num_threads(1)
    disable_progress_bar()
    file = state_file("schedules")
    key = {"code": code, "seed": seed}
    totals = ("requests", "tokens", "preemptions", "hits", "drafted", "accepted")
    state: dict[str, Any] = {**key, "done": 0, **dict.fromkeys(totals, 0), "worst": 0.0, "ties": [], "problems": []}
    if file.exists():
        earlier = json.loads(file.read_text())
        if key.items() <= earlier.items() and earlier["done"] <= count:
            state = earlier
    with tempfile.TemporaryDirectory(prefix="prove") as folder:
        paths = [tiny.save(name, Path(folder)) for name in FAMILIES]
        decoders = {
            (precision, name): load_decoder(path, parse_precision(precision), pack=True)
            for precision in PRECISIONS
            for name, path in zip(FAMILIES, paths, strict=True)
        }
        guessing = tiny.with_prediction_module(paths[-1])
        pack_linears(guessing)
        decoders["fp32", FAMILIES[-1]] = guessing
        kinds = list(decoders)
        try:
            for index in range(state["done"], count):
                precision, family = kinds[index % len(kinds)]
                turn = index // len(kinds) % 4
                drawn = seed * 1_000_000 + index
                outcome = run_schedule(decoders[precision, family], drawn, guesses=turn == 1, ngram=turn == 3)
                for name in totals:
                    state[name] += getattr(outcome, name)
                state["worst"] = max(state["worst"], outcome.worst)
                for name, found in (("ties", outcome.ties), ("problems", outcome.problems)):
                    state[name] += [f"{family} in {precision}, seed {drawn}: {line}" for line in found]
                state["done"] = index + 1
                if state["done"] % SAVE_EVERY == 0:
                    write_json(file, state)
                progress(state["done"], f"{state['tokens']} tokens, {len(state['problems'])} problems")
        finally:
            write_json(file, state)
    file.unlink()  # complete: the next run is a new one
    result = {name: value for name, value in state.items() if name not in key}
    result |= {"families": FAMILIES, "precisions": PRECISIONS, "path": ops.PATH}
    result |= {"tolerance": TOLERANCE, "tie_count": len(state["ties"])}
    # Schedules that do not preempt, share or sample would show nothing.
    worth = state["preemptions"] > count / 5 and state["hits"] > 2 * count and state["tokens"] > 10 * count
    worth = worth and state["accepted"] > count / 5 and state["drafted"] - state["accepted"] > count / 5
    passed = not state["problems"] and state["worst"] <= TOLERANCE and len(state["ties"]) <= count // 10
    return result | {"worth_something": worth}, passed and worth


def checkpoints(count: int, seed: int, code: str, progress: Progress) -> tuple[dict[str, Any], bool]:
    """Mutated checkpoints, by the script that makes them. It resumes by itself from its report."""
    report = state_file(f"checkpoints-{count}")
    command = [sys.executable, str(TESTS / "fault" / "mutate_checkpoints.py")]
    command += ["--count", str(count), "--seed", str(seed), "--out", str(report)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                time.sleep(0.5)
                found = json.loads(report.read_text()) if report.exists() else {"done": 0, "failures": []}
                progress(found["done"], f"{len(found['failures'])} failures")
        finally:
            process.terminate()
    result = json.loads(report.read_text()) if report.exists() else {"failures": ["no report was written"]}
    if result.get("done", 0) >= count:
        report.unlink()  # complete: the next run is a new one
    result["exit_code"] = process.returncode
    for name in ("machine", "commit", "seed"):  # these stand in the proof itself
        result.pop(name, None)
    structural = result.get("structural", 0)
    complete = result.get("done") == count and 2 * structural >= count
    return result, process.returncode == 0 and not result["failures"] and complete


def soak(count: int, seed: int, code: str, progress: Progress) -> tuple[dict[str, Any], bool]:
    """64 streams for `count` seconds, and the flood."""
    from soak import Plan, run

    report = run(Plan(seconds=float(count), seed=seed), progress)
    return report, not report["violations"]


def smollm2(count: int, seed: int, code: str, progress: Progress) -> tuple[dict[str, Any], bool]:
    """Each greedy token is the argmax of transformers' logits over the same tokens, for 64 tokens per prompt."""
    import torch
    from test_smollm2 import PROMPTS
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from deepseek_r1.models.locate import locate_model
    from deepseek_r1.serve.local import DeepSeekModel

    disable_progress_bar()
    path = locate_model("default")
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokens, worst, differing = 0, 0.0, []
    with DeepSeekModel.from_pretrained("default", precision="fp32", memory="3GiB") as model:
        prompts = PROMPTS[:count]
        # As one batch, and past the end of sequence: every prompt shows 64 tokens.
        words = {"temperature": 0, "max_tokens": GREEDY_TOKENS, "logprobs": 0, "ignore_eos": True}
        for place, (prompt, answer) in enumerate(zip(prompts, model.generate(prompts, **words), strict=True)):
            ids = torch.tensor([model.tokenizer.encode(prompt) + answer.token_ids])
            with torch.no_grad():
                logits = reference(ids).logits[0, -len(answer.token_ids) - 1 : -1].double()
            chosen = torch.tensor(answer.token_ids)
            for at in (logits.argmax(-1) != chosen).nonzero().flatten().tolist():
                differing.append(f"{prompt!r}, token {at}")
            want = logits.log_softmax(-1).gather(1, chosen[:, None]).squeeze(1)
            got = torch.tensor([entry.logprob for entry in answer.logprobs], dtype=torch.float64)
            worst = max(worst, float((want - got).abs().max()))
            tokens += len(answer.token_ids)
            progress(place + 1, f"{tokens} tokens, {len(differing)} differ")
    result = {"prompts": len(prompts), "tokens": tokens, "differing": differing, "worst_logprob_difference": worst}
    complete = tokens == GREEDY_TOKENS * count and len(prompts) == count
    return result, not differing and worst < 1e-3 and complete


def fuzz(count: int, seed: int, code: str, progress: Progress) -> tuple[dict[str, Any], bool]:
    """`count` examples per operation. The examples are derived from the tests' own source, not from the seed."""
    environment = {**os.environ, "DEEPSEEK_R1_FUZZ_EXAMPLES": str(count), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="prove") as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", str(TESTS / "server" / "test_fuzz_api.py"), "-v", "--timeout=1800"]
        command += ["-p", "no:cacheprovider", f"--junit-xml={junit}"]
        output: list[str] = []
        with subprocess.Popen(
            command, cwd=TESTS.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    output.append(line)
                    if share := re.search(r"(PASSED|FAILED|ERROR).*\[ *(\d+)%\]", line):
                        progress(count * int(share[2]) / 100, line.split(" ")[0].rpartition("::")[2])
            finally:
                process.terminate()
        suite = ElementTree.parse(junit).getroot().find("testsuite") if junit.exists() else None
    if suite is None:
        return {"output": "".join(output[-60:])}, False
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    seconds = {case.get("name", ""): float(case.get("time", "0")) for case in suite.iter("testcase")}
    result: dict[str, Any] = {**counts, "examples_per_operation": count, "seconds_by_test": seconds}
    passed = process.returncode == 0 and counts["tests"] > 1 and counts["skipped"] == 0
    return result if passed else result | {"output": "".join(output[-60:])}, passed
