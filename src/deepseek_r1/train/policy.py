"""What learns: a decoder with an adapter over frozen packed weights, or with float32 masters of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deepseek_r1.config.lora import LoraConfig
from deepseek_r1.config.precision import parse_precision
from deepseek_r1.config.train import TrainConfig
from deepseek_r1.models.adapters import add_adapter, check_savable, factors, load_adapter, save_adapter, trained_factors
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.packed_cache import load_packed
from deepseek_r1.models.saving import save_model
from deepseek_r1.models.surgery import refresh_trained, train_all

ADAPTER, REFERENCE = "trained", "reference"
"""The names, inside a run, of the adapter that learns, and of the one that it started from."""


@dataclass
class Policy:
    """A decoder and its parameters that learn, by names that don't depend on how the rest is held."""

    decoder: Decoder
    parameters: dict[str, nn.Parameter]
    lora: LoraConfig | None
    base: str

    def refresh(self) -> None:
        """Bring what products read up to date, after a step."""
        refresh_trained(self.decoder)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within, every row goes through the adapter, and dropout drops."""
        self.decoder.train()
        try:
            with self.decoder.adapters.everywhere(None if self.lora is None else ADAPTER):
                yield
        finally:
            self.decoder.eval()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within, rows go through the policy as it was before it learnt, without dropout."""
        training = self.decoder.training
        self.decoder.eval()
        try:
            with self.decoder.adapters.everywhere(REFERENCE if factors(self.decoder, REFERENCE) else None):
                yield
        finally:
            self.decoder.train(training)

    def save(self, folder: Path) -> Path:
        """Write what was learnt: PEFT's files of the adapter, or the whole model."""
        if self.lora is not None:
            return save_adapter(self.decoder, ADAPTER, folder, self.lora, self.base)
        return save_model(self.decoder, folder, tokenizer_from=self.base)


def load_policy(config: TrainConfig, model: Path) -> Policy:
    """The policy that a run starts with. Raises what loading a model or an adapter raises."""
    if not config.adapter:
        decoder = load_decoder(
            model, parse_precision("fp32" if config.precision == "fp16" else config.precision), pack=False
        )
        train_all(decoder)
        decoder.recompute = config.activation_checkpointing
        return Policy(decoder, dict(decoder.named_parameters()), None, str(model))
    decoder = load_packed(model, parse_precision(config.base_precision))
    decoder.requires_grad_(False)
    decoder.recompute = config.activation_checkpointing
    # The engine drops nothing: rollouts would be of another policy than the one that learns.
    dropout = 0.0 if config.method == "grpo" else config.lora_dropout
    lora = LoraConfig(r=config.lora_r, alpha=config.lora_alpha, targets=config.lora_targets, dropout=dropout)
    check_savable(decoder)
    if config.start_from is None:
        add_adapter(decoder, ADAPTER, lora, seed=config.seed)
    else:
        lora = load_adapter(decoder, ADAPTER, config.start_from).update(dropout=dropout)
        for part in factors(decoder, ADAPTER).values():
            part.dropout = dropout
        if config.kl_weight:
            load_adapter(decoder, REFERENCE, config.start_from)
    return Policy(decoder, dict(trained_factors(decoder, ADAPTER)), lora, config.model)


def autocast(config: TrainConfig) -> torch.autocast:
    """What a forward pass runs in: fp16 is torch's business, other formats are the weights' own."""
    return torch.autocast("cpu", dtype=torch.float16, enabled=config.precision == "fp16")
