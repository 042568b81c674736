"""Learning from examples: the cross-entropy of the tokens that the loss asks for, over packed sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.examples import Example
from deepseek_r1.data.order import batches
from deepseek_r1.data.packing import Batch, collate
from deepseek_r1.train.forward import hidden_states, logprobs_of
from deepseek_r1.train.loop import MicroBatch
from deepseek_r1.train.policy import Policy


class Supervised:
    """Examples in an order that (seed, epoch) gives; a step's loss is the mean over its trained tokens."""

    def __init__(self, policy: Policy, examples: Sequence[Example], digest: str, config: TrainConfig) -> None:
        self.policy, self.examples, self.digest, self.config = policy, examples, digest, config
        self._lengths = [len(example.ids) for example in examples]
        self._epoch: tuple[int, list[list[int]]] = (0, self._order(0))
        self._counts = [len(self._epoch[1])]  # batches of each epoch met so far

    def _order(self, epoch: int) -> list[list[int]]:
        sequences, capacity = self.config.batch_sequences, self.config.batch_tokens
        return batches(
            self._lengths, seed=self.config.seed, epoch=epoch, capacity=capacity, sequences_per_batch=sequences
        )

    def steps(self) -> int:
        """How many steps the epochs have."""
        whole, rest = int(self.config.epochs), self.config.epochs % 1
        count = sum(len(self._order(epoch)) for epoch in range(whole))
        if rest:
            count += round(rest * len(self._order(whole)))
        return max(1, count // self.config.accumulate)

    def micro_batches(self, step: int) -> Sequence[MicroBatch]:
        """`accumulate` batches of the stream of all epochs."""
        first = step * self.config.accumulate
        return [self._batch(index) for index in range(first, first + self.config.accumulate)]

    def _batch(self, index: int) -> MicroBatch:
        batch = collate([self.examples[i] for i in self.chosen(index)])
        return MicroBatch(batch, float(batch.weights.sum()), len(batch.input_ids))

    def chosen(self, index: int) -> list[int]:
        """The examples of batch `index` of the whole run."""
        epoch = 0
        while index >= self._count(epoch):
            index -= self._count(epoch)
            epoch += 1
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self._epoch[1][index]

    def _count(self, epoch: int) -> int:
        while len(self._counts) <= epoch:
            self._counts.append(len(self._order(len(self._counts))))
        return self._counts[epoch]

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        """The summed cross-entropy in nats."""
        content: Batch = batch.content
        hidden = hidden_states(self.policy.decoder, content.input_ids, content.positions, content.lengths)
        rows = content.weights.nonzero().squeeze(1)
        logprobs = logprobs_of(self.policy.decoder, hidden[rows], content.targets[rows])
        return -(logprobs * content.weights[rows]).sum(), {}

    def finished(self, step: int) -> Mapping[str, float]:
        """Nothing to note."""
        return {}

    def state(self) -> dict[str, Any]:
        """The data that the order belongs to: the rest follows from the step."""
        return {"digest": self.digest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises `ConfigError` when the data are others than those of the run."""
        if state["digest"] != self.digest:
            raise ConfigError(
                "the data have changed since the run was started", remedy="restore the files, or choose another out"
            )
