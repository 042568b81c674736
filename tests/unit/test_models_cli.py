from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepseek_r1.cli.main import main
from deepseek_r1.core.errors import ModelNotFoundError
from deepseek_r1.operate import catalogue

gguf = pytest.importorskip("gguf")

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def tensors_of_qwen2() -> dict[str, tuple[int, ...]]:
    layer = "model.layers.0"
    return {
        "model.embed_tokens.weight": (10, 8),
        "model.norm.weight": (8,),
        f"{layer}.input_layernorm.weight": (8,),
        f"{layer}.post_attention_layernorm.weight": (8,),
        f"{layer}.self_attn.q_proj.weight": (8, 8),
        f"{layer}.self_attn.q_proj.bias": (8,),
        f"{layer}.self_attn.k_proj.weight": (4, 8),
        f"{layer}.self_attn.k_proj.bias": (4,),
        f"{layer}.self_attn.v_proj.weight": (4, 8),
        f"{layer}.self_attn.v_proj.bias": (4,),
        f"{layer}.self_attn.o_proj.weight": (8, 8),
        f"{layer}.mlp.gate_proj.weight": (12, 8),
        f"{layer}.mlp.up_proj.weight": (12, 8),
        f"{layer}.mlp.down_proj.weight": (8, 12),
    }


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Write zeros: matrices as BF16, vectors as F32. Returns the bytes of all tensors."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * (2 if len(shape) == 2 else 4)
        dtype = "BF16" if len(shape) == 2 else "F32"
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return offset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(path / "model.safetensors", tensors_of_qwen2())
    return path


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["models", "inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = tensors_of_qwen2().values()
    matrices = sum(int(np.prod(shape)) for shape in shapes if len(shape) == 2)
    vectors = sum(int(np.prod(shape)) for shape in shapes if len(shape) == 1)
    model = inspect(folder, capsys)
    assert (model["format"], model["family"], model["unsupported"]) == ("safetensors", "qwen2", None)
    assert model["parameters"] == matrices + vectors
    assert model["bytes"] == 2 * matrices + 4 * vectors
    assert model["tensors"] == {
        "BF16": {"tensors": 8, "parameters": matrices, "bytes": 2 * matrices},
        "F32": {"tensors": 6, "parameters": vectors, "bytes": 4 * vectors},
    }
    assert (model["config"]["hidden_size"], model["config"]["qkv_bias"]) == (8, True)
    assert model["chat_template"] is False
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert inspect(folder, capsys)["chat_template"] is True
    (folder / "tokenizer_config.json").write_text("{not json")
    assert inspect(folder, capsys)["chat_template"] is False
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert inspect(folder, capsys)["chat_template"] is True


def test_inspect_prints_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "inspect", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["family", "qwen2"] in lines
    assert ["hidden_size", "8"] in lines
    assert ["BF16", "8", "560", "0.0", "MB"] in lines


def test_an_architecture_that_is_unknown_here_is_still_described(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mamba"}))
    model = inspect(folder, capsys)
    assert (model["family"], model["config"]) == ("mamba", None)
    assert "'mamba' is not supported" in model["unsupported"]
    assert model["tensors"]["BF16"]["tensors"] == 8


@pytest.mark.parametrize("template", [None, "{{ messages }}"])
def test_inspect_a_gguf_file(tmp_path: Path, template: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "rwkv")
    if template:
        writer.add_chat_template(template)
    writer.add_tensor("a", np.zeros((3, 32), np.float32))
    writer.add_tensor("b", np.zeros((5, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = inspect(path, capsys)
    assert (model["format"], model["family"]) == ("gguf", "rwkv")
    assert model["chat_template"] is (template is not None)
    assert model["tensors"] == {
        "F32": {"tensors": 1, "parameters": 96, "bytes": 384},
        "F16": {"tensors": 1, "parameters": 160, "bytes": 320},
    }


def test_inspect_says_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "inspect", str(tmp_path / "none.gguf")]) == 1
    assert "none.gguf: no such file or directory" in capsys.readouterr().err


def test_inspect_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys; from deepseek_r1.cli.main import main; "
        f"main(['models', 'inspect', {str(folder)!r}, '--json']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    default = tmp_path / "embedded.gguf"
    default.write_bytes(bytes(100))
    monkeypatch.setattr(catalogue, "locate_model", lambda name: default)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    models = tmp_path / "data/deepseek-r1/models"
    (models / "mine").mkdir(parents=True)
    (models / "mine/config.json").write_text("{}")
    (models / "mine/model-1.safetensors").write_bytes(bytes(30))
    (models / "mine/model-2.safetensors").write_bytes(bytes(12))
    (models / "other.gguf").write_bytes(bytes(7))
    (models / "notes.txt").write_text("no model")
    (models / "half").mkdir()
    (models / "half/model.safetensors").write_bytes(bytes(9))  # without config.json it can't be served
    snapshot = tmp_path / "hub/models--deepseek-ai--R1--Small/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "blob").write_bytes(bytes(55))
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blob")
    cut_off = tmp_path / "hub/models--a--b/snapshots/abc"
    cut_off.mkdir(parents=True)
    (cut_off / "config.json").write_text("{}")
    (cut_off / "model.safetensors").symlink_to(tmp_path / "missing")

    assert main(["models", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "default", "format": "gguf", "bytes": 100, "path": str(default)},
        {"name": str(models / "mine"), "format": "safetensors", "bytes": 42, "path": str(models / "mine")},
        {"name": str(models / "other.gguf"), "format": "gguf", "bytes": 7, "path": str(models / "other.gguf")},
        {"name": "deepseek-ai/R1--Small", "format": "safetensors", "bytes": 55, "path": str(snapshot)},
    ]
    assert main(["models", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4


def test_list_on_an_empty_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> Path:
        raise ModelNotFoundError("not installed")

    monkeypatch.setattr(catalogue, "locate_model", absent)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["models", "list"]) == 0
    assert "deepseek-r1 doctor" in capsys.readouterr().out
    assert main(["models", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
