"""GGUF files of every family: written with llama.cpp's own names and row order, they load to the same logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_variants import NEWEST, save
from gguf_writer import write_gguf
from test_families import TOLERANCE, ids_of, packed_logits, paged_logits, reference_logits
from transformers import AutoConfig, AutoModelForCausalLM

from deepseek_r1.config.precision import DeepSeekConfig
from deepseek_r1.core.errors import CheckpointError, UnsupportedError
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.registry import read_config, read_family
from deepseek_r1.models.saving import save_model
from deepseek_r1.models.shapes import parameter_count, parameter_shapes
from support import tiny

# How a file is written otherwise than by the newest converter.
OTHERWISE: dict[str, dict[str, Any]] = {
    "gemma3-listed": {"changes": {"attention.sliding_window_pattern": [True, False, True]}},
    "gemma3-every-other": {"changes": {"attention.sliding_window_pattern": 2}},
    "mixtral": {"older": True},
    "deepseek_v2-lite": {"older": True},
    "deepseek_v2-160": {"older": True},
    "deepseek_v3-256": {"older": True},
    "gemma3-sixth": {"older": True},
}


def difference(source: Path, path: Path) -> float:
    """The largest difference of a logit between transformers and the GGUF file, over both kinds of context."""
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    decoder = load_decoder(path, DeepSeekConfig(), pack=True)
    ids = ids_of(37)
    want = reference_logits(reference, ids)
    assert want.std() >= 1
    both = torch.stack((packed_logits(decoder, ids), paged_logits(decoder, ids, [20, 1, 16])))
    return float((both - want).abs().max())


@pytest.mark.parametrize("name", NEWEST)
def test_gguf_equals_transformers(name: str, models_folder: Path, tmp_path: Path) -> None:
    source = save(name, models_folder)
    assert difference(source, write_gguf(source, tmp_path / "tiny.gguf")) <= TOLERANCE


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_converters_files_equal_transformers(name: str, models_folder: Path, tmp_path: Path) -> None:
    """Older ones leave experts apart, kv_b_proj whole, and out of the header the groups and the local rope."""
    source = save(name, models_folder)
    assert difference(source, write_gguf(source, tmp_path / "tiny.gguf", **OTHERWISE[name])) <= TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "phi3-full", "gemma3-sixth"])
def test_transformers_reads_the_same_from_the_file(name: str, models_folder: Path, tmp_path: Path) -> None:
    """The writer is right for those that transformers reads itself, but for what it takes for given in a header."""
    source = save(name, models_folder)
    write_gguf(source, tmp_path / "tiny.gguf", changes={"vocab_size": tiny.SHAPE["vocab_size"]})
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for field in ("pad_token_id", "head_dim", "moe_intermediate_size", "query_pre_attn_scalar"):
        if hasattr(config, field) and hasattr(reference.config, field):
            setattr(config, field, getattr(reference.config, field))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", config=config, dtype=torch.float32, attn_implementation="eager"
    )
    ids = ids_of(37)
    assert (reference_logits(theirs.eval(), ids) - reference_logits(reference, ids)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["llama", "mixtral", "granite", "smollm3-fourth", "gemma3-sixth"])
def test_tensors_as_hugging_face_has_them_are_another_model(name: str, models_folder: Path, tmp_path: Path) -> None:
    source = save(name, models_folder)
    assert difference(source, write_gguf(source, tmp_path / "tiny.gguf", order=False)) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "rope.scaling.factor", 2.0),
        ("mixtral", "expert_used_count", 1),
        ("qwen3-yarn", "rope.scaling.factor", 2.0),
        ("qwen3-yarn", "rope.scaling.original_context_length", 32),
        ("qwen3-yarn", "rope.scaling.yarn_beta_fast", 4.0),
        ("qwen3-yarn", "rope.scaling.yarn_beta_slow", 0.1),
        ("deepseek_v2-grouped", "rope.scaling.yarn_log_multiplier", 0.04),
        ("deepseek_v2-grouped", "expert_weights_scale", 1.0),
        ("deepseek_v2-grouped", "expert_group_used_count", 3),
        ("deepseek_v3-yarn", "expert_group_count", 2),
        ("deepseek_v3-yarn", "expert_weights_norm", False),
        ("gemma3-sixth", "rope.freq_base_swa", 100.0),
        ("gemma3-sixth", "rope.freq_base", 100.0),
        ("gemma3-sixth", "attention.sliding_window", 5),
        ("gemma3-sixth", "attention.sliding_window_pattern", 2),
        ("gemma3-sixth", "rope.scaling.factor", 8.0),
        ("phi3-window", "attention.sliding_window", 0),
        ("phi3-longrope", "rope.scaling.attn_factor", 1.0),
        ("granite", "attention.scale", 0.0),
        ("granite", "embedding_scale", None),
        ("granite", "residual_scale", 1.0),
        ("granite", "logit_scale", 1.0),
        ("glm4", "rope.dimension_count", 16),
    ],
)
def test_every_key_counts(name: str, key: str, value: Any, models_folder: Path, tmp_path: Path) -> None:
    source = save(name, models_folder)
    assert difference(source, write_gguf(source, tmp_path / "tiny.gguf", changes={key: value})) > 100 * TOLERANCE


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


def test_divisors_of_a_file_are_not_lost_on_the_way_back(models_folder: Path, tmp_path: Path) -> None:
    """config.json has no place for the frequencies that a GGUF file keeps as a tensor: saving says so."""
    path = write_gguf(save("llama3-rope", models_folder), tmp_path / "tiny.gguf")
    decoder = load_decoder(path, DeepSeekConfig(), pack=False)
    assert decoder.config.ropes[0].frequency_divisors is not None
    with pytest.raises(UnsupportedError, match="frequency divisors"):
        save_model(decoder, tmp_path / "saved")


def test_weights_without_a_place_are_refused(models_folder: Path, tmp_path: Path) -> None:
    """Biases that config.json denies would be dropped, and the model be another one."""
    source = tiny.save("llama-bias", models_folder)
    path = edit_config(source, tmp_path / "model", attention_bias=False, mlp_bias=False)
    with pytest.raises(UnsupportedError, match=r"layers\.\d\..*bias"):
        load_decoder(path, DeepSeekConfig(), pack=False)


def test_a_configuration_cannot_make_the_check_large(models_folder: Path, tmp_path: Path) -> None:
    """Fifty million expert tensors are promised: the first that is missing is the end of it."""
    source = tiny.save("qwen3_moe", models_folder)
    path = edit_config(source, tmp_path / "model", num_hidden_layers=4096, num_experts=4096, num_local_experts=4096)
    with pytest.raises(CheckpointError, match=r"layers\.3\.self_attn\.q_proj\.weight: tensor is missing"):
        load_decoder(path, DeepSeekConfig(), pack=False)


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("gemma3", {"layer_types": [[1]] * 3}, "layer_types"),
        ("phi3-longrope", {"original_max_position_embeddings": 1}, "original_max_position"),
        ("llama", {"hidden_size": [0] * 100_000}, "hidden_size"),
    ],
)
def test_odd_values_are_named_briefly(
    name: str, changes: dict[str, Any], word: str, models_folder: Path, tmp_path: Path
) -> None:
    path = edit_config(tiny.save(name, models_folder), tmp_path / "model", **changes)
    if "original_max_position_embeddings" in changes:
        config = json.loads((path / "config.json").read_text())
        config["rope_parameters"] |= changes
        (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=word) as error:
        load_decoder(path, DeepSeekConfig(), pack=False)
    assert len(str(error.value)) < 500 and error.value.remedy


def test_the_head_width_of_latent_attention_is_its_own(models_folder: Path, tmp_path: Path) -> None:
    """hidden_size need not be a multiple of the heads where q, k and v have widths of their own."""
    path = edit_config(tiny.save("deepseek_v3", models_folder), tmp_path / "model", hidden_size=50)
    with pytest.raises(CheckpointError, match="shape"):  # the files' shapes are in the way, not a rule about widths
        load_decoder(path, DeepSeekConfig(), pack=False)


def test_yarn_with_the_factor_of_r1_0528(models_folder: Path, tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e6}
    path = edit_config(tiny.save("qwen3", models_folder), tmp_path / "a", rope_parameters=scaling)
    cancelling = scaling | {"attn_factor": 0.8782488562869419}
    other = edit_config(tiny.save("qwen3", models_folder), tmp_path / "b", rope_parameters=cancelling)
    factors = []
    for folder in (path, other):
        with open_checkpoint(folder) as checkpoint:
            factors.append(read_config(checkpoint).ropes[0].attention_factor)
    assert factors[0] == pytest.approx(0.1 * math.log(4) + 1)
    assert factors[1] == pytest.approx(1.0)
