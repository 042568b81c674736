"""How weights are kept: what "auto" becomes, and bytes counted against bytes that are held."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from deepseek_r1.config.precision import DeepSeekConfig, parse_precision
from deepseek_r1.engine import memory
from deepseek_r1.kernels import ops
from deepseek_r1.kernels.quantised import quantise
from deepseek_r1.models.checkpoint.base import Checkpoint, Stored, TensorInfo
from deepseek_r1.models.checkpoint.open import open_checkpoint
from deepseek_r1.models.formats import WeightFormat, checkpoint_types, packed_bytes, quantised_format, resolve
from deepseek_r1.models.loading import load_decoder
from deepseek_r1.models.locate import locate_model
from deepseek_r1.models.registry import read_config
from deepseek_r1.models.saving import save_model
from support.own_models import CONFIGS, made

LINEAR, TABLE = ("layers.0.mlp.down_proj.weight", (64, 96)), ("embedding.weight", (320, 48))
OWN = {
    "Q4_0": WeightFormat(4, 32, own=True),
    "Q4_1": WeightFormat(4, 32, True, own=True),
    "Q4_K": WeightFormat(4, 32, True, wide=True, own=True),
    "Q8_0": WeightFormat(8, 32, own=True),
}
WIDE = WeightFormat(8, 0 if ops.PATH == "amx" else 128)
FOUR = WeightFormat(4, 32, multiples=ops.PATH == "amx")


@pytest.mark.parametrize("stored", ["Q4_0", "Q4_1", "Q4_K", "Q8_0", "Q5_0", "Q6_K", "F32", "BF16", "F8_E4M3", None])
def test_what_a_stored_weight_becomes(stored: str) -> None:
    int4, int8 = parse_precision("int4"), parse_precision("int8")
    floats = {"Q5_0": WeightFormat(8, 32), "Q6_K": WeightFormat(8, 32)}
    assert quantised_format(int4, *LINEAR, stored) == OWN.get(stored, floats.get(stored, FOUR))
    assert quantised_format(int4, *TABLE, stored) == OWN.get(stored, floats.get(stored, WIDE))
    for weight in (LINEAR, TABLE):
        assert quantised_format(int8, *weight, stored) == OWN.get(stored, WIDE)
        assert quantised_format(parse_precision("bf16"), *weight, stored) is None
    experts = ("layers.0.mlp.experts.up_proj.weight", (6, 40, 48))
    for precision in (int4, int8, parse_precision("bf16")):
        assert quantised_format(precision, *experts, stored) == quantised_format(precision, *LINEAR, stored)


def test_norms_routers_and_maps_per_head_stay_floats() -> None:
    int4 = parse_precision("int4")
    for name, shape in (
        ("layers.0.attention_norm.weight", (48,)),
        ("layers.0.mlp.router.weight", (6, 48)),
        ("layers.0.attention.k_up.weight", (6, 24, 12)),
        ("layers.0.attention.conv_weight", (98, 4)),
        ("layers.0.attention.qkv.q_proj.bias", (96,)),
    ):
        assert quantised_format(int4, name, shape, "Q4_0") is None


# --- auto -------------------------------------------------------------------------------------------------------------


class Retyped(Checkpoint):
    """A checkpoint whose header says that its matrices (with `only` in their names) have another type."""

    def __init__(self, inner: Checkpoint, kind: str, only: str = "") -> None:
        kinds = {n: kind if len(info.shape) > 1 and only in n else "F32" for n, info in inner.tensors.items()}
        stored = {
            name: Stored(TensorInfo(name, info.shape, kinds[name], 0), None, 0)  # type: ignore[arg-type]
            for name, info in inner.tensors.items()
        }
        super().__init__(inner.path, inner.format, inner.metadata, stored, ())


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(
            ("Q4_0", "int4"),
            ("Q4_K", "int4"),
            ("Q5_1", "int4"),
            ("Q6_K", "int4"),
            ("Q8_0", "int8"),
            ("F8_E4M3", "int8"),
        ),
        *(("F32", None), ("F16", None), ("BF16", None)),
    ],
)
@pytest.mark.parametrize("bf16", [True, False])
def test_auto_is_what_comes_nearest_to_the_file(kind: str, mode: str | None, bf16: bool) -> None:
    with open_checkpoint(locate_model("default")) as inner:
        found = resolve(parse_precision("auto"), Retyped(inner, kind), bf16=bf16)
        assert found.name == (mode or ("bf16" if bf16 else "fp32"))
        assert resolve(parse_precision("int8"), Retyped(inner, kind), bf16=bf16).name == "int8"
        assert resolve(parse_precision("auto"), inner, bf16=bf16).name == "int4", "SmolLM2 is Q4_1"


@pytest.mark.parametrize(("kind", "mode"), [("Q4_0", "int4"), ("Q8_0", "int8"), ("BF16", "bf16")])
def test_experts_decide_with_the_others(kind: str, mode: str, tmp_path: Path) -> None:
    """Most weights of this model are experts'. Here they alone are of another type."""
    path = save_model(made(CONFIGS["all"]), tmp_path / "own")
    with open_checkpoint(path) as inner:
        types = checkpoint_types(inner, read_config(inner))
        assert types["layers.1.mlp.experts.up_proj.weight"] == "F32"
        assert resolve(parse_precision("auto"), inner, bf16=True).name == "bf16"
        experts = Retyped(inner, kind, only=".experts.")
        assert resolve(parse_precision("auto"), experts, bf16=True).name == mode


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_by_hand() -> None:
    """One panel is 64 rows. 4 bits in groups of 32: 16 bytes of codes, and 2 of scale, per row and group."""
    assert packed_bytes(64, 96, WeightFormat(4, 32)) == 64 * 3 * (16 + 2)
    assert packed_bytes(65, 97, WeightFormat(4, 32, True)) == 128 * 4 * (16 + 4)
    assert packed_bytes(1, 128, WeightFormat(4, 128)) == 64 * (64 + 2)
    assert packed_bytes(64, 64, WeightFormat(4, 32, True, wide=True)) == 64 * 2 * (16 + 8)
    assert packed_bytes(64, 32, WeightFormat(8, 32)) == 64 * (32 + 2)
    assert packed_bytes(64, 200, WeightFormat(8, 128)) == 64 * 2 * (128 + 2)
    assert packed_bytes(64, 96, WeightFormat(4, 32, multiples=True)) == 64 * (4 * (16 + 2) + 4), "pairs of groups"
    assert packed_bytes(10, 7, 4) == 64 * 7 * 4
    assert packed_bytes(10, 7, 2) == 64 * 32 * 2, "bfloat16 goes in tiles of 32"


@pytest.mark.parametrize(
    ("bits", "group", "form"),
    [(4, 32, ""), (4, 32, "minima"), (4, 32, "multiples"), (4, 128, ""), (8, 32, ""), (8, 128, "")],
)
@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (64, 256), (130, 333)])
def test_bytes_are_those_of_a_packed_weight(bits: int, group: int, form: str, rows: int, columns: int) -> None:
    options = {form: True} if form else {}
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    held = ops.PackedWeight([quantise(weight, bits, group, **options)]).nbytes
    want = packed_bytes(rows, columns, WeightFormat(bits, group, **options)) if ops.NATIVE else 4 * rows * columns
    assert held == want


MODES = ("fp32", "bf16", "int8", "int4", "mixed:lm_head=int8")


def held_bytes(decoder: torch.nn.Module) -> int:
    packed = {
        id(module.weight): module.weight.nbytes
        for module in decoder.modules()
        if isinstance(getattr(module, "weight", None), ops.PackedWeight | ops.PackedStack)
    }
    plain = [weight for name, weight in decoder.named_parameters() if not name.endswith(".bias")]
    return sum(packed.values()) + sum(weight.numel() * weight.element_size() for weight in plain)


@pytest.mark.parametrize(("name", "precision"), [*product(CONFIGS, MODES)])
def test_a_loaded_decoder_takes_what_was_counted(name: str, precision: str, tmp_path: Path) -> None:
    """All but biases, which are a few numbers."""
    path = save_model(made(CONFIGS[name]), tmp_path / "own")
    mode = parse_precision(precision)
    decoder = load_decoder(path, mode, pack=True)
    counted = memory.weights_bytes(CONFIGS[name], mode, memory.Storage(ops.NATIVE))
    biases = sum(w.numel() * w.element_size() for n, w in decoder.named_parameters() if n.endswith(("bias", "A_log")))
    assert held_bytes(decoder) == pytest.approx(counted, rel=0.03 if "int" in precision else 1e-9, abs=biases)


def test_the_default_model_takes_what_was_counted() -> None:
    """Exactly, in its own blocks: 4.5 + 0.5 bits and a byte and a sixteenth, or float32 without native kernels."""
    with open_checkpoint(locate_model("default")) as checkpoint:
        config = read_config(checkpoint)
        storage = memory.Storage(ops.NATIVE, checkpoint_types(checkpoint, config))
    decoder = load_decoder(locate_model("default"), DeepSeekConfig("int4"), pack=True)
    counted = memory.weights_bytes(config, DeepSeekConfig("int4"), storage)
    assert held_bytes(decoder) == counted
    native = memory.weights_bytes(config, DeepSeekConfig("int4"), memory.Storage(True, storage.types))
    assert native == 106_168_320 * 20 // 32 + 49_152 * 576 * 34 // 32 + 61 * 576 * 4
    plain = memory.weights_bytes(config, DeepSeekConfig("int4"), memory.Storage(False, storage.types))
    assert plain == 134_515_008 * 4, "the table stands once"
    read = memory.read_bytes(config, DeepSeekConfig("int4"), memory.Storage(True, storage.types))
    assert read == native + 576 * 34 // 32, "all of it, and one row"
    eight = memory.weights_bytes(config, DeepSeekConfig("int8"), memory.Storage(True))
    assert 8.1 < eight * 8 / 134_515_008 < 9.1, "576 inputs are padded to 640"
