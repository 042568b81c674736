from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_r1.config.precision import parse_precision
from deepseek_r1.engine.engine import Engine
from deepseek_r1.evaluate.targets import ModelTarget
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.text.load import load_tokenizer
from support.byte_model import PLAIN, byte_model


@pytest.fixture
def target(models_folder: Path) -> Callable[..., ModelTarget]:
    """Makes targets over the tiny model whose tokens are bytes."""

    def make(template: str | None = PLAIN, max_concurrent: int = 4) -> ModelTarget:
        folder = byte_model(models_folder, template)
        decoder = load_decoder(folder, parse_precision("fp32"), pack=True)
        engine = Engine(decoder, num_blocks=160, max_concurrent=max_concurrent)
        return ModelTarget(engine, load_tokenizer(folder), "tiny")

    return make
