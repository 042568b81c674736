"""Mixed precision: each named operator class computes in the format it was given, and the result stays near fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_families import ids_of, packed_logits, paged_logits

from deepseek_r1.config.precision import OPERATOR_CLASSES, DeepSeekConfig
from deepseek_r1.kernels import ops
from deepseek_r1.models.loading import load_decoder
from support import tiny

ATTENTION = "paged_attention" if ops.NATIVE else "attention"
OPS = {"linear": "linear", "norm": "rms_norm", "rope": "rope", "attention": ATTENTION, "activation": "gated"}


def observed(path: Path, config: DeepSeekConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[torch.dtype]]:
    """The dtypes in which each operator of one forward pass answered."""
    decoder = load_decoder(path, config, pack=True)
    seen: dict[str, set[torch.dtype]] = {name: set() for name in OPERATOR_CLASSES}
    with monkeypatch.context() as patch:
        for name, function in OPS.items():
            original = getattr(ops, function)

            def spy(*args: object, _name: str = name, _original: object = original, **kwargs: object) -> torch.Tensor:
                out = _original(*args, **kwargs)  # type: ignore[operator]
                head = _name == "linear" and out.shape[-1] == tiny.SHAPE["vocab_size"]
                seen["lm_head" if head else _name].add(out.dtype)
                return out

            patch.setattr(ops, function, spy)
        paged_logits(decoder, ids_of(9), [9])
    seen["embedding"].add(decoder.embedding.weight.dtype)
    seen["kv_cache"].add(decoder.layouts[0].dtype)
    return seen


@pytest.mark.parametrize("name", OPERATOR_CLASSES)
def test_each_class_computes_in_its_format(name: str, models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save("qwen3", models_folder)
    others = [other for other in OPERATOR_CLASSES if other != name]
    for low, high in ((name,), others), (others, (name,)):
        config = DeepSeekConfig(precision_mode="mixed", fp32_ops=list(high), bf16_ops=list(low))
        dtypes = observed(path, config, monkeypatch)
        for operator, found in dtypes.items():
            want = torch.bfloat16 if operator in low else torch.float32
            assert found == {want}, operator


def test_mixed_is_closer_to_fp32_than_bf16(models_folder: Path) -> None:
    path = tiny.save("llama", models_folder)
    ids = ids_of(40)
    full = packed_logits(load_decoder(path, DeepSeekConfig(), pack=True), ids)
    half = packed_logits(load_decoder(path, DeepSeekConfig("bf16"), pack=True), ids)
    mixed = DeepSeekConfig("mixed", fp32_ops=("linear", "attention", "activation", "embedding", "kv_cache"))
    near = packed_logits(load_decoder(path, mixed, pack=True), ids)
    assert full.dtype == half.dtype == near.dtype == torch.float32
    error, less = (half - full).abs().mean() / full.std(), (near - full).abs().mean() / full.std()
    assert less < error < 0.3 and less < 0.02
