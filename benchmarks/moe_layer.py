"""Time of one layer of experts: it grows with the experts that a token uses, not with those that there are.

    python benchmarks/moe_layer.py [--runs 9] [--dtype fp32|bf16] [--hidden 1024] [--expert-hidden 512]
                                   [--threads N] [--json FILE]

Two sweeps, each for 1, 16 and 256 tokens: 1 to 8 active experts of 64, and 2 active experts of 8 to 128. Beside ours
stand transformers' DeepseekV3MoE on the same weights, with its loop over experts and with its grouped product.
Medians of interleaved runs. Before each the caches are swept, as the other layers of a model would: otherwise few
experts would look fast because all of them fit into the cache. With many tokens every expert is used by some token,
so there the time grows with their number too: what is read is the experts in use. `used` is their mean number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import deepseek_r1  # noqa: F401  before torch: it sets how long OpenMP threads spin

# isort: split
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from deepseek_r1.core.environment import machine_summary
from deepseek_r1.layers import Experts, GatedMLP, MoE, Router

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOKENS = (1, 16, 256)
CASES = [(64, active) for active in (1, 2, 4, 8)] + [(experts, 2) for experts in (8, 16, 32, 128)]
SWEPT_BYTES = 128 << 20
NAMES = ("ours", "transformers, loop", "transformers, grouped")


def our_layer(hidden: int, width: int, experts: int, active: int, dtype: torch.dtype) -> MoE:
    router = Router(
        hidden, experts, active, score="sigmoid", normalise=True, scale=1.0, groups=1, active_groups=1, bias=True
    )
    kinds = {"activation": "silu", "dtype": dtype, "activation_dtype": dtype}
    layer = MoE(router, Experts(hidden, experts, width, **kinds), GatedMLP(hidden, width, bias=False, **kinds))
    generator = torch.Generator().manual_seed(experts * 10 + active)
    for name, weight in layer.named_parameters():
        weight.data.normal_(0, 0.02 if name == "router.bias" else weight.shape[-1] ** -0.5, generator=generator)
    return layer.requires_grad_(False)


def their_layer(ours: MoE, hidden: int, width: int) -> DeepseekV3MoE:
    experts, active = ours.router.weight.shape[0], ours.router.active
    config = DeepseekV3Config(
        hidden_size=hidden,
        moe_intermediate_size=width,
        n_routed_experts=experts,
        num_experts_per_tok=active,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
    )
    with torch.device("meta"):
        layer = DeepseekV3MoE(config)
    mine = ours.experts
    weights = {
        "gate.weight": ours.router.weight,
        "gate.e_score_correction_bias": ours.router.bias,
        "experts.gate_up_proj": torch.cat((mine.gate_proj.weight, mine.up_proj.weight), dim=1),
        "experts.down_proj": mine.down_proj.weight,
        "shared_experts.gate_proj.weight": ours.shared.gate_up.gate_proj.weight,
        "shared_experts.up_proj.weight": ours.shared.gate_up.up_proj.weight,
        "shared_experts.down_proj.weight": ours.shared.down_proj.weight,
    }
    layer.load_state_dict(weights, assign=True)
    return layer.requires_grad_(False)


def forms(ours: MoE, theirs: DeepseekV3MoE) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    def as_(implementation: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def call(x: torch.Tensor) -> torch.Tensor:
            theirs.config._experts_implementation = implementation
            return theirs(x.unsqueeze(0))[0]

        return call

    return dict(zip(NAMES, (ours, as_("eager"), as_("grouped_mm")), strict=True))


def measure(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    dtype = DTYPES[options.dtype]
    junk = torch.zeros(SWEPT_BYTES // 4)
    for experts, active in CASES:
        ours = our_layer(options.hidden, options.expert_hidden, experts, active, dtype)
        calls = forms(ours, their_layer(ours, options.hidden, options.expert_hidden))
        for tokens in TOKENS:
            times: dict[str, list[float]] = {name: [] for name in calls}
            used = []
            for run in range(options.runs + 1):
                # Other tokens each time: other experts, as from step to step of a decode.
                x = torch.randn(tokens, options.hidden, generator=torch.Generator().manual_seed(run)).to(dtype)
                before = ours.expert_tokens.clone()
                outputs = []
                for name, call in calls.items():
                    junk.add_(1)
                    began = time.perf_counter()
                    outputs.append(call(x))
                    if run:  # the first round warms up
                        times[name].append(1e6 * (time.perf_counter() - began))
                used.append(int((ours.expert_tokens != before).sum()))
                for other in outputs[1:]:
                    torch.testing.assert_close(outputs[0].to(dtype), other, rtol=0.05, atol=0.05)
            row: dict[str, object] = {"experts": experts, "active": active, "tokens": tokens}
            row["used"] = statistics.mean(used)
            row |= {name: {"median": statistics.median(t), "min": min(t), "max": max(t)} for name, t in times.items()}
            for name in NAMES[1:]:
                ratios = [theirs / mine for theirs, mine in zip(times[name], times["ours"], strict=True)]
                row[f"{name} / ours"] = statistics.median(ratios)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--expert-hidden", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {
        "machine": machine_summary(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "threads": options.threads,
        "dtype": options.dtype,
        "hidden": options.hidden,
        "expert_hidden": options.expert_hidden,
        "runs": options.runs,
    }
    print("tokens experts active   used   microseconds: ours, loop, grouped   loop/ours grouped/ours")
    rows = []
    with torch.no_grad():
        for row in measure(options):
            rows.append(row)
            medians = "".join(f"{row[name]['median']:>10.0f}" for name in NAMES)  # type: ignore[index]
            ratios = "".join(f"{row[f'{name} / ours']:>10.2f}" for name in NAMES[1:])
            counts = f"{row['tokens']:>6} {row['experts']:>7} {row['active']:>6} {row['used']:>6.1f}"
            print(f"{counts}   {medians}   {ratios}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report | {"results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
