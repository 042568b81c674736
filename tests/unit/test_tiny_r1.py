"""The R1-shaped tiny model through its real command line: resumes bit for bit, and loads alike here and elsewhere."""

from __future__ import annotations

import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.layers.context import Packed
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.text.chat_template import opens_thinking
from deepseek_r1.models.text.hf_tokenizer import tokenizer_from_directory

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/tiny_r1.py"
STEPS = 6
ARGUMENTS = ("--steps", str(STEPS), "--seed", "5", "--problems", "1")


def recipe(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPE), str(out), *arguments], capture_output=True, text=True, timeout=120, cwd=out.parent
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "model"
    done = recipe(out, *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert "| addition |" in done.stdout and "| mean |" in done.stdout
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["step"] == STEPS and last["rate"] > 0 and last["seconds_left"] == 0
    return out


def end_in_mid_training(out: Path, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Start the recipe and send it a signal as soon as it has saved something new."""
    state = out / "state/state.safetensors"
    before = state.stat().st_mtime_ns if state.is_file() else 0
    command = [sys.executable, str(RECIPE), str(out), *ARGUMENTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not (state.is_file() and state.stat().st_mtime_ns > before):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(number)
        out_text, error_text = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out_text, error_text)


def test_a_killed_and_interrupted_run_goes_on_to_the_same_bits(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert end_in_mid_training(out, signal.SIGKILL).returncode == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    (out / "state/.state.safetensors.1.partial").write_bytes(b"what a kill may leave")
    interrupted = end_in_mid_training(out, signal.SIGINT)
    assert interrupted.returncode == 130 and "Traceback" not in interrupted.stderr
    step = int(re.search(r"after step (\d+); the same command goes on", interrupted.stderr)[1])
    assert 1 < step < STEPS
    done = recipe(out, *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "state/state.safetensors", "tokenizer.json", "state/run.json"):
        assert (out / name).read_bytes() == (made / name).read_bytes(), name
    assert [path.name for path in (out / "state").iterdir() if "partial" in path.name] == []


def test_another_runs_folder_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (made / "state/state.safetensors").read_bytes()
    monkeypatch.syspath_prepend(RECIPE.parent)
    tiny_r1 = importlib.import_module("tiny_r1")
    assert tiny_r1.main([str(made), "--steps", str(STEPS), "--seed", "6"]) == 2
    told = capsys.readouterr().err
    assert "holds a run with other settings" in told and "remedy: give the same settings" in told
    assert tiny_r1.main([str(made / "config.json"), *ARGUMENTS]) == 1
    assert "remedy: name a folder" in capsys.readouterr().err
    assert (made / "state/state.safetensors").read_bytes() == before


def test_the_report_counts_what_the_routers_did(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    config = json.loads((made / "config.json").read_text())
    assert report["steps_done"] == STEPS and report["parameters"] < 10_000_000
    assert report["active_parameters"] < report["parameters"] / 2
    found = report["held_out"]
    assert set(found["loads"]) == {"layers.1", "layers.2", "layers.3", "mtp.0"}
    for name, loads in found["loads"].items():
        assert len(loads) == config["n_routed_experts"] == 8
        assert sum(loads) == found["tokens"] * config["num_experts_per_tok"]
        shares = torch.tensor(loads, dtype=torch.float64) / sum(loads)
        entropy = -(shares * shares.clamp_min(1e-300).log()).sum() / torch.log(torch.tensor(8.0, dtype=torch.float64))
        assert found["utilisation"][name] == pytest.approx(float(entropy), abs=1e-4)
    assert found["mean_utilisation"] == pytest.approx(sum(found["utilisation"].values()) / 4, abs=1e-4)
    picture = ElementTree.fromstring((made / "utilisation.svg").read_text())
    words = [element.text for element in picture.iter() if element.text]
    assert f"{found['utilisation']['layers.1']:.4f}" in words
    assert f"{found['mean_utilisation']:.4f}" in (made / "report.md").read_text()


def test_transformers_computes_the_same_logits(made: Path) -> None:
    tokenizer = tokenizer_from_directory(made)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "What is 12 + 95?"}]) + "5 + 2 = 7"
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False))
    reference = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32, attn_implementation="eager").eval()
    decoder = load_decoder(made, DeepSeekConfig(), pack=False, mtp=True)
    assert len(decoder.mtp) == 1
    with torch.no_grad():
        want = reference(ids[None]).logits[0]
        got = decoder.logits(decoder(ids, torch.arange(len(ids)), Packed([len(ids)])))
    assert want.std() > 0.3
    assert (got - want).abs().max() <= 1e-4


def test_the_tokenizer_is_the_same_in_transformers(made: Path) -> None:
    ours, theirs = tokenizer_from_directory(made), AutoTokenizer.from_pretrained(made)
    assert ours.eos_token_ids == (theirs.eos_token_id,) and ours.vocab_size == len(theirs)
    messages = [
        {"role": "user", "content": "What is 12 + 95?"},
        {"role": "assistant", "content": "<think>\n2 + 5 = 7\n</think>\n\n107"},
        {"role": "user", "content": "Sort 30, 4, 17. Ä, 日本 and \U0001f600!\n\n\tyes"},
    ]
    text = ours.apply_chat_template(messages)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert opens_thinking(text) and "2 + 5" not in text and "107<|im_end|>" in text
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ids, skip_special_tokens=False) == text == theirs.decode(ids)
    # Digits stand alone, so that carrying can be learnt; the tags are one token each.
    assert len(ours.encode("12345", add_special_tokens=False)) == 5
    assert [ours.id_to_token(i) for i in ours.encode("<think></think>")] == ["<think>", "</think>"]
