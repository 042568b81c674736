from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from deepseek_r1.cli.main import benchmark_main, main
from deepseek_r1.config.precision import parse_precision
from deepseek_r1.core.errors import UnsupportedError
from deepseek_r1.engine import memory
from deepseek_r1.kernels import ops
from deepseek_r1.models.locate import locate_model
from deepseek_r1.operate import limits, roofline
from deepseek_r1.operate.catalogue import read_header
from deepseek_r1.operate.compare import peers
from deepseek_r1.operate.compare.cases import Case, figures, parse_cases
from deepseek_r1.operate.compare.peers import Peer
from deepseek_r1.operate.compare.workers.peer_ours import Peer as Ours
from deepseek_r1.operate.limits import Limits, bandwidth_probe, measure_limits
from deepseek_r1.operate.roofline import Model
from support import fake_peer, tiny
from support.published_models import write_config

BF16 = parse_precision("bf16")
LIMITS = Limits(30e9, {"int8": 0.9e12, "bf16": 0.45e12, "fp32": 0.2e12})


def published(folder: Path, name: str) -> Model:
    config = read_header(write_config(folder, name)).config
    assert config is not None
    return Model(memory.served(config), BF16, memory.Storage(native=True))


def one(text: str) -> Case:
    (case,) = parse_cases(text)
    return case


def test_work_of_a_dense_model_by_hand(tmp_path: Path) -> None:
    llama = published(tmp_path, "Llama-3.1-8B")
    # 7_504_924_672 weights are multiplied with each token, 128_256 * 4096 of them the output layer's; a token's scores
    # and values over one key are 2 * 2 * 32 layers * 32 heads * 128; a key and its value take 131_072 bytes.
    linear, head, per_key = 2 * 7_504_924_672, 2 * 128_256 * 4096, 524_288
    prefill = roofline.work(llama, one("prefill:512"))
    assert prefill.operations == 512 * (linear - head) + head + per_key * 512 * 513 // 2
    assert prefill.read == 15_009_857_536 and prefill.tokens == 512  # in one step
    assert roofline.work(llama, one("prefill:1024")).read == 2 * prefill.read
    decode = roofline.work(llama, one("decode:4"))
    assert decode.read == 3 * 15_009_857_536 + (17 + 18 + 19) * 131_072
    assert decode.operations == 3 * linear + (17 + 18 + 19) * per_key and decode.tokens == 3
    eight = roofline.work(llama, one("8:4"))
    assert eight.read == 3 * 15_009_857_536 + 8 * (17 + 18 + 19) * 131_072
    assert eight.operations == 8 * decode.operations and eight.tokens == 24


def test_several_tokens_read_the_experts_that_any_of_them_chose(tmp_path: Path) -> None:
    mixtral = published(tmp_path, "Mixtral-8x7B")
    experts = 32 * 8 * 3 * 4096 * 14_336 * 2
    dense = 25_499_811_840 - experts // 4
    keys = 4 * (17 * 131_072)
    drawn = torch.rand(20_000, 4, 8, generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :2]
    union = torch.zeros(20_000, 8).scatter_(1, drawn.flatten(1), 1).mean().item()
    found = roofline.work(mixtral, one("4:2")).read
    assert found == pytest.approx(dense + union * experts + keys, rel=0.005)
    routers = 32 * (64 - 8) * 4096 * 4  # 8 experts stand in a panel of 64 columns
    assert roofline.work(mixtral, one("decode:2")).read == 25_499_811_840 + routers + 17 * 131_072


def test_latent_attention_reads_one_row_for_all_heads(tmp_path: Path) -> None:
    r1 = published(tmp_path, "DeepSeek-R1")
    one_more = [roofline.work(r1, Case("d", "decode", 1, tokens, 2)) for tokens in (16, 17)]
    assert one_more[1].operations - one_more[0].operations == 2 * 61 * 128 * (512 + 64 + 512)
    assert one_more[1].read - one_more[0].read == 70_272


def test_seconds_of_a_phase() -> None:
    assert roofline.phase_seconds(one("prefill:512"), {"first_token_seconds": 2.0}) == 2
    decode = one("decode:4")
    assert roofline.phase_seconds(decode, figures(decode, [[1.0, 1.1, 1.3, 1.5]])) == pytest.approx(0.5)
    two = one("2:4")
    # Five tokens come in the two seconds after both have their first: the six that are decoded take 2.4.
    found = figures(two, [[0.5, 1.0, 1.5, 2.0], [1.0, 1.5, 2.0, 3.0]])
    assert roofline.phase_seconds(two, found) == pytest.approx(2.4)


def fake(monkeypatch: pytest.MonkeyPatch, pace: float) -> Peer:
    monkeypatch.setenv("PYTHONPATH", str(Path(fake_peer.__file__).parent))
    flags = {"precision": "bf16", "pace": str(pace), "name": "ours"}
    return Peer("ours", Path(sys.executable), "fake_peer", "m", flags)


def test_shares_of_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = published(tmp_path, "Llama-3.1-8B")
    cases = parse_cases("prefill:40,decode:6")
    phases, about = roofline.measure(
        *(fake(monkeypatch, 0.02), llama, cases, LIMITS),
        **{"rounds": 3, "seed": 0, "threads": 2, "bandwidth": lambda: 20e9, "say": lambda *a, **b: None},  # type: ignore[arg-type]
    )
    prefill, decode = phases
    assert about["threads"] == 2 and prefill.format == "bf16" and decode.seconds["count"] == 3
    assert 0.02 <= prefill.seconds["median"] < 0.1 and 0.1 <= decode.seconds["median"] < 0.4
    for phase in phases:
        took = phase.seconds["median"]
        assert phase.rate["median"] == pytest.approx(phase.work.tokens / took)
        assert phase.of_bandwidth["median"] == pytest.approx(phase.work.read / took / 20e9)
        assert phase.of_peak["median"] == pytest.approx(phase.work.operations / took / 0.45e12)
        assert phase.of_bound["median"] == pytest.approx(max(phase.of_bandwidth["median"], phase.of_peak["median"]))
    assert decode.of_bandwidth["median"] > decode.of_peak["median"]


def test_a_file_is_counted_in_the_form_it_is_served_in() -> None:
    """SmolLM2's own blocks: 106_168_320 weights in Q4_1 (5 bits) and the tied table of 28_311_552 in Q8_0 (8.5)."""
    model = roofline.open_model(locate_model("default"), "auto")
    assert model.precision.precision_mode == "int4"
    assert roofline.peak_format(model.precision) == ("bf16" if ops.PATH == "amx" else "int8")
    native = Model(model.config, model.precision, memory.Storage(True, model.storage.types))
    found = roofline.work(native, one("decode:2")).read
    keys = 17 * 30 * 2 * 3 * 64 * 2
    assert found - keys == pytest.approx(106_168_320 * 5 / 8 + 28_311_552 * 8.5 / 8, rel=0.02)


# --- limits -----------------------------------------------------------------------------------------------------------


def native(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []
    rates = {"int8": 9e11, "bf16": 4e11, "fp32": 2e11}

    def peak(kind: str, seconds: float) -> float:
        calls.append((kind, seconds))
        return rates[kind]

    def read_bandwidth(seconds: float) -> float:
        calls.append(("read", seconds))
        return 33e9

    monkeypatch.setattr(ops, "peak", peak, raising=False)
    monkeypatch.setattr(ops, "read_bandwidth", read_bandwidth, raising=False)
    return calls


def test_limits_come_from_the_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = native(monkeypatch)
    assert measure_limits(0.5) == Limits(33e9, {"int8": 9e11, "bf16": 4e11, "fp32": 2e11})
    assert {("read", 0.5), ("int8", 0.5), ("bf16", 0.5), ("fp32", 0.5)} <= set(calls)
    words, probe = bandwidth_probe()
    assert words == "memory read by all cores" and probe() == 33e9 and calls[-1] == ("read", limits.PROBE_SECONDS)


def missing(seconds: float) -> float:
    raise UnsupportedError("there is no native module")


@pytest.mark.parametrize("how", ["raises", "absent"])
def test_without_native_kernels(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(limits, "PROBE_SECONDS", 0.01)
    if how == "raises":
        monkeypatch.setattr(ops, "read_bandwidth", missing, raising=False)
    else:
        monkeypatch.delattr(ops, "read_bandwidth", raising=False)
    with pytest.raises(UnsupportedError, match="peaks can't be measured") as error:
        measure_limits(0.01)
    assert "compiler" in error.value.remedy
    words, probe = bandwidth_probe()
    assert "copied" in words and probe() > 1e8


# --- command line, and our own worker ---------------------------------------------------------------------------------


def test_roofline_from_the_command_line(
    tmp_path: Path, models_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    native(monkeypatch)
    monkeypatch.setattr(peers, "ours", lambda *settings: fake(monkeypatch, 0.002))
    folder = tiny.save("qwen2", models_folder)
    words = f"{folder} --precision bf16 --rounds 2 --cases prefill:8,decode:3,2:3 --json {tmp_path}/r.json"
    assert benchmark_main(["roofline", *words.split()]) == 0
    output = capsys.readouterr().out
    assert output.startswith("read bandwidth 33.0 GB/s; int8 0.90 TOP/s, bf16 0.40 TOP/s, fp32 0.20 TOP/s\n")
    report = json.loads((tmp_path / "r.json").read_text())
    assert [phase["case"]["name"] for phase in report["phases"]] == ["prefill", "decode", "2"]
    assert report["limits"]["bandwidth"] == 33e9 and report["phases"][0]["bandwidth"]["median"] == 33e9
    assert report["engine"]["versions"] == {"fake": "1.2"}

    assert main(["roofline", str(folder), "--cases", "cold:1"]) == 2
    assert main(["roofline", str(folder), "--speculative", "ngram"]) == 2
    assert "one token per request" in capsys.readouterr().err


def test_our_worker_says_what_transformers_says(models_folder: Path) -> None:
    path = tiny.save("qwen2", models_folder)
    threads = torch.get_num_threads()
    worker = Ours(str(path), threads, {"precision": "fp32", "memory": str(1 << 30)})
    prompts = [[5, 9, 40, 3, 77, 21], [8, 8, 30, 61, 2, 50]]
    tokens: list[list[int]] = [[], []]
    worker.prepare(prompts, 6)
    worker.run(prompts, 6, lambda index, found: tokens[index].extend(found))
    model = tiny.build("qwen2")
    ids = torch.tensor(prompts)
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert tokens == ids[:, 6:].tolist()
    assert worker.about["threads"] == threads and worker.about["flags"]["precision"] == "fp32"
    assert len(set(tokens[0])) > 1 and tokens[0] != tokens[1]
