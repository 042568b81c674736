from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1.config.base import MAX_FILE_BYTES, Config, option, parse_size
from deepseek_r1.config.bench import BenchmarkConfig
from deepseek_r1.config.generate import GenerateConfig
from deepseek_r1.config.precision import OPERATOR_CLASSES, QUANTISABLE, DeepSeekConfig, parse_precision
from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.core.errors import ConfigError, UnsupportedError


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_R1_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GiB", 4 * 2**30),
        ("4g", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("800MB", 800 * 10**6),
        (" 1.5 MiB ", 3 * 2**19),
        ("1.15kB", 1150),
        ("2T", 2**41),
        ("77", 77),
        ("77b", 77),
        (123, 123),
    ],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4 XB", "4GiBs", "1e3", "٤GiB!", "nan", True, None, 1.5])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)  # type: ignore[arg-type]


@given(st.integers(0, 10**12))
def test_sizes_in_bytes_are_exact(nbytes: int) -> None:
    assert parse_size(str(nbytes)) == parse_size(f"{nbytes}B") == nbytes


def test_serve_defaults() -> None:
    config = ServeConfig()
    assert (config.host, config.port, config.precision) == ("127.0.0.1", 8080, "auto")
    assert config.queue_limit == 128
    assert config.update(max_concurrent=7).queue_limit == 28
    assert config.update(max_queue=0).queue_limit == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"port": 65536}, "port must be an integer from 0 to 65535, not 65536"),
        ({"port": -1}, "port must be an integer from 0 to 65535, not -1"),
        ({"port": "80"}, "port must be an integer from 0 to 65535, not '80'"),
        ({"port": True}, "port must be an integer .*, not True"),
        ({"port": None}, "port must be an integer .*, not None"),
        ({"port": 80.0}, "port must be an integer .*, not 80.0"),
        ({"max_concurrent": 0}, "max_concurrent must be an integer from 1 to 1024, not 0"),
        ({"max_concurrent": 1025}, "not 1025"),
        ({"stream_interval": 10.1}, "stream_interval must be a number from 0 to 10, not 10.1"),
        ({"stream_interval": float("nan")}, "stream_interval must be a number .*, not nan"),
        ({"memory": "4 elephants"}, "memory must be a size in bytes .*, not '4 elephants'"),
        ({"memory": 0}, "memory must be a size"),
        ({"host": 7}, "host must be text, not 7"),
        ({"api_key": ""}, "api_key must be printable ASCII"),
        ({"api_key": "schlüssel"}, "api_key must be printable ASCII"),
        ({"precision": "fp31"}, r"unknown precision 'fp31' \(did you mean 'fp32'\?\)"),
    ],
)
def test_serve_bounds(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServeConfig().update(changes)
    with pytest.raises(ConfigError, match=words):
        ServeConfig(**changes)  # type: ignore[arg-type]


def test_edges_of_the_bounds_are_allowed() -> None:
    config = ServeConfig(port=0, max_concurrent=1024, stream_interval=0, memory="2GiB")  # type: ignore[arg-type]
    assert (config.port, config.max_concurrent, config.memory) == (0, 1024, 2**31)
    assert isinstance(config.stream_interval, float)


def test_update_leaves_the_original_alone() -> None:
    config = ServeConfig()
    changed = config.update({"port": 9000}, host="0.0.0.0")
    assert (config.port, config.host) == (8080, "127.0.0.1")
    assert (changed.port, changed.host) == (9000, "0.0.0.0")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]
    assert changed == ServeConfig(port=9000, host="0.0.0.0")
    assert hash(changed) == hash(ServeConfig(port=9000, host="0.0.0.0"))


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"ServeConfig has no setting 'prot' \(did you mean 'port'\?\)"):
        ServeConfig().update(prot=1)
    with pytest.raises(ConfigError, match=r"'max-queue' \(did you mean 'max_queue'\?\)"):
        ServeConfig.from_mapping({"max-queue": 1})
    with pytest.raises(ConfigError, match="has no setting 3"):
        ServeConfig.from_mapping({3: 1})  # type: ignore[dict-item]


def test_the_key_stays_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_R1_API_KEY", "from-the-environment")
    assert ServeConfig().api_key == "from-the-environment"
    assert ServeConfig(api_key="given").api_key == "given"
    assert ServeConfig(api_key=None).api_key is None
    config = ServeConfig()
    assert "from-the-environment" not in repr(config)
    assert "api_key" not in config.to_dict()
    assert config.to_dict(secrets=True)["api_key"] == "from-the-environment"
    with pytest.raises(ConfigError) as caught:
        ServeConfig(api_key=["s3cret"])  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)


def test_to_dict_and_back() -> None:
    config = BenchmarkConfig(concurrency=[2, 8], prompts=3)  # type: ignore[arg-type]
    assert config.concurrency == (2, 8)
    assert config.to_dict()["concurrency"] == [2, 8]
    assert BenchmarkConfig.from_mapping(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'model = "x.gguf"\nport = 9000\nmemory = "1GiB"\nstream_interval = 1\n'),
        ("a.yaml", "model: x.gguf\nport: 9000\nmemory: 1GiB\nstream_interval: 1\nmax_queue: null\n"),
        ("a.yml", '{"model": "x.gguf", "port": 9000, "memory": 1073741824, "stream_interval": 1.0}'),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert ServeConfig.from_file(tmp_path / name) == ServeConfig(
        model="x.gguf", port=9000, memory=2**30, stream_interval=1.0
    )


def test_an_empty_yaml_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert ServeConfig.from_file(tmp_path / "a.yaml") == ServeConfig()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.toml", b'port = "80"', "a.toml: port must be an integer .*, not '80'"),
        ("a.yaml", b"prot: 80", "a.yaml: ServeConfig has no setting 'prot' .*did you mean 'port'"),
        ("a.yaml", b"precision: fp8", "a.yaml: precision 'fp8' is not available yet"),
        ("a.toml", b"port = = 1", r"a.toml: .*line 1"),
        ("a.yaml", b"port: [1", r"a.yaml: .*line 1"),
        ("a.yaml", b"- port", "must hold a table of settings"),
        ("a.yaml", b"!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a.yaml", b"[" * 5000, "nested too deeply"),
        ("a.toml", b"a = " + b"[" * 5000, "nested too deeply|a.toml: "),
        ("a.toml", b"\xff\xfe", "not UTF-8"),
        ("a.toml", b"#" * (MAX_FILE_BYTES + 1), "larger than"),
        ("a.json", b"{}", "not a configuration file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises((ConfigError, UnsupportedError), match=words) as caught:
        ServeConfig.from_file(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message


def test_aliases_that_multiply_stay_small(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)] + ["port: *a59"]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match="has no setting 'a0'"):
        ServeConfig.from_file(tmp_path / "bomb.yaml")
    (tmp_path / "bomb.yaml").write_text("port: [&b [x, x]" + ", *b" * 2000 + "]")
    with pytest.raises(ConfigError, match="port must be an integer") as caught:
        ServeConfig.from_file(tmp_path / "bomb.yaml")
    assert len(str(caught.value)) < 1000


def test_a_broken_file_does_not_show_its_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("api_key: s3cret: s3cret")
    (tmp_path / "a.toml").write_text("api_key = s3cret")
    for name in ("a.yaml", "a.toml"):
        with pytest.raises(ConfigError, match="line 1") as caught:
            ServeConfig.from_file(tmp_path / name)
        assert "s3cret" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        ServeConfig.from_file(tmp_path / "none.toml")


def test_every_field_has_words() -> None:
    for config in (ServeConfig, BenchmarkConfig, GenerateConfig, DeepSeekConfig):
        for spec in config.options():
            assert len(spec.help) >= 10, (config, spec.name)


def test_words_for_list_and_optional_fields() -> None:
    class Small(Config):
        levels: tuple[int, ...] = option(default=(1,), help="levels", minimum=1, maximum=3)
        mode: str | None = option(default=None, help="mode", choices=("a", "b"))

    assert Small(levels=[3]).levels == (3,)  # type: ignore[arg-type]
    for bad in ([0], [1, 4], ["1"], 1, "1"):
        with pytest.raises(ConfigError, match="levels must be a list of integers from 1 to 3"):
            Small(levels=bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"mode must be one of a, b \(or none\), not 'c'"):
        Small(mode="c")


def test_uniform_precision() -> None:
    for mode in ("fp32", "bf16"):
        config = DeepSeekConfig(precision_mode=mode)
        assert {config.dtype_of(name) for name in OPERATOR_CLASSES} == {mode}
        assert config.name == mode
    for mode in ("int8", "int4"):
        config = parse_precision(mode)
        assert {name: config.dtype_of(name) for name in OPERATOR_CLASSES} == {
            **dict.fromkeys(OPERATOR_CLASSES, "fp32"),
            **dict.fromkeys(("embedding", "linear", "lm_head"), mode),
            "kv_cache": "bf16",
        }
        assert config.name == mode


def test_auto_has_no_formats_before_a_model_is_opened() -> None:
    config = parse_precision("auto")
    assert config == DeepSeekConfig("auto") and config.name == "auto"
    with pytest.raises(ConfigError, match="resolved when a model is opened"):
        config.dtype_of("linear")


def test_mixed_precision() -> None:
    config = DeepSeekConfig(precision_mode="mixed", fp32_ops=["attention"], bf16_ops=["norm"])  # type: ignore[arg-type]
    assert {name: config.dtype_of(name) for name in OPERATOR_CLASSES} == {
        "embedding": "bf16",
        "linear": "bf16",
        "norm": "bf16",
        "rope": "fp32",
        "attention": "fp32",
        "activation": "bf16",
        "lm_head": "bf16",
        "kv_cache": "bf16",
    }
    assert DeepSeekConfig(precision_mode="mixed").dtype_of("norm") == "fp32"
    config = DeepSeekConfig("mixed", int8_ops=("lm_head",), int4_ops=("linear",))
    assert [config.dtype_of(name) for name in ("lm_head", "linear", "embedding", "norm")] == [
        *("int8", "int4", "bf16", "fp32")
    ]


@given(
    st.dictionaries(st.sampled_from(OPERATOR_CLASSES), st.sampled_from(["fp32", "bf16"])),
    st.dictionaries(st.sampled_from(QUANTISABLE), st.sampled_from(["int8", "int4"])),
)
def test_the_name_of_a_mixture_is_canonical(floats: dict[str, str], quantised: dict[str, str]) -> None:
    chosen = floats | quantised

    def ops(dtype: str) -> tuple[str, ...]:
        return tuple(name for name, given_dtype in chosen.items() if given_dtype == dtype)

    config = DeepSeekConfig(precision_mode="mixed", fp32_ops=ops("fp32"), bf16_ops=ops("bf16"))
    config = config.update(int8_ops=ops("int8"), int4_ops=ops("int4"))
    read = parse_precision(config.name)
    assert [read.dtype_of(name) for name in OPERATOR_CLASSES] == [config.dtype_of(name) for name in OPERATOR_CLASSES]
    assert read.name == config.name


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"precision_mode": "fp8"}, UnsupportedError, "'fp8' is not available yet"),
        ({"precision_mode": "fp16"}, UnsupportedError, "'fp16' is not available yet.*int8, int4, mixed, auto"),
        ({"precision_mode": "bf61"}, ConfigError, r"unknown precision 'bf61' \(did you mean 'bf16'\?\)"),
        (
            {"precision_mode": "mixed", "int8_ops": ["linear", "attention"]},
            UnsupportedError,
            "'attention' does not compute in int8 .*embedding, linear, lm_head",
        ),
        ({"precision_mode": "mixed", "fp32_ops": ["attn"]}, ConfigError, "did you mean 'attention'"),
        ({"precision_mode": "mixed", "fp32_ops": "linear"}, ConfigError, "fp32_ops must be a list of texts"),
        ({"precision_mode": "mixed", "fp32_ops": ["norm"], "bf16_ops": ["norm"]}, ConfigError, "'norm' is named twice"),
        ({"precision_mode": "mixed", "fp32_ops": ["norm", "norm"]}, ConfigError, "'norm' is named twice"),
        ({"precision_mode": "mixed", "int4_ops": ["linea"]}, ConfigError, "did you mean 'linear'"),
        ({"precision_mode": "mixed", "int4_ops": ["linear"], "int8_ops": ["linear"]}, ConfigError, "named twice"),
    ],
)
def test_precisions_that_are_refused(settings: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        DeepSeekConfig.from_mapping(settings)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ConfigError),
        ("mixed:", ConfigError),
        ("mixed:norm", ConfigError),
        ("mixed:norm=fp8", UnsupportedError),
        ("mixed:norm=int8", UnsupportedError),
        ("mixed:norm=fp32,norm=bf16", ConfigError),
        ("fp32:", ConfigError),
        ("int4:kv_cache=int4", UnsupportedError),
        ("int8:kv_cache", ConfigError),
    ],
)
def test_precision_texts_that_are_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_precision(text)


def test_unknown_operator_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        DeepSeekConfig().dtype_of("linears")
