"""Finding models: the embedded default, paths and names. Hub ids are in test_models_pull."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepseek_r1.core.errors import CheckpointError, ModelNotFoundError
from deepseek_r1.models import locate


def test_paths_and_names() -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        locate.locate_model("/nowhere/model.gguf")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        locate.locate_model("model.gguf")
    assert locate.locate_model("default").name == locate.DEFAULT_FILE
    assert locate.served_name("default") == "SmolLM2-135M-Instruct"
    assert locate.served_name("/some/where/Model.Q8_0.gguf") == "Model.Q8_0"
    assert locate.served_name("org/model") == "org/model"


def test_a_changed_default_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / locate.DEFAULT_FILE
    path.write_bytes(b"not the model")
    with pytest.raises(CheckpointError, match="sha256"):
        locate.verify_embedded(path)


def test_a_missing_default_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "embedded_path", lambda: None)
    with pytest.raises(ModelNotFoundError) as error:
        locate.locate_model("default")
    assert "pip install" in error.value.remedy
