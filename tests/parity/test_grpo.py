"""GRPO's loss and gradient on frozen rollouts equal TRL's; so do advantages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.config.train import TrainConfig
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.surgery import train_all
from deepseek_r1.models.text.load import load_tokenizer
from deepseek_r1.train.grpo import Grpo, answers_of, bundled
from deepseek_r1.train.loop import MicroBatch
from deepseek_r1.train.policy import Policy
from deepseek_r1.train.rollout import Rollout, advantages
from support.small_model import small_model


class NoSampler:
    def sample(self, prompts: Any, group: int, tokens: int, seed: int) -> Any:
        raise AssertionError("the rollouts are frozen")


def frozen(vocabulary: int) -> list[Rollout]:
    """Answers of different lengths, two to a prompt, old log-probabilities around the policy's: some are clipped."""
    draw = random.Random(4)
    rollouts = []
    prompt: list[int] = []
    for number in range(6):
        if number % 2 == 0:
            prompt = [draw.randrange(vocabulary) for _ in range(4 + number)]
        ids = [draw.randrange(vocabulary) for _ in range(9 - number)]
        rollouts.append(Rollout(prompt, ids, [], draw.choice((-1.5, -0.5, 0.7, 1.2))))
    return rollouts


def logprobs_by_transformers(model: torch.nn.Module, rollout: Rollout) -> torch.Tensor:
    ids = torch.tensor([rollout.prompt + rollout.ids])
    logs = torch.log_softmax(model(ids).logits[0].double(), -1)
    first = len(rollout.prompt) - 1
    return logs[first:-1].gather(-1, ids[0, first + 1 :].unsqueeze(-1)).squeeze(-1)


def padded(rows: list[list[float]], left: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    values = [p + row if left else row + p for p, row in zip(pads, rows, strict=True)]
    masks = [
        [0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for p, r in zip(pads, rows, strict=True)
    ]
    return torch.tensor(values, dtype=dtype), torch.tensor(masks)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("kl", "entropy"), [(0.0, 0.0), (0.1, 0.0), (0.05, 0.01)])
def test_the_loss_is_trls(kl: float, entropy: float, models_folder: Path, tmp_path: Path) -> None:
    path = small_model(models_folder)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    vocabulary = model.config.vocab_size
    rollouts = []
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for rollout in frozen(vocabulary):
            own = logprobs_by_transformers(model, rollout)
            old = own + 0.3 * torch.randn(own.shape, generator=noise)
            rollouts.append(Rollout(rollout.prompt, rollout.ids, old.tolist(), rollout.advantage))

    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        loss_type="bnpo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=kl,
        entropy_coef=entropy,
        num_generations=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        bf16=False,
    )
    rows = Dataset.from_list([{"prompt": "1+1"}])
    trainer = GRPOTrainer(model, lambda completions, **_: [0.0] * len(completions), args=arguments, train_dataset=rows)
    prompt_ids, prompt_mask = padded([r.prompt for r in rollouts], True, torch.int64)
    completion_ids, completion_mask = padded([r.ids for r in rollouts], False, torch.int64)
    old, _ = padded([r.logprobs for r in rollouts], False, torch.float32)
    reference = torch.zeros_like(old)
    shift = torch.randn(old.shape, generator=noise)
    with torch.no_grad():
        for number, rollout in enumerate(rollouts):
            reference[number, : len(rollout.ids)] = logprobs_by_transformers(model, rollout).float()
        reference = reference + 0.2 * shift * completion_mask
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([r.advantage for r in rollouts]),
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
    }
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    wanted = trainer._compute_loss(trainer.model, inputs)
    wanted.backward()

    decoder = load_decoder(path, DeepSeekConfig(), pack=False)
    train_all(decoder)
    policy = Policy(decoder, dict(decoder.named_parameters()), None, str(path))
    config = TrainConfig(method="grpo", steps=1, stages=(1,), kl_weight=kl, entropy_weight=entropy, families=("gcd",))
    objective = Grpo(policy, NoSampler(), load_tokenizer(path), config)
    flat = torch.cat([reference[n, : len(r.ids)] for n, r in enumerate(rollouts)]).double()
    part = answers_of(bundled(rollouts, 1 << 20))
    with pytest.MonkeyPatch.context() as patch:
        real = __import__("deepseek_r1.train.grpo", fromlist=["grpo"])
        given = real.logprobs_of

        def logprobs_of(decoder: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (
                given(decoder, hidden, targets) if torch.is_grad_enabled() else flat
            )  # the reference is another model

        patch.setattr(real, "logprobs_of", logprobs_of)
        loss, figures = objective.loss(MicroBatch((0, part), len(part.rows), len(part.input_ids)))
    loss = loss / len(part.rows)
    assert figures["clipped"] > 0
    assert float(loss) == pytest.approx(float(wanted), rel=1e-4)
    loss.backward()
    theirs = dict(trainer.model.named_parameters())["model.layers.1.mlp.down_proj.weight"].grad
    ours = decoder.get_parameter("layers.1.mlp.down_proj.weight").grad
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_advantages_are_those_of_the_group() -> None:
    rewards = torch.tensor([0.0, 1.0, 1.5, 0.0, 0.5])
    want = (rewards - rewards.mean()) / (rewards.std() + 1e-4)  # as TRL scales rewards by group
    torch.testing.assert_close(torch.tensor(advantages(rewards.tolist())), want)
    for same in (1.0, 1.1, 0.1, 1 / 3):
        assert advantages([same] * 8) == [0.0] * 8, "its mean is another number in the last bits"
