"""The model of a verb that runs one in its own process to talk with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from deepseek_r1.config.local import SamplingConfig

if TYPE_CHECKING:
    from deepseek_r1.serve.local import DeepSeekModel

AnyConfig = TypeVar("AnyConfig", bound=SamplingConfig)


def open_model(config: AnyConfig) -> tuple[DeepSeekModel, AnyConfig]:
    """The loaded model, and `config` with the adapter that belongs to the model unless it names one, or none.

    Raises `DeepSeekError` with the remedy when the model or its adapter can't be loaded.
    """
    from deepseek_r1.models.embedded import embedded_adapter
    from deepseek_r1.serve.local import DeepSeekModel

    found = embedded_adapter(config.model) if config.adapter is None else None
    if found is not None:
        name, folder = found
        config = config.update(adapter=f"{name}={folder}")
    model = DeepSeekModel.from_pretrained(
        config.model,
        precision=config.precision,
        memory=config.memory,
        max_concurrent=1,
        speculative=config.speculative,
        adapters=config.adapters,
    )
    return model, config
