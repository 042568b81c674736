"""Writes one model in every form that the engines compared by `deepseek-benchmark --compare` read.

    python benchmarks/peer_models.py smollm2              # the embedded default model
    python benchmarks/peer_models.py qwen-1.5b            # random weights in DeepSeek-R1-Distill-Qwen-1.5B's shape
    python benchmarks/peer_models.py qwen-tiny            # the same in small, to try the engines out

In `--out` (by default in the cache) stand afterwards: `hf` (bf16 safetensors), `vllm-w8a8` (compressed-tensors: INT8
weights per channel, activations per token, the output layer bf16), `openvino-int8`, `openvino-int4` (made by
optimum-intel in that peer's environment), and of random weights `q8_0.gguf` and `q4_0.gguf` (every matrix, the output
layer too). A form that is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepseek_r1.core.environment import cache_dir
from deepseek_r1.models.locate import locate_model

SHAPES = {
    "qwen-1.5b": {
        **{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151936},
        **{"num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 131072},
    },
    "qwen-tiny": {
        **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 50176},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096},
    },
}
LOGIT_STD = 2.0
BLOCKS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"} | {
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names in a GGUF file's block by Hugging Face's names in a layer."""

BLOCK = 8 << 20
"""Bytes that are written at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["smollm2", *SHAPES])
    parser.add_argument("--peers-dir", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or options.peers_dir / "models" / options.model
    out.mkdir(parents=True, exist_ok=True)
    hf = out / "hf"
    if options.model == "smollm2":
        made(hf, lambda path: write_smollm2(path))
    else:
        made(hf, lambda path: write_random(path, SHAPES[options.model]))
        for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0):
            made(out / f"{kind.name.lower()}.gguf", lambda path, kind=kind: write_gguf(hf, path, kind))
    made(out / "vllm-w8a8", lambda path: write_w8a8(hf, path))
    tool = options.peers_dir / "openvino/bin/optimum-cli"
    # 64 divides SmolLM2's 576; of its tied table, as in its own file, 8 bits are kept.
    group = ["--group-size", "64"] if options.model == "smollm2" else ["--group-size", "128", "--all-layers"]
    forms = {
        "int8": ["--weight-format", "int8"],
        "int4": ["--weight-format", "int4", "--sym", "--ratio", "1.0", *group],
    }
    for form, flags in forms.items():
        if tool.exists():
            made(out / f"openvino-{form}", lambda path, flags=flags: convert(tool, hf, path, flags))
        else:
            print(f"openvino-{form}: left out, {tool} is missing (sh deploy/peers.sh openvino)")


def made(path: Path, write: Any) -> None:
    """Write what is not there yet, whole or not at all."""
    if path.exists():
        return print(f"{path.name}: there already")
    part = path.with_name(f".{path.name}.part")
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)
    print(f"{path.name}: writing", flush=True)
    write(part)
    in_large_blocks(part)
    part.rename(path)


def in_large_blocks(path: Path) -> None:
    """Write files anew, 8 MiB at once: the page cache has them on huge pages then, and who maps them reads faster."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        if file.stat().st_size < BLOCK:
            continue
        copy = file.with_name(f".{file.name}.copy")
        with file.open("rb") as source, copy.open("wb", buffering=0) as to:
            shutil.copyfileobj(source, to, BLOCK)
        copy.rename(file)


def write_smollm2(folder: Path) -> None:
    path = locate_model("default")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    folder.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # the file's, which these weights are no longer in
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=1, default=str) + "\n")
    model.generation_config.save_pretrained(folder)
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    """Every engine is given token ids; some want a tokenizer beside the weights all the same."""
    path = locate_model("default")
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def write_random(folder: Path, shape: dict[str, int]) -> None:
    """Unit variance in, unit variance out, residual branches damped by depth: logits with a deviation of LOGIT_STD."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(4)
    hidden, ffn, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    head_dim = hidden // shape["num_attention_heads"]
    kv = shape["num_key_value_heads"] * head_dim
    damp = (2 * layers) ** -0.5

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * (gain * columns**-0.5)).bfloat16()

    def bias(rows: int) -> torch.Tensor:
        return (torch.randn(rows, generator=generator) * 0.1).bfloat16()

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    weights = {"model.embed_tokens.weight": matrix(shape["vocab_size"], hidden, hidden**0.5)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)):
            weights[f"{prefix}.self_attn.{name}.weight"] = matrix(rows, hidden, 1.5 if name != "v_proj" else 1.0)
            weights[f"{prefix}.self_attn.{name}.bias"] = bias(rows)
        weights[f"{prefix}.self_attn.o_proj.weight"] = matrix(hidden, hidden, damp)
        for name in ("gate_proj", "up_proj"):
            weights[f"{prefix}.mlp.{name}.weight"] = matrix(ffn, hidden)
        weights[f"{prefix}.mlp.down_proj.weight"] = matrix(hidden, ffn, 2 * damp)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = ones.clone()
    weights["model.norm.weight"] = ones.clone()
    weights["lm_head.weight"] = matrix(shape["vocab_size"], hidden, LOGIT_STD)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16", "hidden_act": "silu"},
        **{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "use_sliding_window": False},
        **{"attention_dropout": 0.0, "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2},
        **{"torch_dtype": "bfloat16", "use_cache": True, **shape},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}) + "\n")
    save_tokenizer(folder)


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():
            yield name, file.get_tensor(name)


def write_w8a8(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = {}
    for name, tensor in tensors(source):
        if tensor.ndim == 2 and ".layers." in name:
            tensor = tensor.float()
            scale = tensor.abs().amax(1, keepdim=True) / 127
            weights[name] = torch.round(tensor / scale).to(torch.int8)
            weights[f"{name}_scale"] = scale
        else:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    every = {"num_bits": 8, "type": "int", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**every, "strategy": "channel", "dynamic": False},
                "input_activations": {**every, "strategy": "token", "dynamic": True},
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def gguf_names(layers: int) -> dict[str, str]:
    """Hugging Face's name of every tensor by its name in a GGUF file."""
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for layer in range(layers):
        names |= {f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}" for ours, theirs in BLOCKS.items()}
    return names


def write_gguf(source: Path, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Matrices quantised, vectors as fp32. No vocabulary: only token ids are used."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{kind.name}"))
    names = gguf_names(config["num_hidden_layers"])
    for name, tensor in tensors(source):
        stem, _, suffix = name.rpartition(".")
        values: np.ndarray = tensor.float().numpy()
        if values.ndim == 2:
            writer.add_tensor(f"{names[stem]}.{suffix}", quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{names[stem]}.{suffix}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(tool: Path, source: Path, folder: Path, flags: list[str]) -> None:
    words = ["export", "openvino", "--model", str(source), "--task", "text-generation-with-past", *flags, str(folder)]
    subprocess.run([str(tool), *words], check=True)


if __name__ == "__main__":
    main()
