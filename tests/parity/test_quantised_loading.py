"""Weights loaded in 8 and 4 bits: a file's own blocks bit for bit, others quantised once; logits of these values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_writer import write_gguf
from test_families import ids_of, packed_logits, paged_logits
from transformers import LlamaConfig, MixtralConfig, Phi3Config

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.core.errors import CheckpointError
from deepseek_r1.kernels import ops
from deepseek_r1.kernels.quantised import quantise
from deepseek_r1.layers.linear import LinearGroup, PackedEmbedding, PackedLinear, PackedLinearGroup
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.checkpoint.safetensors import write_safetensors
from deepseek_r1.models.formats import FOUR_BITS
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.locate import locate_model
from deepseek_r1.serve.local import DeepSeekModel
from support import tiny
from support.blob_weight import BlobStack, BlobWeight


@pytest.fixture
def wide(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Tiny models whose rows divide into blocks of 32."""
    shape = tiny.SHAPE | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    monkeypatch.setitem(tiny.CONFIGS, "wide-llama", lambda: LlamaConfig(**shape, tie_word_embeddings=True))
    experts = {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}
    monkeypatch.setitem(tiny.CONFIGS, "wide-mixtral", lambda: MixtralConfig(**shape, **experts))
    monkeypatch.setitem(tiny.CONFIGS, "wide-phi3", lambda: Phi3Config(**shape, pad_token_id=None, sliding_window=11))
    return lambda family: tiny.save(f"wide-{family}", models_folder)


def requantised(source: Path, path: Path, kinds: dict[str, str]) -> Path:
    """A copy of a GGUF file whose matrices that end in a key have the type of its value, as ggml quantises them."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        kind = next((k for end, k in kinds.items() if tensor.name.endswith(end) and len(tensor.shape) > 1), None)
        values = np.asarray(tensor.data, dtype=np.float32)
        if kind is None:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, Type[kind]), raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(path: Path, precision: str) -> dict[str, torch.Tensor]:
    decoder = load_decoder(path, parse_precision(precision), pack=False)
    return {name: weight.detach() for name, weight in decoder.named_parameters()}


def test_the_default_model_loses_nothing_in_int4() -> None:
    """Every weight of the decoder, rows of q and k in our order, tables included."""
    path = locate_model("default")
    full, kept = weights(path, "fp32"), weights(path, "int4")
    assert len(full) == 272
    for name, weight in full.items():
        assert torch.equal(weight, kept[name]), name


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_files_own_blocks_are_kept_bit_for_bit(
    family: str, kind: str, wide: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = write_gguf(wide(family), tmp_path / "plain.gguf")
    path = requantised(plain, tmp_path / "own.gguf", {"weight": kind})
    with open_checkpoint(path) as checkpoint:
        assert sum(info.dtype == kind for info in checkpoint.tensors.values()) > 8
    full = weights(path, "fp32")
    for precision in ("int4", "int8"):
        kept = weights(path, precision)
        assert all(torch.equal(weight, kept[name]) for name, weight in full.items()), precision


def test_experts_that_are_stored_apart_in_several_types(wide: Callable[[str], Path], tmp_path: Path) -> None:
    """The first converters stored Mixtral's experts one by one. Where their types differ, they are quantised anew."""
    source = tmp_path / "stacked.gguf"
    write_gguf(wide("mixtral"), source)
    reader = gguf.GGUFReader(source)
    path = tmp_path / "apart.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        values = np.asarray(tensor.data, dtype=np.float32)
        if not tensor.name.endswith("_exps.weight"):
            writer.add_tensor(tensor.name, values)
            continue
        for expert, matrix in enumerate(values):
            name = tensor.name.replace("_exps", f".{expert}")
            kind = "Q8_0" if expert == 3 and "ffn_up" in name else "Q4_0"
            writer.add_tensor(name, gguf.quants.quantize(matrix, Type[kind]), raw_dtype=Type[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    full, kept = weights(path, "fp32"), weights(path, "int4")
    up, gate = (f"layers.0.mlp.experts.{name}_proj.weight" for name in ("up", "gate"))
    assert torch.equal(kept[gate], full[gate])
    for expert, matrix in enumerate(full[up]):
        assert torch.equal(kept[up][expert], quantise(matrix, 4, 32, multiples=FOUR_BITS.multiples).dequantise()), (
            expert
        )


def test_a_file_of_several_types(wide: Callable[[str], Path], tmp_path: Path) -> None:
    """q and k in 4 bits, v in 8: no product of all three; Q5_0 becomes 8 bits; what is float becomes 4."""
    plain = write_gguf(wide("llama"), tmp_path / "plain.gguf")
    kinds = {"attn_q.weight": "Q4_0", "attn_k.weight": "Q4_0", "attn_v.weight": "Q8_0", "ffn_down.weight": "Q5_0"}
    path = requantised(plain, tmp_path / "mixed.gguf", kinds)
    full, kept = weights(path, "fp32"), weights(path, "int4")
    for part in ("qkv.q_proj", "qkv.k_proj", "qkv.v_proj"):
        name = f"layers.0.attention.{part}.weight"
        assert torch.equal(full[name], kept[name])
    down, gate = "layers.0.mlp.down_proj.weight", "layers.0.mlp.gate_up.gate_proj.weight"
    assert torch.equal(kept[down], quantise(full[down], 8, 32).dequantise())
    assert torch.equal(kept[gate], quantise(full[gate], 4, 32, multiples=FOUR_BITS.multiples).dequantise())
    decoder = load_decoder(path, DeepSeekConfig("int4"), pack=True)
    qkv = decoder.get_submodule("layers.0.attention.qkv")
    assert isinstance(qkv, LinearGroup) and all(isinstance(member, PackedLinear) for member in qkv.children())
    assert isinstance(decoder.get_submodule("layers.0.mlp.gate_up"), PackedLinearGroup)


@pytest.mark.parametrize("precision", ["int8", "int4", "mixed:linear=int4,embedding=fp32,lm_head=int8,attention=fp32"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_packed_weights_are_the_values_that_were_counted_on(
    family: str, precision: str, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is packed stands for the values that `pack=False` gives; they are near the file's, and not the same."""
    path = tiny.save(family, models_folder)
    values = load_decoder(path, parse_precision(precision), pack=False)
    full = load_decoder(path, DeepSeekConfig(), pack=False)
    monkeypatch.setattr(ops, "PackedWeight", BlobWeight)
    monkeypatch.setattr(ops, "PackedStack", BlobStack)
    monkeypatch.setattr(ops, "NATIVE", True)
    packed = load_decoder(path, parse_precision(precision), pack=True)
    products = 0
    for name, module in packed.named_modules():
        if isinstance(getattr(module, "weight", None), BlobWeight):
            parts = [m.weight for m in values.get_submodule(name).children()] or [values.get_submodule(name).weight]
            assert torch.equal(module.weight.dense, torch.cat(parts).float().flatten(0, -2)), name
            products += 1
    assert products >= 7
    bound = 0.2 if "int4" in precision else 0.02
    state = dict(full.named_parameters())
    state.setdefault("lm_head.weight", full.lm_head.weight)
    for name, weight in values.named_parameters():
        error = float((weight - state[name]).norm() / state[name].norm())
        matrix = weight.dim() >= 2 and not any(part in name for part in ("norm", "router", "k_up", "v_up"))
        quantised = matrix and not (name == "embedding.weight" and "embedding=fp32" in precision)
        assert (0 < error < bound) if quantised else error == 0, name


@pytest.mark.parametrize("family", ["llama", "gemma3", "deepseek_v3", "qwen3_moe", "glm4"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_logits_are_near_those_of_the_values(
    family: str, precision: str, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed against plain. Native kernels also round activations to 8 bits; torch alone multiplies these values."""
    path = tiny.save(family, models_folder)
    ids = ids_of(40)
    config = parse_precision("mixed:" + ",".join(f"{name}={precision}" for name in ("linear", "embedding", "lm_head")))
    config = config.update(fp32_ops=("norm", "rope", "attention", "activation", "kv_cache"))
    want = packed_logits(load_decoder(path, config, pack=False), ids)
    decoder = load_decoder(path, config, pack=True)
    for got in (packed_logits(decoder, ids), paged_logits(decoder, ids, [7, 33])):
        assert got.dtype is torch.float32
        error = (got - want).abs().mean() / want.std()
        # Now and then rounding sends a token to another expert, whose results differ as a whole.
        assert error < ((0.1 if decoder.config.moe else 0.07) if ops.NATIVE else 1e-5)
    full = packed_logits(load_decoder(path, DeepSeekConfig(), pack=True), ids)
    assert (want - full).abs().mean() / full.std() > (0.02 if precision == "int4" else 0.001), "the control"


def test_auto_is_named_by_what_it_became(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's name, which stands in cache keys and answers, and the model's; half the memory of bf16 is enough."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with DeepSeekModel.from_pretrained("default", precision="auto", memory="900MiB") as model:
        assert (model.engine.precision, model.config.name) == ("int4", "int4")
        if ops.NATIVE:
            assert model.engine.weights_bytes == 96_576_768
        assert model.generate("The capital of France is", temperature=0, max_tokens=1).text == " Paris"
    assert len(list(tmp_path.rglob("*.packed"))) == ops.NATIVE


def test_a_tied_table_stands_once(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "PackedWeight", BlobWeight)
    path = tiny.save("gemma3", models_folder)
    decoder = load_decoder(path, DeepSeekConfig("int4"), pack=True)
    assert decoder.config.tie_embeddings and isinstance(decoder.embedding, PackedEmbedding)
    assert decoder.embedding.weight is decoder.lm_head.weight
    apart = load_decoder(path, parse_precision("mixed:embedding=fp32,lm_head=int8"), pack=True)
    assert apart.embedding.weight.dtype is torch.float32
    assert torch.equal(
        apart.lm_head.weight.dense, quantise(apart.embedding.weight, 8, min(128, apart.config.hidden_size)).dequantise()
    )


def test_a_weight_that_is_not_finite_is_refused_by_name(models_folder: Path, tmp_path: Path) -> None:
    source = tiny.save("llama", models_folder)
    with open_checkpoint(source) as checkpoint:
        tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = np.nan
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    for precision in ("int8", "int4"):
        with pytest.raises(CheckpointError, match=f"{name}.*not finite"):
            load_decoder(tmp_path, DeepSeekConfig(precision), pack=True)
    load_decoder(tmp_path, DeepSeekConfig(), pack=True)


def test_large_matrices_are_quantised_in_pieces(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save("llama", models_folder)
    whole = weights(path, "int4")
    monkeypatch.setattr("deepseek_r1.models.loading._PIECE_ELEMENTS", 1000)
    pieces = weights(path, "int4")
    assert all(torch.equal(weight, pieces[name]) for name, weight in whole.items())
