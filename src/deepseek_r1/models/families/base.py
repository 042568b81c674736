"""What a family consists of: how it reads and writes its configuration, and what its weights are called elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from deepseek_r1.models.config import Fields, ModelConfig
from deepseek_r1.models.families.forms import ROWS, Form
from deepseek_r1.models.shapes import Shapes


@dataclass(frozen=True)
class Weight:
    """One stored tensor: its name in the file, and the parameters of ours that it holds.

    `{i}` stands for the layer, `{m}` for a layer behind the last one (a prediction module, `mtp.{i}` here), and `{e}`
    for the expert: parameters with a leading dimension of experts are stored one tensor per expert.
    """

    stored: str
    ours: tuple[str, ...]
    form: Form = ROWS

    def fill(self, index: int, layers: int) -> Weight:
        """The entry of layer or module `index`."""
        stored = self.stored.replace("{i}", str(index)).replace("{m}", str(layers + index))
        return replace(self, stored=stored, ours=tuple(name.replace("{i}", str(index)) for name in self.ours))

    def names(self, experts: int) -> list[str]:
        """The stored names: one, or one per expert."""
        return [self.stored.replace("{e}", str(e)) for e in range(experts)] if "{e}" in self.stored else [self.stored]


def stored_shape(weight: Weight, shapes: Shapes) -> tuple[int, ...]:
    """The shape that one stored tensor of this entry has (of one expert, where they are stored apart)."""
    sizes = [shapes[name] for name in weight.ours]
    return sizes[0][1:] if "{e}" in weight.stored else weight.form.stored_shape(sizes)


Table = tuple[Weight, ...]


@dataclass(frozen=True)
class Family:
    """An architecture: its configuration in both formats, and its two-way name tables.

    `to_hf` gives the fields of config.json that `from_hf` reads, and whatever else transformers needs to load it.
    Without an `hf` table weights are stored under our own names.
    `gguf_older` are names that older converters gave (see `for_file`). `gguf_divisors` are the tensors of rope's
    frequency divisors: the first is read, the others need not be.
    """

    name: str
    from_hf: Callable[[Fields], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    hf: Table | None
    from_gguf: Callable[[Fields, set[str]], ModelConfig] | None = None
    gguf: Table = ()
    gguf_older: Table = ()
    gguf_divisors: tuple[str, ...] = ("rope_freqs.weight",)

    def for_file(self, tensors: Collection[str]) -> Family:
        """The family as a GGUF file of these `tensors` has it: with those of its older names that are among them."""
        older = (entry for entry in self.gguf_older if entry.fill(0, 0).names(1)[0] in tensors)
        return replace(self, gguf=changed(self.gguf, *older))

    def weights(self, format: str, config: ModelConfig, shapes: Shapes) -> Iterator[Weight]:
        """The entries that a model of these `shapes` has, layers filled in: those whose parameters exist."""
        table = self.gguf if format == "gguf" else self.hf
        if table is None:
            yield from (Weight(name, (name,)) for name in shapes)
            return
        for weight in table:
            if "{i}" not in weight.ours[0]:
                filled = [weight]
            else:
                count = config.mtp_layers if weight.ours[0].startswith("mtp.") else config.layers
                filled = [weight.fill(index, config.layers) for index in range(count)]
            yield from (entry for entry in filled if entry.ours[0] in shapes)


def weight_and_bias(stored: str, *ours: str, form: Form = ROWS) -> Table:
    """The entries of a linear, or of several that are stored as one."""
    return tuple(
        Weight(f"{stored}.{kind}", tuple(f"{name}.{kind}" for name in ours), form) for kind in ("weight", "bias")
    )


def changed(table: Table, *entries: Weight) -> Table:
    """`table` with `entries` in place of those that hold any of the same parameters."""
    taken = {name for entry in entries for name in entry.ours}
    return (*(weight for weight in table if not taken & set(weight.ours)), *entries)
