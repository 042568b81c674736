"""Finding models: the embedded default, paths, and hub ids against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deepseek_r1.core.errors import CheckpointError, ModelNotFoundError
from deepseek_r1.models import locate

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "evil.py": b"boom",
    "pytorch_model.bin": b"pickle",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/tiny/model/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in FILES.items()
            ]
            self.answer(json.dumps(tree).encode())
            return
        if self.path.startswith("/api/models/tiny/model"):
            self.answer(
                json.dumps({"id": "tiny/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}).encode()
            )
            return
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/tiny/model/resolve/") and name in FILES:
            self.answer(FILES[name])
            return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def located(model: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """`locate_model` in a process of its own: the hub's library reads its settings when it is imported."""
    code = (
        "import sys\nfrom deepseek_r1.core.errors import DeepSeekError\n"
        "from deepseek_r1.models.locate import locate_model\n"
        "try: print(locate_model(sys.argv[1]))\nexcept DeepSeekError as e: sys.exit(f'{e.message}|{e.remedy}')\n"
    )
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code, model], env=env, capture_output=True, text=True, timeout=60)


def test_hub_ids_bring_weights_and_no_code(hub: str, tmp_path: Path) -> None:
    done = located("tiny/model", hub, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    again = located("tiny/model", "http://127.0.0.1:9", tmp_path)
    assert Path(again.stdout.strip()) == folder, "a model that is there is found without the hub"


def test_unknown_ids_and_no_network_are_one_clear_error(hub: str, tmp_path: Path) -> None:
    unknown = located("tiny/other", hub, tmp_path)
    assert unknown.returncode == 1 and "tiny/other" in unknown.stderr and "Traceback" not in unknown.stderr
    offline = located("tiny/other", "http://127.0.0.1:9", tmp_path)
    assert offline.returncode == 1 and "can't be reached" in offline.stderr and "Traceback" not in offline.stderr
    assert "HF_ENDPOINT" in offline.stderr


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
