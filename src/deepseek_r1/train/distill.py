"""Learning from a teacher: the cross-entropy of examples, and hidden states brought near those of a larger model.

The loss of a token is (1 - share) * cross-entropy + share * distance; 0.7 and 0.3 are the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deepseek_r1.config.train import TrainConfig
from deepseek_r1.core.errors import ConfigError
from deepseek_r1.data.examples import Example
from deepseek_r1.data.packing import Batch
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.train.forward import hidden_states, logprobs_of
from deepseek_r1.train.loop import MicroBatch
from deepseek_r1.train.policy import Policy
from deepseek_r1.train.supervised import Supervised

PROJECTION = "projection."
"""What the names of the maps from the student's width to the teacher's begin with."""


class Distilled(Supervised):
    """Examples whose trained tokens the student also represents as the teacher does, layer for layer.

    Each layer of the student is held against one of the teacher, through a linear map that is learnt beside it and
    thrown away at the end. Both states are brought to a root mean square of 1 first: a few directions of a residual
    stream are hundreds of times larger than the rest, and would be all that is learnt.
    """

    def __init__(
        self, policy: Policy, teacher: Decoder, examples: Sequence[Example], digest: str, config: TrainConfig
    ) -> None:
        super().__init__(policy, examples, digest, config)
        student = policy.decoder
        if teacher.config.vocab_size != student.config.vocab_size:
            raise ConfigError(
                f"the teacher has {teacher.config.vocab_size} tokens and the student {student.config.vocab_size}",
                remedy="choose a teacher with the student's tokenizer",
            )
        self.teacher = teacher
        self.layers = layer_map(len(student.layers), len(teacher.layers), config.teacher_layers)
        generator = torch.Generator().manual_seed(config.seed)
        wide, narrow = teacher.config.hidden_size, student.config.hidden_size
        self._maps: list[nn.Parameter] = []
        for index in range(len(self.layers)):
            drawn = torch.empty(wide, narrow).normal_(0, narrow**-0.5, generator=generator)
            self._maps.append(nn.Parameter(drawn))
            policy.parameters[f"{PROJECTION}{index}.weight"] = self._maps[-1]

    def loss(self, batch: MicroBatch) -> tuple[Tensor, Mapping[str, float]]:
        """The summed loss of the trained tokens."""
        content: Batch = batch.content
        rows = content.weights.nonzero().squeeze(1)
        weights = content.weights[rows]
        with torch.no_grad(), _outputs(self.teacher) as wanted:
            hidden_states(self.teacher, content.input_ids, content.positions, content.lengths)
        with _outputs(self.policy.decoder) as found:
            hidden = hidden_states(self.policy.decoder, content.input_ids, content.positions, content.lengths)
        entropy = -(logprobs_of(self.policy.decoder, hidden[rows], content.targets[rows]) * weights).sum()
        distances = [
            (_even(found[own][rows].float() @ weight.t()) - _even(wanted[other][rows].float())).square().mean(-1)
            for own, (other, weight) in enumerate(zip(self.layers, self._maps, strict=True))
        ]
        distance = (torch.stack(distances).mean(0) * weights).sum()
        share = self.config.hidden_share
        figures = {"cross_entropy": float(entropy.detach()), "distance": float(distance.detach())}
        return (1 - share) * entropy + share * distance, figures


def layer_map(student: int, teacher: int, given: Sequence[int] = ()) -> list[int]:
    """The teacher's layer for each of the student's: `given`, or evenly spread, the last one for the last.

    Raises `ConfigError` for layers that aren't there, or another number of them than the student has.
    """
    if not given:
        return [round((index + 1) * teacher / student) - 1 for index in range(student)]
    if len(given) != student or not all(0 <= layer < teacher for layer in given):
        raise ConfigError(
            f"teacher_layers names {len(given)} layers of 0 to {teacher - 1} for the student's {student}",
            remedy="name one layer of the teacher for each of the student's, or leave it out",
        )
    return list(given)


def _even(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


@contextmanager
def _outputs(decoder: Decoder) -> Iterator[list[Tensor]]:
    """The layers' outputs of the forward pass within, in order."""
    outputs: list[Tensor] = []

    def note(module: nn.Module, given: object, output: Tensor) -> None:
        outputs.append(output)

    hooks = [layer.register_forward_hook(note) for layer in decoder.layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
