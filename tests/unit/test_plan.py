from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import pytest

from deepseek_r1.cli.main import build_parser, main
from deepseek_r1.cli.options import config_from
from deepseek_r1.config.precision import parse_precision
from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.core.errors import CapacityError, UnsupportedError
from deepseek_r1.engine import build, memory, paged
from deepseek_r1.models.checkpoint.base import Checkpoint
from deepseek_r1.models.config import Fields
from deepseek_r1.models.decoder import Decoder
from deepseek_r1.models.families.base import stored_shape
from deepseek_r1.models.formats import FOUR_BITS
from deepseek_r1.models.locate import locate_model
from deepseek_r1.models.registry import FAMILIES
from deepseek_r1.models.saving import save_model
from deepseek_r1.models.shapes import parameter_shapes
from deepseek_r1.operate.catalogue import read_header
from deepseek_r1.operate.plan import PRECISIONS, Estimate, Plan, plan
from support.own_models import CONFIGS, made
from support.published_models import PUBLISHED, R1, write_config

# --- figures worked out by hand ---------------------------------------------------------------------------------------
#
# V x h is the table, L layers, q and kv the widths of all query heads and of all key heads, i the width of the MLP.
# Parameters of a Llama-like model: V h (twice where it isn't tied) + L (2 h q + 2 h kv + 3 h i + 2 h) + h.
# Active ones: of a table that isn't tied, one row; of e experts, those chosen. bf16 takes two bytes of everything
# (routers: four), and a tied table stands twice, for lookups and for the output layer.
# Columns: parameters, active, bf16 weights, read per token in bf16, keys and values per token in bf16.
HAND = {
    # 61 layers of attention: 7168*1536 + 1536 + 1536*128*192 + 7168*576 + 512 + 512*128*256 + 128*128*7168
    # = 187_107_328, and two norms, 14_336; 3 dense MLPs of 3*7168*18432 = 396_361_728; 58 mixtures of 256 routed and a
    # shared expert of 3*7168*2048 = 44_040_192 each, a router of 256*7168 and 256 biases = 1_835_264; tables of
    # 2*129_280*7168; a last norm.
    # Idle: 58 * 248 * 44_040_192 = 633_474_121_728, and the table but for a row, 926_671_872.
    # Routers: 58 * 1_835_264 = 106_445_312 in float32. Latent: 61 layers * (512 + 64) * 2 bytes.
    "DeepSeek-R1": (671_026_419_200, 36_625_625_600, 1_342_265_729_024, 73_464_141_824, 70_272),
    # 27 attentions: 2048*16*192 + 2048*576 + 512 + 512*16*256 + 16*128*2048 + 2*2048; a dense MLP: 3*2048*10944;
    # 26 mixtures of 64 and 2 shared of 3*2048*1408 = 8_650_752, a router of 64*2048. Idle: 26 * 58 * 8_650_752.
    # Latent: 27 * 576 * 2.
    "DeepSeek-V2-Lite": (15_706_484_224, 2_451_437_056, 31_419_784_192, 4_909_689_856, 31_104),
    # 2*128_256*4096 + 32*(2*4096*4096 + 2*4096*1024 + 3*4096*14_336 + 2*4096) + 4096; 32 * 2*8*128 * 2.
    "Llama-3.1-8B": (8_030_261_248, 7_504_928_768, 16_060_522_496, 15_009_857_536, 131_072),
    # The same with a table of 32_768*4096 = 134_217_728.
    "Mistral-7B-v0.3": (7_248_023_552, 7_113_809_920, 14_496_047_104, 14_227_619_840, 131_072),
    # 2*32_000*4096 + 32*(2*4096*4096 + 2*4096*1024 + 8*3*4096*14_336 + 8*4096 + 2*4096) + 4096.
    # Idle: 32 * 6 * 3*4096*14_336 = 33_822_867_456; routers: 32*8*4096 = 1_048_576.
    "Mixtral-8x7B": (46_702_792_704, 12_748_857_344, 93_407_682_560, 25_499_811_840, 131_072),
    # 2*152_064*3584 + 28*(2*3584*3584 + 2*3584*512 + (3584 + 2*512) + 3*3584*18_944 + 2*3584) + 3584; 28 * 2*4*128 * 2.
    "Qwen2.5-7B": (7_615_616_512, 7_070_622_720, 15_231_233_024, 14_141_245_440, 57_344),
    # 2*151_936*2048 + 48*(2*2048*4096 + 2*2048*512 + 128*3*2048*768 + 128*2048 + 2*2048 + 2*128) + 2048.
    # Idle: 48 * 120 * 3*2048*768 = 27_179_089_920; routers: 48*128*2048 = 12_582_912. 48 * 2*4*128 * 2.
    "Qwen3-30B-A3B": (30_532_122_624, 3_041_869_824, 61_089_411_072, 6_108_905_472, 98_304),
    # Tied: 262_144*1152 = 301_989_888 + 26*(2*1152*1024 + 2*1152*256 + 3*1152*6912 + 4*1152 + 2*256) + 1152.
    # Weights: 2 * (999_885_952 + 301_989_888); read: 2 * (999_885_952 + a row of 1152). 26 * 2*1*256 * 2.
    "gemma-3-1b": (999_885_952, 999_885_952, 2_603_751_680, 1_999_774_208, 26_624),
    # Tied: 200_064*3072 = 614_596_608 + 32*(2*3072*3072 + 2*3072*1024 + 3*3072*8192 + 2*3072) + 3072; 32 * 2*8*128 * 2.
    "Phi-4-mini": (3_836_021_760, 3_836_021_760, 8_901_236_736, 7_672_049_664, 131_072),
    # Tied: 128_256*2048 = 262_668_288 + 36*(2*2048*2048 + 2*2048*512 + 3*2048*11_008 + 2*2048) + 2048;
    # 36 * 2*4*128 * 2.
    "SmolLM3-3B": (3_075_098_624, 3_075_098_624, 6_675_533_824, 6_150_201_344, 73_728),
    # 2*100_352*4096 + 32*(4*4096*4096 + 3*4096*11_008 + 2*4096 + 2*4096 for q and k) + 4096; 32 * 2*32*128 * 2.
    "OLMo-2-7B": (7_298_617_344, 6_887_579_648, 14_597_234_688, 13_775_159_296, 524_288),
    # Tied: 49_155*4096 = 201_338_880 + 40*(2*4096*4096 + 2*4096*1024 + 3*4096*12_800 + 2*4096) + 4096;
    # 40 * 2*8*128 * 2.
    "Granite-3.1-8B": (8_170_848_256, 8_170_848_256, 16_744_374_272, 16_341_704_704, 163_840),
}

# In fp32 everything takes four bytes, routers too: 4 * (parameters, and a tied table again), 4 * (active, and its row).
HAND_FP32 = {
    "DeepSeek-R1": (2_684_105_676_800, 146_502_502_400, 140_544),
    "DeepSeek-V2-Lite": (62_825_936_896, 9_805_748_224, 62_208),
    "Llama-3.1-8B": (32_121_044_992, 30_019_715_072, 262_144),
    "Mistral-7B-v0.3": (28_992_094_208, 28_455_239_680, 262_144),
    "Mixtral-8x7B": (186_811_170_816, 50_995_429_376, 262_144),
    "Qwen2.5-7B": (30_462_466_048, 28_282_490_880, 114_688),
    "Qwen3-30B-A3B": (122_128_490_496, 12_167_479_296, 196_608),
    "gemma-3-1b": (5_207_503_360, 3_999_548_416, 53_248),
    "Phi-4-mini": (17_802_473_472, 15_344_099_328, 262_144),
    "SmolLM3-3B": (13_351_067_648, 12_300_402_688, 147_456),
    "OLMo-2-7B": (29_194_469_376, 27_550_318_592, 1_048_576),
    "Granite-3.1-8B": (33_488_748_544, 32_683_409_408, 327_680),
}


# Weights and what a token reads, packed by native kernels in 8 and in 4 bits, from a file in bf16. Rows are padded to
# 64 (these all are multiples), 8 bits take 130 bytes for 128 weights, 4 bits 18 bytes for 32, norms and biases 4 bytes
# each; tables are 8 bits in both, and stand once where they are tied. Where the scales of 4 bits are multiples of a
# row's own, that takes 4 bytes an output: of Llama's 32 * (2 * 4096 + 2 * 1024 + 2 * 14_336 + 4096), Qwen's 28 *
# (2 * 3584 + 2 * 512 + 2 * 18_944 + 3584), SmolLM3's 36 * (2 * 2048 + 2 * 512 + 2 * 11_008 + 2048).
# Llama: 1_050_673_152 in two tables, 6_979_321_856 in linears, 266_240 in norms; a token reads one of the tables and a
# row of the other, 4160 bytes.
# Qwen: 1_089_994_752 in two tables, 6_525_288_448 in linears, 333_312 in norms and biases; a row has 3640 bytes.
# SmolLM3: 262_668_288 in the tied table, 2_812_280_832 in linears, 149_504 in norms; all of it is read, and 2080 bytes.
OWN = 4 * FOUR_BITS.multiples
HAND_NATIVE = {
    "Llama-3.1-8B": (
        1_050_673_152 * 130 // 128 + 6_979_321_856 * 130 // 128 + 266_240 * 4,
        525_336_576 * 130 // 128 + 4160 + 6_979_321_856 * 130 // 128 + 266_240 * 4,
        1_050_673_152 * 130 // 128 + 6_979_321_856 * 18 // 32 + 1_376_256 * OWN + 266_240 * 4,
        525_336_576 * 130 // 128 + 4160 + 6_979_321_856 * 18 // 32 + 1_376_256 * OWN + 266_240 * 4,
    ),
    "Qwen2.5-7B": (
        1_089_994_752 * 130 // 128 + 6_525_288_448 * 130 // 128 + 333_312 * 4,
        544_997_376 * 130 // 128 + 3640 + 6_525_288_448 * 130 // 128 + 333_312 * 4,
        1_089_994_752 * 130 // 128 + 6_525_288_448 * 18 // 32 + 1_390_592 * OWN + 333_312 * 4,
        544_997_376 * 130 // 128 + 3640 + 6_525_288_448 * 18 // 32 + 1_390_592 * OWN + 333_312 * 4,
    ),
    "SmolLM3-3B": (
        262_668_288 * 130 // 128 + 2_812_280_832 * 130 // 128 + 149_504 * 4,
        262_668_288 * 130 // 128 + 2080 + 2_812_280_832 * 130 // 128 + 149_504 * 4,
        262_668_288 * 130 // 128 + 2_812_280_832 * 18 // 32 + 1_050_624 * OWN + 149_504 * 4,
        262_668_288 * 130 // 128 + 2080 + 2_812_280_832 * 18 // 32 + 1_050_624 * OWN + 149_504 * 4,
    ),
}


def named(found: Plan) -> dict[str, Estimate]:
    return {each.name: each for each in found.estimates}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_configuration_alone_is_planned_as_by_hand(name: str, tmp_path: Path) -> None:
    path = str(write_config(tmp_path, name))
    found = plan(path, memory_bytes=64 << 30, context=1000, bandwidth=100e9, native=False)
    total, active, weights, read, per_token = HAND[name]
    assert (found.format, found.parameters, found.active_parameters) == ("config", total, active)
    bf16, fp32, disk = (named(found)[form] for form in ("bf16", "fp32", "on disk"))
    assert (bf16.weights_bytes, bf16.read_bytes_per_token, bf16.kv_bytes_per_token) == (weights, read, per_token)
    assert (fp32.weights_bytes, fp32.read_bytes_per_token, fp32.kv_bytes_per_token) == HAND_FP32[name]
    for each in (bf16, fp32):
        assert each.tokens_per_second == pytest.approx(100e9 / each.read_bytes_per_token, rel=1e-12)
        with_context = each.read_bytes_per_token + 1000 * each.kv_bytes_per_token
        assert each.tokens_per_second_at_context == pytest.approx(100e9 / with_context, rel=1e-12)
        assert each.fits == (each.needed_bytes <= 64 << 30)
    if name != "DeepSeek-R1":  # all others were published in bf16
        assert (disk.stored_as, disk.weights_bytes, found.file_bytes) == (("BF16",), 2 * total, 2 * total)


@pytest.mark.parametrize("name", HAND_NATIVE)
def test_packed_weights_are_planned_as_by_hand(name: str, tmp_path: Path) -> None:
    path = str(write_config(tmp_path, name))
    int8, int4 = (
        named(plan(path, memory_bytes=64 << 30, bandwidth=100e9, native=True))[mode] for mode in ("int8", "int4")
    )
    figures = (int8.weights_bytes, int8.read_bytes_per_token, int4.weights_bytes, int4.read_bytes_per_token)
    assert figures == HAND_NATIVE[name]
    assert int8.kv_bytes_per_token == int4.kv_bytes_per_token == HAND[name][4], "in bf16"
    torch_alone = named(plan(path, memory_bytes=64 << 30, bandwidth=100e9, native=False))["int4"]
    parameters, table = HAND[name][0], PUBLISHED[name]["vocab_size"] * PUBLISHED[name]["hidden_size"]
    assert torch_alone.weights_bytes == 4 * parameters, "float32, a tied table once"
    assert torch_alone.read_bytes_per_token < 4 * parameters + table


def test_at_least_ten_are_planned() -> None:
    assert len(PUBLISHED) >= 10 and set(HAND) == set(HAND_FP32) == set(PUBLISHED)


def test_what_fits_beside_the_weights_of_llama(tmp_path: Path) -> None:
    """24 GB, bf16. Arena: activations (512 + 1) * (8*4096 + 4*14_336 + 4*48*128) * 4 = 235_339_776, gathered rows
    2 * 8192 * 4096 = 67_108_864, masks 512 * 4096 * 5 = 10_485_760, logits of 12 rows (144 + 64) * 128_256
    = 26_677_248.
    Processes and reserves: 224 + 96 + 64 + 96 MiB = 503_316_480. With the weights, 16_060_522_496: 16_903_450_624.
    """
    path = str(write_config(tmp_path, "Llama-3.1-8B"))
    bf16 = named(plan(path, memory_bytes=24 * 10**9, bandwidth=50e9, native=True))["bf16"]
    assert bf16.kv_tokens == 54_128, "7_096_549_376 bytes hold 3383 blocks of 16 * 131_072"
    assert bf16.needed_bytes == 16_903_450_624 + 4096 * 131_072
    assert bf16.fits and (bf16.missing_bytes, bf16.way_out) == (0, "")
    # A token short of the last block, and at the last byte.
    assert named(plan(path, memory_bytes=bf16.needed_bytes, bandwidth=50e9, native=True))["bf16"].fits
    short = named(plan(path, memory_bytes=bf16.needed_bytes - 1, bandwidth=50e9, native=True))["bf16"]
    assert (short.fits, short.missing_bytes, short.kv_tokens) == (False, 1, 4080)
    assert short.way_out == "--context 4080 fits, or int8 fits, or give it 17GiB of memory"
    # Four requests of 20_000: activations 236_716_032, gathered 163_840_000, masks 51_200_000, logits 26_677_248. With
    # processes and weights 17_042_272_256: 3317 blocks, 53_072 tokens, 13_264 in whole blocks for each.
    four = named(plan(path, memory_bytes=24 * 10**9, bandwidth=50e9, context=20_000, concurrent=4, native=True))["bf16"]
    assert not four.fits and four.way_out.startswith("--context 13264 fits, or ")
    fp32 = named(plan(path, memory_bytes=24 * 10**9, bandwidth=50e9, native=True))["fp32"]
    assert fp32.kv_tokens == 0 and fp32.way_out.startswith("bf16 fits, or give it ")


def test_r1_as_it_was_published(tmp_path: Path) -> None:
    """One of its 61 attentions in FP8: 187_105_280 values in 11_448 blocks of 128 x 128 (a float32 scale each); one of
    the 3 dense MLPs 396_361_728 in 24_192, one of the 58 mixtures 257 * 44_040_192 = 11_318_329_344 in 690_816: in all
    669_065_609_216 and 4 * 40_838_232. In bf16 the tables, 3_706_716_160 bytes, the norms, 2 * 1_006_592, the routers,
    2 * 106_445_312. Of these a token reads 58 * 248 experts less, 633_474_121_728 and 4 * 58 * 248 * 2688 bytes, and
    one row of the embedding, 14_336 bytes for 1_853_358_080.
    """
    found = plan(str(write_config(tmp_path, "DeepSeek-R1")), memory_bytes=768 << 30, bandwidth=460.8e9)
    assert found.prediction_parameters == 11_610_068_224
    disk = named(found)["on disk"]
    assert disk.stored_as == ("F8_E4M3", "BF16")
    assert disk.weights_bytes == 669_065_609_216 + 163_352_928 + 3_706_716_160 + 2_013_184 + 212_890_624
    assert disk.read_bytes_per_token == disk.weights_bytes - 633_474_121_728 - 154_656_768 - 1_853_358_080 + 14_336
    assert disk.fits and not named(found)["bf16"].fits, "671 B parameters in 768 GiB"
    assert disk.tokens_per_second == pytest.approx(12.233, abs=0.001), "460.8 GB/s over 37.67 GB"
    # The 163 files on the hub have 688_586_727_753 bytes. They repeat both tables beside the prediction module, which
    # isn't read; what is left are the headers, of 92 thousand tensors at some 130 bytes each.
    assert found.file_bytes is not None
    headers = 688_586_727_753 - found.file_bytes - 2 * 2 * 926_679_040
    assert 100 < headers / 92_000 < 160


def test_an_unknown_form_of_weights_is_left_out(tmp_path: Path) -> None:
    for change in ({"torch_dtype": None}, {"quantization_config": {"quant_method": "awq"}}):
        (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Llama-3.1-8B"] | change))
        found = plan(str(tmp_path), memory_bytes=1 << 36, bandwidth=1e9)
        assert [each.name for each in found.estimates] == [*PRECISIONS] and found.file_bytes is None


# --- the arithmetic against what torch allocates ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), [*product(CONFIGS, ("fp32", "bf16", "mixed"))])
def test_weights_are_those_of_a_decoder(name: str, precision: str) -> None:
    config, mode = CONFIGS[name], parse_precision(precision)
    decoder = Decoder(config, mode)
    held = {id(p): p.numel() * p.element_size() for p in decoder.parameters()}
    packed = decoder.lm_head.weight  # a second copy where the table is tied
    copy = packed.numel() * packed.element_size() if id(packed) == id(decoder.embedding.weight) else 0
    assert memory.weights_bytes(config, mode, memory.Storage(False)) == sum(held.values()) + copy


@pytest.mark.parametrize(("name", "precision"), [*product(CONFIGS, ("fp32", "bf16"))])
def test_what_a_cache_takes(name: str, precision: str) -> None:
    config, mode = CONFIGS[name], parse_precision(precision)
    cache = paged.KVCache(Decoder(config, mode).layouts, 7, 16, slots=3, max_length=100)
    blocks = 7 * 16 * memory.kv_bytes_per_token(config, mode)
    assert cache.nbytes == blocks + 3 * memory.slot_bytes(config, mode, 100)


PLAIN = memory.Storage(False)


def test_a_prediction_module_is_counted_where_it_is_loaded() -> None:
    """R1's is one more mixture of 11_507_286_272, a projection of 2 * 7168 * 7168 and three norms of 7168."""
    r1 = FAMILIES.load("deepseek_v3").from_hf(Fields("R1", R1))
    bf16 = parse_precision("bf16")
    more = memory.weights_bytes(r1, bf16, PLAIN) - memory.weights_bytes(memory.served(r1), bf16, PLAIN)
    assert more == 2 * 11_610_068_224 + 2 * 1_835_264
    assert memory.kv_bytes_per_token(r1, bf16) == 70_272 + 576 * 2
    assert memory.read_bytes(r1, bf16, PLAIN) == memory.read_bytes(memory.served(r1), bf16, PLAIN) == 73_464_141_824


def test_guessing_ahead_needs_a_module() -> None:
    with pytest.raises(UnsupportedError, match="no prediction module"):
        build.load_engine(locate_model("default"), memory_bytes=1, speculative="mtp")


def test_layers_without_blocks_get_as_many_as_the_context_needs(tmp_path: Path) -> None:
    """Rings and states alone: 3 slots, no bytes per token, and blocks for three times 512 tokens."""
    config = replace(CONFIGS["all"], mixers=("delta", "ring", "ring", "delta"), windows=(None,) * 4)
    path = save_model(made(config), tmp_path / "own")
    engine = build.load_engine(path, precision="fp32", memory_bytes=1 << 30, max_concurrent=3)
    fp32 = parse_precision("fp32")
    assert memory.kv_bytes_per_token(config, fp32) == 0
    assert (engine.kv_blocks, engine.kv_bytes) == (3 * 32, 3 * memory.slot_bytes(config, fp32, 512))
    found = named(plan(str(path), memory_bytes=1 << 30, bandwidth=1e9, context=500, concurrent=3))["fp32"]
    assert (found.kv_tokens, found.slot_bytes_per_request) == (3 * 512, memory.slot_bytes(config, fp32, 500))
    assert named(plan(str(path), memory_bytes=1 << 20, bandwidth=1e9))["fp32"].kv_tokens == 0


def test_a_ring_is_read_as_far_as_it_is_filled() -> None:
    """Two paged layers and two rings of 12 rows and one in 8 tokens; a row is 2 * 2 * 16 values of 4 bytes."""
    config, mode = CONFIGS["ring"], parse_precision("fp32")
    assert memory.kv_read_bytes(config, mode, 5) == (2 * 5 + 2 * 5) * 256
    assert memory.kv_read_bytes(config, mode, 100) == (2 * 100 + 2 * (12 + 13)) * 256


def test_the_plan_and_the_engine_agree_on_the_least_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine refuses one byte less than the plan asks for, before it loads anything."""
    monkeypatch.setattr(build, "process_pss", lambda pid: (memory.LIBRARIES + memory.API_PROCESS) // 2)

    def loading(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(build, "load_packed", loading)
    monkeypatch.setattr(build, "checkpoint_types", lambda checkpoint, shape: {})
    monkeypatch.setattr(build, "open_checkpoint", lambda path: Checkpoint(Path(path), "safetensors", {}, {}, ()))
    for name, precision in product(("DeepSeek-R1", "gemma-3-1b"), PRECISIONS):
        path = write_config(tmp_path, name) if precision == "fp32" else tmp_path / name
        shape = read_header(path).config
        monkeypatch.setattr(build, "read_config", lambda checkpoint, shape=shape: shape)
        found = plan(str(path), memory_bytes=1, bandwidth=1.0, context=memory.LEAST_TOKENS)
        needed = named(found)[precision].needed_bytes
        with pytest.raises(InterruptedError):
            build.load_engine(path, precision=precision, memory_bytes=needed, max_concurrent=1, companion_pid=1)
        with pytest.raises(CapacityError, match="needs at least"):
            build.load_engine(path, precision=precision, memory_bytes=needed - 1, max_concurrent=1, companion_pid=1)


PEAK = """
import sys
from deepseek_r1.engine.build import load_engine
from deepseek_r1.engine.request import GenerateRequest, SamplingParams
path, precision, context, concurrent = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
engine = load_engine(path, precision=precision, memory_bytes=1 << 30, max_concurrent=concurrent)
for i in range(concurrent):
    prompt = [(i * 37 + n) % 4000 + 10 for n in range(context - 8)]
    engine.submit(GenerateRequest(str(i), prompt, SamplingParams(max_tokens=8, ignore_eos=True)))
tokens = 0
while engine.has_work:
    tokens += len(engine.step())
with open("/proc/self/status") as status:
    print(tokens, next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")))
"""


@pytest.mark.parametrize(
    ("precision", "context", "concurrent"), [("fp32", 256, 1), ("bf16", 256, 1), ("mixed", 256, 1), ("bf16", 160, 4)]
)
def test_the_peak_of_the_default_model_is_foretold(precision: str, context: int, concurrent: int) -> None:
    """Within 10 % of what the kernel has seen resident at most, from the start of the process to the last token."""
    path = str(locate_model("default"))
    arguments = [path, precision, str(context), str(concurrent)]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tokens, measured = map(int, done.stdout.split())
    assert tokens == 8 * concurrent
    shape = read_header(Path(path)).config
    assert shape is not None
    foretold = {
        mode: memory.peak_bytes(shape, parse_precision(mode), context=context, concurrent=concurrent)
        for mode in ("fp32", precision)
    }
    assert foretold[precision] == pytest.approx(measured, rel=0.10)
    if precision != "mixed":
        planned = named(plan("default", context=context, concurrent=concurrent, bandwidth=1e9))
        assert planned[precision].peak_bytes == foretold[precision]
    if precision != "fp32":
        assert foretold["fp32"] != pytest.approx(measured, rel=0.30), "the control: another precision's is far off"


# --- headers only -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading any tensor fails."""

    def refused(*_: Any) -> None:
        raise AssertionError("tensor data was read")

    for method in ("read", "read_into", "read_rows", "read_quantised", "read_bf16_bits", "read_bf16_bits_into"):
        monkeypatch.setattr(Checkpoint, method, refused)


def write_header_only(folder: Path, name: str) -> int:
    """All tensors of a published model in one safetensors header, over a hole. Returns the bytes of the tensors."""
    config = FAMILIES.load(PUBLISHED[name]["model_type"]).from_hf(Fields(name, PUBLISHED[name]))
    shapes = parameter_shapes(config)
    header, offset = {}, 0
    for weight in FAMILIES.load(config.family).weights("safetensors", config, shapes):
        for stored in weight.names(0 if config.moe is None else config.moe.experts):
            shape = stored_shape(weight, shapes)
            size = 2
            for length in shape:
                size *= length
            header[stored] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return offset


@pytest.mark.usefixtures("no_reads")
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-30B-A3B", "DeepSeek-V2-Lite"])
def test_a_header_over_a_hole_is_planned(name: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path, name)
    bare = plan(str(folder), memory_bytes=1 << 36, bandwidth=1e9)
    written = write_header_only(folder, name)
    file = (folder / "model.safetensors").stat()
    assert file.st_blocks * 512 < 32 << 20 < written <= file.st_size, "the data is a hole"
    found = plan(str(folder), memory_bytes=1 << 36, bandwidth=1e9)
    assert (found.format, found.file_bytes) == ("safetensors", written)
    assert found == replace(bare, format="safetensors", path=folder / "model.safetensors")
    assert plan(str(folder / "model.safetensors"), memory_bytes=1 << 36, bandwidth=1e9).estimates == bare.estimates


@pytest.mark.usefixtures("no_reads")
def test_a_gguf_header_over_a_hole_is_planned(tmp_path: Path) -> None:
    """The default model's own header: Q4_1 takes 20 bytes for 32 values, Q8_0 (the table) 34, norms are F32."""
    real = locate_model("default")
    reader = gguf.GGUFReader(real)
    path = tmp_path / "header.gguf"
    with real.open("rb") as source, path.open("wb") as file:
        file.write(source.read(reader.data_offset))
        file.truncate(real.stat().st_size)
    found = plan(str(path), memory_bytes=1 << 32, bandwidth=1e9)
    disk = named(found)["on disk"]
    table, norms, linears = 49_152 * 576, 61 * 576, 106_168_320
    assert (found.parameters, found.active_parameters) == (table + norms + linears,) * 2 == (134_515_008,) * 2
    assert disk.weights_bytes == linears * 20 // 32 + table * 34 // 32 + norms * 4 == found.file_bytes
    assert disk.read_bytes_per_token == disk.weights_bytes + 576 * 34 // 32, "the tied table, and a row of it"
    assert disk.stored_as == ("Q4_1", "Q8_0", "F32")


def test_a_model_in_the_hubs_cache_is_found_and_none_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "deepseek-ai/DeepSeek-R1", "--bandwidth", "10", "--json"]
    assert main(arguments) == 1
    assert "deepseek-r1 models pull deepseek-ai/DeepSeek-R1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing was fetched"
    repository = tmp_path / "models--deepseek-ai--DeepSeek-R1"
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc/config.json").write_text(json.dumps(R1))
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 671_026_419_200


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_the_page_says_what_r1_would_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_r1.operate.plan.native_kernels", lambda: True)
    path = str(write_config(tmp_path, "DeepSeek-R1") / "config.json")
    assert main(["plan", path, "--memory", "16GB", "--bandwidth", "20", "--context", "32768"]) == 0
    out = capsys.readouterr().out
    rows = {line[:34].strip(): line[34:].split() for line in out.splitlines()}
    weights = rows["weights"][::2]  # fp32, bf16, int8, int4, on disk
    assert (*weights[:2], weights[4]) == ("2,684.11", "1,342.27", "673.15") and rows["weights"][1::2] == ["GB"] * 5
    # 8 and 4 bits, 653,908,770,816 of them in experts; in float32 the up-projections of latents, routers and norms.
    floats = 4 * (61 * 128 * 512 * 256 + 58 * (256 * 7168 + 256) + 61 * (2 * 7168 + 1536 + 512) + 7168)
    tables = 2 * 129_280 * 7168
    rest = 671_026_419_200 - floats // 4 - tables
    assert weights[2] == f"{(floats + (tables + rest) * 130 / 128) / 1e9:.2f}"
    outputs = 58 * 257 * (2 * 2048 + 7168) + 3 * (2 * 18_432 + 7168) + 61 * (1536 + 24_576 + 576 + 7168)
    assert weights[3] == f"{(floats + tables * 130 / 128 + rest * 18 / 32 + outputs * OWN) / 1e9:.2f}"
    assert rows["keys and values per token"] == ["140,544", "B", *["70,272", "B"] * 4]
    assert rows["fits"] == ["no"] * 5
    most, with_context = rows["tokens/s at most"], rows["tokens/s at 32,768 tokens"]
    assert (*most[:2], most[4]) == ("0.14", "0.27", "0.53")  # 20 over 146.50, 73.46 and 37.67
    assert (*with_context[:2], with_context[4]) == ("0.13", "0.26", "0.5")  # 4.61, 2.30 and 2.30 GB more
    assert "671,026,419,200, 36,625,625,600 active for each token" in out
    assert "11,610,068,224 in prediction modules, not loaded for serving" in out
    assert "bf16: 1,330.70 GB are missing. Give it 1255GiB of memory." in out
    assert "an upper bound for one request, set by memory bandwidth" in out


def test_the_machine_is_asked_where_nothing_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1e8 < found["memory_bytes"] <= total and not found["memory_given"]
    assert 1e8 < found["bandwidth"] < 1e13 and not found["bandwidth_given"]
    assert (found["family"], found["context"], found["concurrent"]) == ("llama", 4096, 1)
    assert [each["name"] for each in found["estimates"]] == [*PRECISIONS, "on disk"]


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    path = str(write_config(tmp_path, "DeepSeek-R1"))
    code = (
        "import sys; from deepseek_r1.cli.main import main; "
        f"code = main(['plan', {path!r}, '--json']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


BAD = {
    "no_such_folder": (None, [], 1, "no_such_folder: no such file or directory"),
    "empty": ("", [], 1, "config.json: file: is empty"),
    "no-json": ("{", [], 1, "config.json: content: is not JSON"),
    "list": ("[]", [], 1, "config.json: content: is not a JSON object"),
    "unnamed": ("{}", [], 1, "model_type: is missing"),
    "unknown": ('{"model_type": "mamba"}', [], 2, "'mamba' is not supported"),
    "hollow": ('{"model_type": "llama"}', [], 1, "is missing"),
    "hostile": (json.dumps(PUBLISHED["Llama-3.1-8B"] | {"num_hidden_layers": 10**9}), [], 1, "num_hidden_layers"),
    "odd": (json.dumps(R1 | {"quantization_config": 7}), [], 1, "quantization_config"),
    "long": (json.dumps(R1), ["--context", "163841"], 2, "context 163841 is beyond this model's 163840 tokens"),
    "zero": (json.dumps(R1), ["--context", "0"], 2, "context must be"),
    "size": (json.dumps(R1), ["--memory", "much"], 2, "memory must be"),
    "slow": (json.dumps(R1), ["--bandwidth", "-3"], 2, "bandwidth must be"),
    "none": (json.dumps(R1), ["--concurrent", "0"], 2, "concurrent must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, arguments, code, words = BAD[name]
    path = tmp_path / name
    if config is not None:
        path.mkdir()
        (path / "config.json").write_text(config)
    assert main(["plan", str(path), "--bandwidth", "10", *arguments]) == code
    printed = capsys.readouterr()
    first, *rest = printed.err.splitlines()
    assert printed.out == "" and first.startswith("error: ") and words in first
    assert all(line.startswith("  mend: ") for line in rest) and len(rest) <= 1


def test_the_page_ends_in_a_command_that_the_server_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """The figure that was planned, with the number of requests it was planned for, passes the engine's check."""
    assert main(["plan", "default", "--bandwidth", "20", "--context", "512", "--concurrent", "2"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("serve it: ")]
    words = line.removeprefix("serve it: deepseek-r1 ").split()
    config = config_from(ServeConfig, build_parser().parse_args(words))
    assert (config.model, config.precision, config.max_concurrent) == ("default", "fp32", 2)
    found = named(plan("default", memory_bytes=1 << 40, bandwidth=1.0, context=512, concurrent=2))["fp32"]
    assert config.memory is not None and 0 <= config.memory - found.needed_bytes < 1 << 20
