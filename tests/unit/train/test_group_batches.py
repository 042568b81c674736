"""How a step's answers become batches: one copy of a prompt for its answers, and nothing computed for silent groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.config.train import TrainConfig
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.surgery import train_all
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.train.grpo import Grpo, answers_of, bundled
from deepseek_r1.train.policy import Policy
from deepseek_r1.train.rollout import Rollout
from support.small_model import small_model


def rollout(prompt: list[int], ids: list[int], advantage: float) -> Rollout:
    return Rollout(prompt, ids, [-1.0] * len(ids), advantage)


def test_answers_stand_behind_one_copy_of_their_prompt() -> None:
    first, second = [1, 2, 3], [4, 5]
    answers = [rollout(first, [7, 8, 9], 1.0), rollout(first, [6], -1.0), rollout(second, [8, 8], 0.5)]
    bundles = bundled(answers, 100)
    assert [len(bundle) for bundle in bundles] == [2, 1]
    part = answers_of(bundles)
    assert part.input_ids.tolist() == [1, 2, 3, 7, 8, 4, 5, 8]  # the last token of an answer is only a target
    assert part.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert part.lengths == (3, 2, 0, 2, 1) and part.prefixes == (None, 0, 0, None, 3)
    assert part.targets.tolist() == [7, 8, 9, 6, 8, 8]
    assert part.rows.tolist() == [2, 3, 4, 2, 6, 7]
    assert part.advantages.tolist() == [1.0, 1.0, 1.0, -1.0, 0.5, 0.5]


def test_a_bundle_keeps_to_the_batch() -> None:
    answers = [rollout([1, 2, 3, 4], [5] * 6, 1.0) for _ in range(5)]
    bundles = bundled(answers, 14)  # the prompt and two answers of five rows
    assert [len(bundle) for bundle in bundles] == [2, 2, 1]
    assert [len(bundle) for bundle in bundled(answers, 3)] == [1] * 5  # one at a time where even that is too much


@pytest.mark.parametrize("entropy", [0.0, 0.01])
def test_silent_groups_count_in_the_mean_alone(entropy: float, models_folder: Path) -> None:
    path = small_model(models_folder)
    config = TrainConfig(
        method="grpo",
        steps=4,
        stages=(1,),
        updates=4,
        entropy_weight=entropy,
        families=("gcd",),
        batch_tokens=40,
        max_length=40,
    )
    told = [rollout([9 + i, 3, 4], [5 + i, 6, 7, 8], (-1.0) ** i) for i in range(6)]
    silent = [rollout([30 + i, 3], [5, 6, 7], 0.0) for i in range(4)]

    def run(answers: list[Rollout]) -> tuple[float, float, int, torch.Tensor]:
        decoder = load_decoder(path, DeepSeekConfig(), pack=False)
        train_all(decoder)
        policy = Policy(decoder, dict(decoder.named_parameters()), None, str(path))
        objective = Grpo(policy, None, load_tokenizer(path), config)  # type: ignore[arg-type]
        state = objective.state() | {"rollouts": [one.as_json() for one in answers]}
        objective.load_state(state)
        parts = objective.micro_batches(1)
        total = sum((objective.loss(part)[0] for part in parts), torch.zeros(()))
        total.backward()  # type: ignore[no-untyped-call]
        gradient = decoder.get_parameter("layers.1.mlp.down_proj.weight").grad
        assert gradient is not None
        return float(total.detach()), sum(part.count for part in parts), sum(part.tokens for part in parts), gradient

    loss, count, tokens, gradient = run(told + silent)
    alone, own, fewer, same = run(told)
    assert count == own + 12 == 36
    if entropy:
        assert tokens > fewer and loss != alone
    else:
        assert tokens == fewer and loss == alone and torch.equal(gradient, same)
        assert run(silent)[0] == 0.0  # nothing to learn from: one answer stands for all
