"""GGUF files of every family: written with llama.cpp's own names and row order, they load to the same logits."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from test_families import TOLERANCE, ids_of, packed_logits, paged_logits, reference_logits
from transformers import AutoModelForCausalLM

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError, UnsupportedError
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.registry import read_config, read_family
from deepseek_r1.models.shapes import parameter_count, parameter_shapes
from support import tiny

ARCHITECTURES = {"llama": "LLAMA", "llama3-rope": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The row order that llama.cpp's converter gives q and k of llama models."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def write_gguf(name: str, reference: torch.nn.Module, path: Path) -> None:
    config = reference.config
    architecture = ARCHITECTURES[name]
    arch = gguf.MODEL_ARCH[architecture]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if name == "llama3-rope":
        divisors = 1 / (reference.model.rotary_emb.inv_freq * 10000.0 ** (torch.arange(0, head_dim, 2) / head_dim))
        writer.add_tensor("rope_freqs.weight", divisors.float().numpy())
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, weight in reference.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "LLAMA" and ("q_proj" in key or "k_proj" in key):
            weight = interleave(weight, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_gguf_equals_transformers(name: str, models_folder: Path, tmp_path: Path) -> None:
    source = tiny.save(name, models_folder)
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    path = tmp_path / "tiny.gguf"
    write_gguf(name, reference, path)
    decoder = load_decoder(path, DeepSeekConfig(), pack=True)
    ids = ids_of(37)
    want = reference_logits(reference, ids)
    assert (packed_logits(decoder, ids) - want).abs().max() <= TOLERANCE
    assert (paged_logits(decoder, ids, [20, 1, 16]) - want).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_name_table_is_two_way(name: str, models_folder: Path) -> None:
    """The table names every weight of transformers' model once, and every weight of ours once."""
    path = tiny.save(name, models_folder)
    reference = AutoModelForCausalLM.from_pretrained(path)
    with open_checkpoint(path) as checkpoint:
        config = read_config(checkpoint)
        shapes = parameter_shapes(config)
        weights = list(read_family(checkpoint).weights("safetensors", config, shapes))
        experts = 0 if config.moe is None else config.moe.experts
        theirs = [stored for weight in weights for stored in weight.names(experts)]
        assert len(set(theirs)) == len(theirs) and set(theirs) == set(checkpoint.tensors)
    ours = [name for weight in weights for name in weight.ours]
    decoder = load_decoder(path, DeepSeekConfig(), pack=False)
    have = {key: tuple(value.shape) for key, value in decoder.named_parameters()}
    assert len(set(ours)) == len(ours) and set(ours) == set(have)
    assert shapes == have
    biases = sum(buffer.numel() for key, buffer in reference.named_buffers() if "correction_bias" in key)
    assert parameter_count(config) == sum(p.numel() for p in reference.parameters()) + biases


def edit_config(path: Path, target: Path, **changes: object) -> Path:
    import json
    import shutil

    shutil.copytree(path, target)
    config = json.loads((target / "config.json").read_text())
    config.update(changes)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"num_hidden_layers": 4}, CheckpointError, "layers.3"),
        ({"intermediate_size": 111}, CheckpointError, "shape"),
        ({"hidden_size": "48"}, CheckpointError, "hidden_size"),
        ({"num_hidden_layers": -1}, CheckpointError, "num_hidden_layers"),
        ({"num_attention_heads": 10**9}, CheckpointError, "num_attention_heads"),
        ({"num_attention_heads": 5}, CheckpointError, "num_attention_heads"),
        ({"model_type": "llama4x"}, UnsupportedError, "llama"),
        ({"model_type": None}, CheckpointError, "model_type"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, UnsupportedError, "dynamic"),
    ],
)
def test_lying_configurations_are_named(
    changes: dict[str, object], error: type[Exception], word: str, models_folder: Path, tmp_path: Path
) -> None:
    path = edit_config(tiny.save("llama", models_folder), tmp_path / "model", **changes)
    with pytest.raises(error, match=word):
        load_decoder(path, DeepSeekConfig(), pack=False)
