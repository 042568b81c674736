"""Group-relative policy optimisation: answers of the policy to problems with computed truth, weighed within groups.

GRPO (Shao et al. 2024) with DAPO's changes (Yu et al. 2025): a loss per token, a higher upper clip, and groups whose
answers all earn the same left out and replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.data.packing import pack_lengths
from deepseek_r1.kernels import ops
from deepseek_r1.models.text.tokenizer import Tokenizer
from deepseek_r1.train.curriculum import Curriculum
from deepseek_r1.train.forward import hidden_states, logprobs_and_entropies, logprobs_of
from deepseek_r1.train.loop import MicroBatch
from deepseek_r1.train.policy import Policy
from deepseek_r1.train.rewards import Reward, RewardFunction, load_stage_specific_reward
from deepseek_r1.train.rollout import Rollout, Sampler, advantages, judge


@dataclass(frozen=True)
class Answers:
    """Prompts and answers end to end: (T,) ids and positions, and what each of the n sampled tokens needs, (n,) each.

    Answers go on from the end of their prompt (`prefixes`), which is there once.
    """

    input_ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    prefixes: tuple[int | None, ...]
    rows: Tensor
    targets: Tensor
    old: Tensor
    advantages: Tensor


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) of each token, and which tokens the clip holds back: (n,)."""
    ratio = torch.exp(logprobs - old)
    held = torch.clamp(ratio, 1 - low, 1 + high)
    loss = -torch.minimum(ratio * advantages, held * advantages)
    clipped = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return loss, clipped


def divergence(logprobs: Tensor, reference: Tensor, old: Tensor) -> Tensor:
    """An estimate of KL(policy || reference) from each token, whose gradient is unbiased: (n,).

    Schulman's k3 times the ratio to the policy that sampled the token (DeepSeek-V3.2, section 3.1).
    """
    difference = reference - logprobs
    return torch.exp(logprobs - old) * (torch.exp(difference) - difference - 1)


class Grpo:
    """The objective. `note` is given the rows of every step's rollouts, for whoever wants to look at them."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        tokenizer: Tokenizer,
        config: TrainConfig,
        *,
        note: Callable[[int, list[dict[str, Any]]], None] | None = None,
        reward: Reward | RewardFunction | None = None,
    ) -> None:
        self.policy, self.sampler, self.tokenizer, self.config = policy, sampler, tokenizer, config
        self.curriculum = Curriculum(config.families, config.seed)
        self._note = note
        self._reward = reward
        self._rollouts: list[Rollout] = []
        self._figures: dict[str, float] = {}

    def stage(self, step: int) -> int:
        """The stage of a step: the stages share out the steps evenly."""
        assert self.config.steps is not None
        stages = self.config.stages
        return stages[min(step * len(stages) // self.config.steps, len(stages) - 1)]

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        """The step's answers in packed batches; new ones every `updates` steps."""
        if step % self.config.updates == 0 or not self._rollouts:
            self._sample(step)
        told = self._rollouts
        if not self.config.kl_weight and not self._entropy_weight(step):
            # What earned its group's mean has a loss and a gradient of exactly 0: it counts in the mean alone.
            told = [rollout for rollout in told if rollout.advantage] or told[:1]
        silent = sum(len(rollout.ids) for rollout in self._rollouts) - sum(len(rollout.ids) for rollout in told)
        bundles = bundled(told, self.config.batch_tokens)
        lengths = [_tokens(bundle) for bundle in bundles]
        groups = pack_lengths(lengths, max(self.config.batch_tokens, *lengths))
        parts = [answers_of([bundles[i] for i in group]) for group in groups]
        return [
            MicroBatch((step, part), len(part.rows) + (silent if number == 0 else 0), len(part.input_ids))
            for number, part in enumerate(parts)
        ]

    def _entropy_weight(self, step: int) -> float:
        return self.config.entropy_weight * self.stage(step)

    def _sample(self, step: int) -> None:
        """Ask problems until there are enough groups that say something, or the rounds are used up."""
        config = self.config
        reward = self._reward or load_stage_specific_reward(self.stage(step), limit=config.answer_tokens)
        told: list[list[Rollout]] = []
        silent: list[list[Rollout]] = []
        rows: list[dict[str, Any]] = []
        for attempt in range(config.most_rounds):
            asked = self.curriculum.draw(step, attempt, config.prompts)
            prompts = [self._encode(problem.question) for problem in asked]
            seed = ((config.seed * 1_000_003 + step) * 64 + attempt) * 4096 % (1 << 62)
            for problem, prompt, answers in zip(
                asked, prompts, self.sampler.sample(prompts, config.group, config.answer_tokens, seed), strict=True
            ):
                judged = judge(problem, answers, self.tokenizer, reward)
                weights = advantages([row["reward"] for row in judged])
                rows += [
                    row | {"advantage": weight, "attempt": attempt} for row, weight in zip(judged, weights, strict=True)
                ]
                group = [
                    Rollout(prompt, answer.ids, answer.logprobs, weight)
                    for answer, weight in zip(answers, weights, strict=True)
                ]
                (told if any(weights) else silent).append(group)
            if len(told) >= config.prompts:
                break
        # Where too few groups say anything, the others fill the step up: they count in its mean, and teach nothing.
        chosen = (told + silent)[: config.prompts]
        self._rollouts = [rollout for group in chosen for rollout in group]
        self._take_figures(step, rows, len(told), len(silent))
        if self._note is not None:
            self._note(step + 1, rows)

    def _encode(self, question: str) -> list[int]:
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _take_figures(self, step: int, rows: list[dict[str, Any]], told: int, silent: int) -> None:
        by_family: dict[str, list[float]] = {}
        for row in rows:
            by_family.setdefault(row["family"], []).append(row["correct"])
        self.curriculum.note({family: sum(values) / len(values) for family, values in by_family.items()})
        count = len(rows)
        self._figures = {
            "reward": sum(row["reward"] for row in rows) / count,
            "pass_rate": sum(row["correct"] for row in rows) / count,
            "answer_tokens": sum(row["tokens"] for row in rows) / count,
            "truncated": sum(not row["finished"] for row in rows) / count,
            "reward_errors": float(sum(row["error"] is not None for row in rows)),
            "groups": float(told),
            "groups_without_signal": float(silent),
            "level": self.curriculum.mean_level,
            "stage": float(self.stage(step)),
        }

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        """The summed loss of the tokens that were sampled."""
        step, part = batch.content
        decoder, config = self.policy.decoder, self.config
        hidden = self._hidden(part)
        weight = self._entropy_weight(step)
        if weight:
            logprobs, entropies = logprobs_and_entropies(decoder, hidden, part.targets)
        else:
            logprobs, entropies = logprobs_of(decoder, hidden, part.targets), torch.zeros(len(part.rows))
        loss, clipped = policy_loss(logprobs, part.old, part.advantages, config.clip_low, config.clip_high)
        total = loss.sum() - weight * entropies.sum()
        figures = {"clipped": float(clipped.sum()), "entropy": float(entropies.detach().sum())}
        if config.kl_weight:
            with torch.no_grad(), self.policy.reference():
                reference = logprobs_of(decoder, self._hidden(part), part.targets)
            apart = divergence(logprobs, reference, part.old)
            total = total + config.kl_weight * apart.sum()
            figures["kl"] = float(apart.detach().sum())
        return total, figures

    def _hidden(self, part: Answers) -> Tensor:
        every = hidden_states(self.policy.decoder, part.input_ids, part.positions, part.lengths, part.prefixes)
        return ops.take_rows(every, part.rows)

    def finished(self, step: int) -> Mapping[str, float]:
        """The figures of the step's rollouts."""
        return self._figures

    def state(self) -> dict[str, Any]:
        """The curriculum, and the answers that later steps still learn from."""
        kept = self._rollouts if self.config.updates > 1 else []
        return {
            "curriculum": self.curriculum.state(),
            "rollouts": [rollout.as_json() for rollout in kept],
            "figures": self._figures,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Be as the objective was that gave `state`."""
        self.curriculum.load_state(state["curriculum"])
        self._rollouts = [Rollout(**row) for row in state["rollouts"]]
        self._figures = dict(state["figures"])


def bundled(rollouts: Sequence[Rollout], most: int) -> list[list[Rollout]]:
    """Answers to one prompt that stand side by side, cut where it and they would have more than `most` tokens."""
    bundles: list[list[Rollout]] = []
    for rollout in rollouts:
        last = bundles[-1] if bundles else None
        if last is None or last[0].prompt != rollout.prompt or _tokens([*last, rollout]) > most:
            bundles.append([])
        bundles[-1].append(rollout)
    return bundles


def _tokens(bundle: Sequence[Rollout]) -> int:
    # The last token of an answer is only ever a target.
    return len(bundle[0].prompt) + sum(len(rollout.ids) - 1 for rollout in bundle)


def answers_of(bundles: Sequence[Sequence[Rollout]]) -> Answers:
    """Bundles as one packed batch. The row before a token is the one that it was sampled from."""
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    prefixes: list[int | None] = []
    rows: list[int] = []
    targets: list[int] = []
    old: list[float] = []
    weights: list[float] = []
    for bundle in bundles:
        prompt, root = bundle[0].prompt, len(lengths)
        ids += prompt
        positions += range(len(prompt))
        lengths.append(len(prompt))
        prefixes.append(None)
        first = len(ids) - 1
        for rollout in bundle:
            own = len(rollout.ids) - 1
            rows += [first, *range(len(ids), len(ids) + own)]
            ids += rollout.ids[:-1]
            positions += range(len(prompt), len(prompt) + own)
            lengths.append(own)
            prefixes.append(root)
            targets += rollout.ids
            old += rollout.logprobs
            weights += [rollout.advantage] * len(rollout.ids)
    return Answers(
        torch.tensor(ids),
        torch.tensor(positions),
        tuple(lengths),
        tuple(prefixes),
        torch.tensor(rows),
        torch.tensor(targets),
        torch.tensor(old, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
    )
