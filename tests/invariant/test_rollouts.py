"""The policy that samples is the policy that learns: log-probabilities of rollouts and of the trainer, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepseek_r1.config.lora import LoraConfig
from deepseek_r1.config.precision import parse_precision
from deepseek_r1.core.errors import RequestError
from deepseek_r1.engine.engine import Engine
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
from deepseek_r1.kernels import ops
from deepseek_r1.models.adapters import add_adapter, factors, trained_factors
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.surgery import refresh_trained, train_all
from deepseek_r1.train.forward import hidden_states, logprobs_and_entropies, logprobs_of
from support import tiny

PRECISIONS = ("fp32", "bf16", "int8", "int4", "int4:kv_cache=int8")
Rollout = tuple[list[int], list[int], list[float]]


def engine_over(decoder: Decoder, **options: int) -> Engine:
    sizes = {"num_blocks": 64, "block_size": 4, "max_concurrent": 4, "max_step_tokens": 24} | options
    return Engine(decoder, **sizes)


def rollouts(engine: Engine, adapters: list[str | None], tokens: int = 12) -> dict[str, Rollout]:
    """Twelve requests that share prompts, so that prefixes are found again, over adapters in turn."""
    found: dict[str, Rollout] = {}
    for number in range(12):
        prompt = [5 + (3 * i + number // 6) % 300 for i in range(7 + number % 3 * 6)]
        sampling = SamplingParams(max_tokens=tokens, seed=number, logprobs=0, ignore_eos=True)
        adapter = adapters[number % len(adapters)]
        engine.submit(GenerateRequest(f"{number}", prompt, sampling, adapter=adapter))
        found[f"{number}"] = (prompt, [], [])
    while engine.has_work:
        for output in engine.step():
            found[output.request_id][1].extend(output.token_ids)
            found[output.request_id][2].extend(one.logprob for one in output.logprobs)
    return found


def worst(decoder: Decoder, found: list[Rollout], at_once: int) -> tuple[float, torch.Tensor]:
    """The largest difference between what the engine reported and the differentiable forward pass, and a loss."""
    largest, loss = 0.0, torch.zeros((), dtype=torch.float64)
    for first in range(0, len(found), at_once):
        part = found[first : first + at_once]
        lengths = [len(prompt) + len(out) for prompt, out, _ in part]
        ids = torch.tensor([token for prompt, out, _ in part for token in (*prompt, *out)])
        positions = torch.cat([torch.arange(length) for length in lengths])
        hidden = hidden_states(decoder, ids, positions, lengths)
        assert hidden.requires_grad
        rows, start = [], 0
        for (prompt, out, _), length in zip(part, lengths, strict=True):
            rows += range(start + len(prompt) - 1, start + length - 1)
            assert len(out) == length - len(prompt)
            start += length
        targets = torch.tensor([token for _, out, _ in part for token in out])
        ours = logprobs_of(decoder, hidden[rows], targets)
        theirs = torch.tensor([value for _, _, values in part for value in values], dtype=torch.float64)
        largest = max(largest, float((ours.detach() - theirs).abs().max()))
        assert bool((torch.exp(ours.detach() - theirs) == 1).all()), "the first importance ratio is exactly 1"
        loss = loss - ours.sum()
    return largest, loss


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_adapters_rollouts_have_the_trainers_bits_before_and_after_an_update(
    precision: str, models_folder: Path
) -> None:
    decoder = load_decoder(tiny.save("llama", models_folder), parse_precision(precision), pack=True)
    config = LoraConfig(r=4, targets=("all-linear",), dropout=0.0)
    add_adapter(decoder, "own", config)
    generator = torch.Generator().manual_seed(3)
    for part in factors(decoder, "own").values():
        part.lora_B.weight.data.normal_(0, 0.1, generator=generator)
        part.lora_B.refresh()
    engine = engine_over(decoder)
    engine.use_adapter("own")
    texts = []
    for update in range(2):
        found = rollouts(engine, ["own"])
        assert engine.stats.prefix_hit_tokens > 0
        for threads, at_once in ((1, 1), (2, 5), (1, 12)):
            before = ops.threads()
            ops.set_threads(threads)
            with decoder.adapters.everywhere("own"):
                difference, loss = worst(decoder, list(found.values()), at_once)
            ops.set_threads(before)
            assert difference == 0.0
        loss.backward()  # type: ignore[no-untyped-call]
        for _, parameter in trained_factors(decoder, "own"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
            parameter.data -= 0.05 * parameter.grad.sign()
            parameter.grad = None
        refresh_trained(decoder)
        engine.use_adapter("own")
        texts.append([out for _, out, _ in found.values()])
        assert update == 0 or texts[0] != texts[1], "the update is felt"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masters_that_learn_have_the_bits_of_their_rollouts(precision: str, models_folder: Path) -> None:
    """The same decoder samples and learns; a packed copy of what it learnt gives the same bits elsewhere."""
    decoder = load_decoder(tiny.save("llama", models_folder), parse_precision(precision), pack=False)
    train_all(decoder)
    engine = engine_over(decoder)
    for _ in range(2):
        found = rollouts(engine, [None])
        difference, loss = worst(decoder, list(found.values()), 4)
        assert difference == 0.0
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter -= 0.01 * parameter.grad.sign()
                parameter.grad = None
        refresh_trained(decoder)
        engine.weights_changed()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_requests_with_several_adapters_share_batches(precision: str, models_folder: Path) -> None:
    """Each has the tokens and log-probabilities that it has alone, recorded steps and prefixes included."""
    decoder = load_decoder(tiny.save("qwen2", models_folder), parse_precision(precision), pack=True)
    for name, seed in (("one", 1), ("two", 2)):
        add_adapter(decoder, name, LoraConfig(r=4, targets=("all-linear",)), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for part in factors(decoder, name).values():
            part.lora_B.weight.data.normal_(0, 0.2, generator=generator)
            part.lora_B.refresh()
    engine = engine_over(decoder)
    engine.use_adapter("one")
    engine.use_adapter("two")
    mixed = rollouts(engine, ["one", "two", None])
    alone = {}
    for name in ("one", "two", None):
        single = engine_over(decoder, max_concurrent=1)
        for adapter in ("one", "two"):
            single.use_adapter(adapter)
        alone[name] = rollouts(single, [name])
    for number in range(12):
        assert mixed[f"{number}"] == alone[("one", "two", None)[number % 3]][f"{number}"]
    assert len({tuple(alone[name]["0"][1]) for name in alone}) == 3, "the adapters are felt"
    with pytest.raises(RequestError, match="no adapter 'three'"):
        engine.submit(GenerateRequest("x", [5], SamplingParams(max_tokens=1), adapter="three"))


def test_entropies_are_those_of_the_distribution_and_differentiable(models_folder: Path) -> None:
    decoder = load_decoder(tiny.save("llama", models_folder), parse_precision("fp32"), pack=False)
    train_all(decoder)
    ids = torch.arange(5, 30)
    hidden = hidden_states(decoder, ids, torch.arange(25), [25])
    logprobs, entropies = logprobs_and_entropies(decoder, hidden, ids)
    logits = decoder.logits(hidden).double()
    want = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(entropies.double(), want.entropy(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logprobs, want.log_prob(ids), rtol=1e-6, atol=1e-6)
    weight = decoder.layers[0].mlp.down_proj.weight
    ours = torch.autograd.grad((logprobs.sum() + 3 * entropies.sum()), weight, retain_graph=True)[0]
    theirs = torch.autograd.grad((want.log_prob(ids).sum() + 3 * want.entropy().sum()), weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
