"""Guessing ahead changes nothing: by module or oracle, right or wrong, the output is the one without guesses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import Outcome, alone, make_engine, run_schedule

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.engine import drafts
from deepseek_r1.engine.request import GenerateRequest, SamplingParams, ThinkFormat, TokenLogprobs, TokenOutput
from deepseek_r1.engine.sequence import Sequence
from deepseek_r1.layers.context import Packed
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.saving import save_model
from deepseek_r1.models.surgery import pack_linears
from support import tiny


@pytest.fixture(scope="module")
def decoders(models_folder: Path) -> dict[str, Decoder]:
    source = tiny.save("deepseek_v3", models_folder)
    mtp = tiny.with_prediction_module(source)
    pack_linears(mtp)
    return {"llama": load_decoder(tiny.save("llama", models_folder), DeepSeekConfig(), pack=True), "deepseek_v3": mtp}


def test_random_schedules_with_guesses(decoders: dict[str, Decoder]) -> None:
    seen: list[Outcome] = []

    @settings(max_examples=40, deadline=None, derandomize=True)  # `make prove` draws many more
    @given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(decoders)))
    def check(seed: int, name: str) -> None:
        outcome = run_schedule(decoders[name], seed, guesses=True)
        seen.append(outcome)
        assert not outcome.problems, outcome.problems

    check()
    assert sum(o.accepted for o in seen) > 100, "right guesses must be kept"
    assert sum(o.drafted - o.accepted for o in seen) > 100, "wrong ones must be there to be refused"
    assert sum(o.preemptions for o in seen) > 5
    assert sum(len(o.ties) for o in seen) <= len(seen) // 10


def test_random_schedules_with_looked_up_guesses(decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties, stop strings, thinking budgets, preemption, cancellation, prefix hits and resumes among them."""
    seen: list[Outcome] = []
    least = drafts.LEAST_CHANCE

    @settings(max_examples=24, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(decoders)), eager=st.booleans())
    def check(seed: int, name: str, eager: bool) -> None:
        monkeypatch.setattr(drafts, "LEAST_CHANCE", 0 if eager else least)  # eager: whatever matches is guessed
        outcome = run_schedule(decoders[name], seed, ngram=True)
        seen.append(outcome)
        assert not outcome.problems, outcome.problems

    check()
    assert sum(o.accepted for o in seen) > 100, "right guesses must be kept"
    assert sum(o.drafted - o.accepted for o in seen) > 100, "wrong ones must be there to be refused"
    assert sum(o.preemptions for o in seen) > 5 and sum(o.hits for o in seen) > 100
    assert sum(len(o.ties) for o in seen) <= len(seen) // 10


def test_guesses_follow_from_the_tokens_alone(decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batch, the step's budget or the preemptions: after the same tokens the same is guessed."""
    look_up = Sequence.look_up_drafts
    guessed: dict[tuple[int, ...], tuple[int, ...]] = {}
    again = 0

    def noted(self: Sequence) -> None:
        nonlocal again
        look_up(self)
        if self.computed == len(self.tokens) - 1 and not self.finish_reason:
            again += tuple(self.tokens) in guessed and bool(self.drafts)
            assert guessed.setdefault(tuple(self.tokens), self.drafts) == self.drafts

    monkeypatch.setattr(Sequence, "look_up_drafts", noted)
    prompts = [([40, 41, 42, 43, 44, 45, start] * 5)[:30] for start in (50, 51, 52, 53)]
    params = SamplingParams(40, temperature=0, ignore_eos=True)
    preempted = 0
    for blocks, concurrent, step_tokens in ((64, 1, 256), (64, 4, 256), (64, 4, 5), (7, 4, 64)):
        engine = make_engine(decoders["llama"], blocks, 16, concurrent, step_tokens, "ngram")
        for index, prompt in enumerate(prompts):
            engine.submit(GenerateRequest(f"r{index}", prompt, params))
        while engine.has_work:
            engine.step()
        preempted += engine.stats.preemptions
    assert again > 30 and preempted > 0


def test_the_comparison_can_fail(decoders: dict[str, Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence that takes a guess for the truth is found out."""
    append = Sequence.append

    def credulous(self: Sequence, token: int, logprobs: TokenLogprobs | None) -> TokenOutput:
        return append(self, self.drafts[0] if self.drafts else token, logprobs)

    monkeypatch.setattr(Sequence, "append", credulous)
    assert [p for seed in range(6) for p in run_schedule(decoders["llama"], seed, guesses=True).problems]


@torch.no_grad()
def test_the_module_s_guess_is_its_definition(decoders: dict[str, Decoder]) -> None:
    """What the engine drafts is the module over the whole sequence at once: paged, chunked and after a prefix hit."""
    decoder = decoders["deepseek_v3"]
    prompt = torch.randint(8, 320, (45,), generator=torch.Generator().manual_seed(3)).tolist()
    engine = make_engine(decoder, 64, 16, 2, 13, "mtp")
    engine.submit(GenerateRequest("r", prompt, SamplingParams(6, temperature=0, ignore_eos=True)))
    compared = 0
    while engine.has_work:
        sequence = engine._sequences["r"]
        engine.step()
        if not sequence.drafts:
            continue
        ids = torch.tensor(sequence.tokens)
        positions = torch.arange(len(ids) - 1)
        hidden = decoder(ids[:-1], positions, Packed([len(ids) - 1]))
        guess = decoder.logits(decoder.predict(0, hidden, ids[1:], positions, Packed([len(ids) - 1])))[-1]
        assert sequence.drafts == (int(guess.argmax()),)
        compared += 1
    assert compared >= 4
    stats = engine.stats
    assert stats.generated_tokens == 6 and stats.draft_tokens >= stats.accepted_tokens


def test_prediction_modules_are_saved_and_loaded(models_folder: Path, tmp_path: Path) -> None:
    decoder = tiny.with_prediction_module(tiny.save("deepseek_v3", models_folder))
    folder = save_model(decoder, tmp_path / "mtp")
    again = load_decoder(folder, DeepSeekConfig(), pack=False, mtp=True)
    assert again.config.mtp_layers == 1
    for (name, one), (_, other) in zip(decoder.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    without = load_decoder(folder, DeepSeekConfig(), pack=False)
    assert len(without.mtp) == 0 and len(without.layouts) == len(decoder.layouts) - 1


def test_budgets_and_stops_hold_within_a_step_of_several_tokens(decoders: dict[str, Decoder]) -> None:
    """max_tokens, stop strings and the thinking budget end or turn the answer at the exact token."""
    decoder = decoders["llama"]
    think = ThinkFormat(close_ids=(300, 301), starts_open=True)
    free = alone(decoder, GenerateRequest("r", [40, 41], SamplingParams(12, temperature=0, ignore_eos=True)))[0]
    text = "".join(chr(65 + token % 26) for token in free)
    cases = {
        "length": SamplingParams(7, temperature=0, ignore_eos=True),
        "stop": SamplingParams(12, temperature=0, ignore_eos=True, stop=(text[4:7].encode(),)),
        "think": SamplingParams(12, temperature=0, ignore_eos=True, max_thinking_tokens=3, think=think),
    }
    for name, params in cases.items():
        want = alone(decoder, GenerateRequest(name, [40, 41], params))[0]
        engine = make_engine(decoder, 64, 16, 2, 64)

        def draft(done, want=want):  # type: ignore[no-untyped-def]
            for item in done.work:
                made = len(item.sequence.output_ids)
                item.sequence.drafts = tuple(want[made : made + min(3, item.sequence.room_for_drafts)])

        engine.runner.draft = draft  # type: ignore[method-assign]
        engine.submit(GenerateRequest(name, [40, 41], params))
        got: list[int] = []
        steps = 0
        while engine.has_work:
            for output in engine.step():
                got += output.token_ids
            steps += 1
        assert got == want and steps < len(want)
