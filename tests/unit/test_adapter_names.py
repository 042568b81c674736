"""What users may call adapters, on every way in: the command line, files, Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_r1 import Deployer
from deepseek_r1.cli.main import build_parser
from deepseek_r1.cli.options import config_from
from deepseek_r1.config.adapters import MOST_BYTES, NAME, checked_adapters, parse_adapters
from deepseek_r1.config.generate import GenerateConfig
from deepseek_r1.config.serve import ServeConfig
from deepseek_r1.core.errors import ConfigError


@given(
    st.dictionaries(
        st.from_regex(NAME, fullmatch=True).filter(lambda name: name != "default"),
        st.text(st.characters(codec="utf-8", exclude_characters="~"), min_size=1, max_size=40),
        max_size=8,
    )
)
def test_what_is_written_is_read(adapters: dict[str, str]) -> None:
    """A folder may hold any character, = among them."""
    assert parse_adapters(f"{name}={folder}" for name, folder in adapters.items()) == adapters
    assert checked_adapters(adapters, "base") == adapters or "base" in adapters


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["poet"], "'poet' names no adapter"),
        (["poet="], "'poet=' names no adapter"),
        (["=folder"], "'' is no name for the adapter in folder"),
        (["a.b=folder"], "'a.b' is no name for the adapter in folder"),
        ([f"{'a' * 65}=folder"], "is no name"),
        (["po\u00ebt=folder"], "is no name"),
        (["default=folder"], "'default' is what the model itself is called, not the adapter in folder"),
        (["none", "a=one"], "'none' names no adapter"),
        (["a=one", "none"], "'none' names no adapter"),
        (["a=one", "b=two", "a=three"], "two adapters are called 'a': one and three"),
        ([f"a{n}={'x' * 100}" for n in range(MOST_BYTES // 100)], "more than 8192"),
    ],
)
def test_what_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServeConfig(adapter=given)
    assert words in caught.value.message and caught.value.remedy
    if len(given) == 1:
        with pytest.raises(ConfigError):
            GenerateConfig(adapter=given[0])


def test_a_folder_below_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_adapters(["a=~/poems", "b=~nobody-of-this-name/x"]) == {
        "a": "/home/me/poems",
        "b": "~nobody-of-this-name/x",
    }


def test_the_default_is_one_of_them() -> None:
    assert ServeConfig(adapter=["a=one"], default_adapter="a").default_adapter == "a"
    with pytest.raises(ConfigError, match="no adapter 'b'"):
        ServeConfig(adapter=["a=one"], default_adapter="b")
    with pytest.raises(ConfigError, match="no adapter 'b'"):
        ServeConfig(default_adapter="b")


def test_none_is_none() -> None:
    for config in (ServeConfig(adapter=["none"]), GenerateConfig(adapter="none")):
        assert config.adapters == {}
    assert "model" not in GenerateConfig(adapter="none").sampling
    assert ServeConfig(adapter=["none=folder"]).adapters == {"none": "folder"}, "a name as any other"
    with pytest.raises(ConfigError, match="no adapter 'a'"):
        ServeConfig(adapter=["none"], default_adapter="a")


def test_the_command_line(tmp_path: Path) -> None:
    words = ["serve", "--adapter", "a=one", "--adapter", "b=two,three", "--default-adapter", "b"]
    config = config_from(ServeConfig, build_parser().parse_args(words))
    assert (config.adapters, config.default_adapter) == ({"a": "one", "b": "two,three"}, "b")
    file = tmp_path / "serve.yaml"
    file.write_text("adapter: [a=one, b=two]\n")
    assert ServeConfig.from_file(file).adapters == {"a": "one", "b": "two"}
    assert ServeConfig().adapters == {}
    given = build_parser().parse_args(["generate", "--adapter", "a=one", "--seed", "1"])
    generate = config_from(GenerateConfig, given)
    assert generate.adapters == {"a": "one"} and generate.sampling["model"] == "a"
    assert GenerateConfig().adapters == {} and "model" not in GenerateConfig().sampling


def test_the_deployer(tmp_path: Path) -> None:
    config = Deployer("default", adapters={"a": tmp_path, "b": "two=2"}).config
    assert config.adapters == {"a": str(tmp_path), "b": "two=2"}
    for name in ("a=b", "", "default"):
        with pytest.raises(ConfigError):
            Deployer("default", adapters={name: tmp_path})
