"""`models pull` against a hub on this machine: what is fetched, how it resumes, what is refused, what is said."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from deepseek_r1.cli.main import main
from deepseek_r1.cli.terminal import Progress
from deepseek_r1.core.errors import CapacityError, ModelNotFoundError, UnsupportedError
from deepseek_r1.models.hub_errors import hub_errors
from deepseek_r1.models.hub_store import HubFile
from deepseek_r1.models.pull import choose
from support.local_hub import COMMIT, TOKEN, Hub, serving

gguf = pytest.importorskip("gguf")

INDEX = "model.safetensors.index.json"
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
LAYER = {
    "input_layernorm.weight": (8,),
    "post_attention_layernorm.weight": (8,),
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.q_proj.bias": (8,),
    "self_attn.k_proj.weight": (4, 8),
    "self_attn.k_proj.bias": (4,),
    "self_attn.v_proj.weight": (4, 8),
    "self_attn.v_proj.bias": (4,),
    "self_attn.o_proj.weight": (8, 8),
    "mlp.gate_proj.weight": (12, 8),
    "mlp.up_proj.weight": (12, 8),
    "mlp.down_proj.weight": (8, 12),
}
CHUNK = 10 << 20
"""What the hub's library gathers before it writes: up to so many bytes of a connection that is cut are not kept."""


def whole_model() -> dict[str, bytes]:
    """Two shards, what belongs to them, and all that a repository carries besides."""
    first = save({"model.embed_tokens.weight": np.ones((10, 8), np.float32), "model.norm.weight": np.ones(8, "f4")})
    second = save({f"model.layers.0.{name}": np.ones(shape, np.float32) for name, shape in LAYER.items()})
    shards = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    weight_map = {f"model.layers.0.{name}": "model-00002-of-00002.safetensors" for name in LAYER}
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        weight_map[name] = "model-00001-of-00002.safetensors"
    wanted = {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"model": 1}',
        "tokenizer_config.json": b'{"config": 1}',
        "added_tokens.json": b"[]",
        "special_tokens_map.json": b"[]",
        "chat_template.jinja": b"{{ messages }}",
        INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        **shards,
    }
    other = {
        "README.md": b"words",
        "modeling_evil.py": b"boom",
        "pytorch_model.bin": b"pickle",
        "training_args.pt": b"pickle",
        "consolidated.safetensors": bytes(5000),
        "original/model.safetensors": bytes(5000),
        "onnx/model.onnx": bytes(5000),
    }
    return wanted | other


WANTED = set(list(whole_model())[:10])


def gguf_file(folder: Path, megabytes: int) -> bytes:
    path = folder / "made.gguf"
    writer = gguf.GGUFWriter(path, "rwkv")
    values = np.random.default_rng(megabytes).standard_normal((megabytes << 10, 256), np.float32)
    writer.add_tensor("a", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    path.unlink()
    return content


@dataclass
class Machine:
    """Where the command runs: a home folder, and the hub that it knows."""

    home: Path
    hub: Hub

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return kept | {"HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.home), "HF_TOKEN": TOKEN} | more

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "deepseek_r1.cli.main", *words]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own: the hub's library reads its settings when it is imported."""
        done = subprocess.run(
            self.argv(*words), env=self.environment(**more), capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr and TOKEN not in done.stderr + done.stdout
        return done

    def pulled(self, *words: str) -> Any:
        done = self.run("models", "pull", *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *words: str, **more: str) -> tuple[str, str]:
        """The error and its remedy, each one line and the last that is said."""
        done = self.run("models", "pull", *words, **more)
        assert done.returncode in (1, 2) and done.stdout == "", done.stderr
        error, mend = done.stderr.splitlines()[-2:]
        assert error.startswith("error: ") and mend.startswith("  mend: "), done.stderr
        return error.removeprefix("error: "), mend.removeprefix("  mend: ")

    def located(self, repo: str, endpoint: str = "http://127.0.0.1:9") -> Path:
        """What `serve` finds; without an endpoint, what it finds without a network."""
        code = "import sys; from deepseek_r1.models.locate import locate_model; print(locate_model(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", code, repo],
            env=self.environment(HF_ENDPOINT=endpoint),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def not_served(self, repo: str) -> str:
        """What a verb that fetches a model by itself says when it can't."""
        done = self.run("serve", repo, "--port", "0")
        assert done.returncode in (1, 2), done.stderr
        return done.stderr

    def partial(self) -> list[Path]:
        return list(self.home.glob("hub/models--*/blobs/*.incomplete"))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with serving(Hub({"tiny/model": whole_model()})) as hub:
        yield Machine(tmp_path / "home", hub)


# --- what is fetched, and where it lies -------------------------------------------------------------------------------


def test_a_model_is_pulled_found_and_not_fetched_again(machine: Machine) -> None:
    files = machine.hub.repos["tiny/model"]
    model = machine.pulled("tiny/model")
    snapshot = Path(model["path"])
    assert {path.name for path in snapshot.iterdir()} == WANTED and INDEX in WANTED
    for name in WANTED:
        assert (snapshot / name).read_bytes() == files[name]
    assert snapshot == machine.home / "hub/models--tiny--model/snapshots" / COMMIT
    assert (model["commit"], model["architecture"], model["unsupported"]) == (COMMIT, "qwen2", None)
    assert (model["serve"], set(model["fetched"])) == ("tiny/model", WANTED)
    digests = {file["name"]: file["digest"] for file in model["files"]}
    shard = "model-00001-of-00002.safetensors"
    assert digests[shard] == hashlib.sha256(files[shard]).hexdigest()
    assert machine.located("tiny/model") == snapshot
    assert not any("xet" in seen.path for seen in machine.hub.requests), "plain HTTP, whatever is installed"

    machine.hub.requests.clear()
    assert machine.pulled("tiny/model")["fetched"] == []
    assert sum(seen.sent for seen in machine.hub.requests) == 0

    page = machine.run("models", "pull", "tiny/model").stdout
    lines = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in page.splitlines()}
    assert lines["commit"] == f"{COMMIT} (main)"
    assert lines["architecture"] == "qwen2, supported"
    assert lines["files"].endswith("0 fetched and verified now")
    assert lines["serve it with"] == "deepseek-r1 serve tiny/model"
    listed = json.loads(machine.run("models", "list", "--json").stdout)
    assert str(snapshot) in [entry["path"] for entry in listed]


def test_a_listing_of_the_hub_s_library_does_not_hide_a_pulled_model(machine: Machine) -> None:
    """The library notes all files of a repository when somebody downloads from it, and then misses those left out."""
    snapshot = Path(machine.pulled("tiny/model")["path"])
    trees = snapshot.parents[1] / "trees"
    trees.mkdir()
    (trees / f"{COMMIT}.json").write_text(
        json.dumps({name: {"size": len(body)} for name, body in machine.hub.repos["tiny/model"].items()})
    )
    assert machine.located("tiny/model") == snapshot


def test_the_token_reaches_the_hub_and_nobody_else(machine: Machine) -> None:
    machine.pulled("tiny/model")
    hub = [seen for seen in machine.hub.requests if "tiny/model" in seen.path and not seen.path.startswith("/storage/")]
    storage = [seen for seen in machine.hub.requests if seen.path.startswith("/storage/")]
    assert {seen.token for seen in hub} == {f"Bearer {TOKEN}"}
    assert {seen.token for seen in storage} == {None} and len(storage) == 2
    assert {seen.host.split(":")[0] for seen in storage} == {"localhost"}


def test_one_gguf_is_chosen(machine: Machine, tmp_path: Path) -> None:
    one = gguf_file(tmp_path, 1)
    machine.hub.repos["tiny/one"] = {"README.md": b"x", "model.Q8_0.gguf": one, "config.json": b"{}"}
    machine.hub.repos["tiny/two"] = {"a.Q4_0.gguf": one, "b.Q8_0.gguf": gguf_file(tmp_path, 2)}
    model = machine.pulled("tiny/one")
    assert [file["name"] for file in model["files"]] == ["model.Q8_0.gguf"]
    assert (model["architecture"], model["serve"]) == ("rwkv", "tiny/one")
    assert "'rwkv' is not supported" in model["unsupported"]
    assert machine.located("tiny/one") == Path(model["path"]).parent

    error, mend = machine.refused("tiny/two")
    assert error == "tiny/two holds 2 GGUF files, and one is served"
    assert mend == "name one with --file: a.Q4_0.gguf (1.0 MB), b.Q8_0.gguf (2.1 MB)"
    assert "no GGUF file 'c.gguf'" in machine.refused("tiny/two", "--file", "c.gguf")[0]
    assert machine.pulled("tiny/two", "--file", "b.Q8_0.gguf")["serve"] == "tiny/two"
    second = machine.pulled("tiny/two", "--file", "a.Q4_0.gguf")
    assert second["serve"] == second["path"], "two in the folder: the hub id alone would be ambiguous"
    assert Path(second["path"]).read_bytes() == one
    page = machine.run("models", "pull", "tiny/two", "--file", "a.Q4_0.gguf").stdout
    assert "not supported" in page and "serve it with" not in page


def test_a_revision_is_pinned(machine: Machine) -> None:
    other = "f" * 40
    machine.hub.revisions["v1"] = other
    model = machine.pulled("tiny/model", "--revision", "v1")
    assert (model["commit"], model["serve"]) == (other, model["path"])
    refs = machine.home / "hub/models--tiny--model/refs"
    assert {path.name: path.read_text() for path in refs.iterdir()} == {"v1": other}
    machine.hub.requests.clear()
    again = machine.pulled("tiny/model", "--revision", COMMIT)
    assert again["commit"] == COMMIT and again["fetched"] == [], "the same content is not fetched for another commit"


# --- what there is to choose from -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["README.md"], "neither safetensors nor GGUF"),
        (["pytorch_model.bin", "config.json"], "only as pickle"),
        (["adapter_model.safetensors"], "without a config.json"),
        (["a.safetensors", "b.safetensors", "config.json"], f"no {INDEX}"),
        (["unet/model.safetensors", "config.json"], "neither"),
    ],
)
def test_repositories_with_nothing_to_serve(names: list[str], words: str) -> None:
    with pytest.raises(ModelNotFoundError, match=words) as error:
        choose("a/b", {name: HubFile(name, 1, "0" * 64) for name in names}, None)
    assert "look for another repository" in error.value.remedy


def test_ggufs_in_parts_are_refused_before_they_are_fetched() -> None:
    names = ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]
    listing = {name: HubFile(name, 1, "0" * 64) for name in names}
    for file in (None, names[1]):
        with pytest.raises(UnsupportedError, match="part of a GGUF"):
            choose("a/b", listing, file)
    listing["small.gguf"] = HubFile("small.gguf", 1, "1" * 64)
    assert choose("a/b", listing, None) == ["small.gguf"]


# --- transfers that are cut off ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
def test_a_dropped_connection_resumes(machine: Machine, tmp_path: Path, reset: bool) -> None:
    content = gguf_file(tmp_path, 30)
    machine.hub.repos["tiny/big"] = {"big.gguf": content}
    machine.hub.cut, machine.hub.reset = [25 << 20], reset
    model = machine.pulled("tiny/big")
    assert Path(model["path"]).read_bytes() == content
    first, second = machine.hub.bodies("big.gguf")
    assert first.range is None and second.range is not None
    have = int(second.range.removeprefix("bytes=").removesuffix("-"))
    assert (25 << 20) - CHUNK <= have <= 25 << 20
    assert second.sent == len(content) - have
    assert machine.partial() == []


def test_a_killed_process_resumes(machine: Machine, tmp_path: Path) -> None:
    content = gguf_file(tmp_path, 30)
    machine.hub.repos["tiny/big"] = {"big.gguf": content}
    for cut, end, code in ((12 << 20, signal.SIGKILL, -signal.SIGKILL), (11 << 20, signal.SIGINT, 130)):
        machine.hub.cut, machine.hub.stall = [cut], threading.Event()
        before = sum(path.stat().st_size for path in machine.partial())
        with subprocess.Popen(
            machine.argv("models", "pull", "tiny/big"), env=machine.environment(), stderr=subprocess.PIPE, text=True
        ) as process:
            deadline = time.monotonic() + 60
            while not machine.partial() or machine.partial()[0].stat().st_size < before + CHUNK:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            if end == signal.SIGINT:
                error, mend = machine.refused("tiny/big")
                assert error == "tiny/big: another process is fetching big.gguf" and "wait" in mend
            process.send_signal(end)
            assert process.wait(30) == code and process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        machine.hub.stall.set()
        assert machine.partial()[0].stat().st_size == before + CHUNK
    model = machine.pulled("tiny/big")
    assert Path(model["path"]).read_bytes() == content
    asked = [seen.range for seen in machine.hub.bodies("big.gguf")]
    assert asked == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    assert machine.hub.bodies("big.gguf")[-1].sent == len(content) - 2 * CHUNK


def test_a_hub_that_goes_away_leaves_what_came(tmp_path: Path) -> None:
    content = gguf_file(tmp_path, 30)
    with serving(Hub({"tiny/big": {"big.gguf": content}}, cut=[25 << 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])) as hub:
        machine = Machine(tmp_path / "home", hub)
        error, mend = machine.refused("tiny/big")
        assert error.startswith("tiny/big: the hub can't be reached: ") and "run the same command again" in mend
    assert machine.partial()[0].stat().st_size == 2 * CHUNK
    assert not list(machine.home.glob("hub/models--*/refs/*")), "nothing that `serve` could take for a whole model"
    with serving(Hub({"tiny/big": {"big.gguf": content}})) as hub:
        machine.hub = hub
        assert Path(machine.pulled("tiny/big")["path"]).read_bytes() == content
        assert [seen.sent for seen in hub.bodies("big.gguf")] == [len(content) - 2 * CHUNK]


def test_a_storage_without_ranges_starts_again(machine: Machine, tmp_path: Path) -> None:
    content = gguf_file(tmp_path, 12)
    machine.hub.repos["tiny/big"] = {"big.gguf": content}
    machine.hub.cut, machine.hub.ranges = [11 << 20], False
    assert Path(machine.pulled("tiny/big")["path"]).read_bytes() == content
    assert [seen.sent for seen in machine.hub.bodies("big.gguf")] == [11 << 20, len(content)]


def test_whatever_takes_a_hub_id_fetches_in_the_same_way(machine: Machine, tmp_path: Path) -> None:
    """It resumes and verifies as `models pull` does, and says the same of failures; inspecting fetches nothing."""
    assert "models pull tiny/model" in machine.run("models", "inspect", "tiny/model").stderr
    snapshot = machine.located("tiny/model", machine.hub.endpoint)
    assert {path.name for path in snapshot.iterdir()} == WANTED and machine.located("tiny/model") == snapshot
    assert json.loads(machine.run("models", "inspect", "tiny/model", "--json").stdout)["path"] == str(snapshot)
    machine.hub.repos["tiny/gguf"] = {"config.json": b"{}", "model.gguf": gguf_file(tmp_path, 1)}
    assert machine.located("tiny/gguf", machine.hub.endpoint).name == "model.gguf"
    machine.hub.repos["tiny/two"] = {"a.gguf": gguf_file(tmp_path, 1), "b.gguf": gguf_file(tmp_path, 1)}
    assert "name one with --file" in machine.not_served("tiny/two")
    name = "tokenizer.json"
    machine.hub.repos["tiny/bad"] = whole_model()
    machine.hub.served[name] = b"changed"
    assert f"tiny/bad/{name}: " in machine.not_served("tiny/bad")
    assert "tiny/none" in machine.not_served("tiny/none")


def test_a_cache_with_only_a_configuration_is_no_model(machine: Machine) -> None:
    """As a program leaves it that asked for the configuration alone."""
    snapshot = machine.home / "hub/models--tiny--model/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(COMMIT)
    inspected = json.loads(machine.run("models", "inspect", "tiny/model", "--json").stdout)
    assert inspected["tensors"] == {}, "a configuration is enough to look at"
    assert machine.located("tiny/model", machine.hub.endpoint) == snapshot
    assert (snapshot / INDEX).is_file(), "but not to serve"


# --- verification -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json", INDEX])
def test_a_changed_body_is_refused_named_and_removed(machine: Machine, name: str) -> None:
    body = machine.hub.repos["tiny/model"][name]
    machine.hub.served[name] = bytes([body[0] ^ 1]) + body[1:]
    error, _ = machine.refused("tiny/model")
    assert f"tiny/model/{name}: " in error and "as the hub lists it" in error
    assert hashlib.sha256(machine.hub.served[name]).hexdigest() in error or "git object id" in error
    kept = [path.read_bytes() for path in machine.home.glob("hub/models--*/blobs/*")]
    assert machine.hub.served[name] not in kept and machine.partial() == []
    assert not list(machine.home.glob("hub/models--*/refs/*"))
    machine.hub.served.clear()
    fetched = machine.pulled("tiny/model")["fetched"]
    assert name in fetched and machine.located("tiny/model").is_dir()


def test_a_longer_body_is_cut_off(machine: Machine) -> None:
    name = "model-00001-of-00002.safetensors"
    machine.hub.served[name] = machine.hub.repos["tiny/model"][name] + bytes(30 << 20)
    assert f"{name}: size: more than" in machine.refused("tiny/model")[0]
    assert machine.partial() == []
    assert max(path.stat().st_size for path in machine.home.glob("hub/models--*/blobs/*")) < 1 << 20


def test_a_file_of_another_size_is_fetched_again(machine: Machine) -> None:
    snapshot = Path(machine.pulled("tiny/model")["path"])
    name = "model-00001-of-00002.safetensors"
    (snapshot / name).resolve().write_bytes(b"short")
    assert machine.pulled("tiny/model")["fetched"] == [name]
    assert (snapshot / name).read_bytes() == machine.hub.repos["tiny/model"][name]


def test_a_hub_that_serves_another_file_than_it_lists(machine: Machine) -> None:
    def lie(siblings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in siblings:
            if entry["rfilename"] == "tokenizer.json":
                entry["blobId"] = "0" * 40
        return siblings

    machine.hub.listed = lie
    assert "the hub serves another one than it lists" in machine.refused("tiny/model")[0]


# --- hostile listings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x", "../../x.safetensors", "/etc/x", "a/../../x", "a\\..\\x.gguf", "a\x1b[2J.gguf", "a//b", ""]
)
def test_names_that_leave_the_folder_are_refused(machine: Machine, name: str) -> None:
    machine.hub.repos["tiny/model"][name] = b"x"
    error, _ = machine.refused("tiny/model")
    assert f"{name!r} is no name inside a folder" in error
    assert not machine.home.exists() or not list(machine.home.rglob("*"))


@pytest.mark.parametrize("shard", ["../../x.safetensors", "modeling_evil.py", "original/model.safetensors", ["a"]])
def test_an_index_names_only_safetensors_beside_it(machine: Machine, shard: Any) -> None:
    machine.hub.repos["tiny/model"][INDEX] = json.dumps({"weight_map": {"a": shard}}).encode()
    assert "weight_map" in machine.refused("tiny/model")[0]
    assert not any("evil" in seen.path or "original" in seen.path for seen in machine.hub.requests)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (lambda siblings: 5, "answer can't be read"),
        (lambda siblings: [{"name": "x"}], "answer can't be read"),
        (lambda siblings: [{"rfilename": "x"}], "no size and digest for x"),
        (lambda siblings: [{"rfilename": "x", "size": -1, "blobId": "0" * 40}], "no size and digest for x"),
        (lambda siblings: [{"rfilename": "x", "size": 1, "blobId": "../../../x"}], "no size and digest for x"),
        (lambda siblings: [], "neither safetensors nor GGUF"),
        (lambda siblings: [entry | {"size": 10**17} for entry in siblings], "not enough disk space"),
    ],
)
def test_hostile_listings(machine: Machine, listed: Any, words: str) -> None:
    machine.hub.listed = listed
    assert words in machine.refused("tiny/model")[0]


def test_a_commit_that_is_none_is_refused(machine: Machine) -> None:
    machine.hub.revisions["main"] = "../../../x"
    assert "names no commit" in machine.refused("tiny/model")[0]


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "words", "remedy"),
    [
        (404, "RepoNotFound", "the hub has no tiny/model, or it is private (404)", "HF_TOKEN"),
        (401, "", "asks for a token, or doesn't take yours (401)", "HF_TOKEN"),
        (403, "GatedRepo", "tiny/model is gated", "HF_TOKEN"),
        (403, "", "forbids it (403)", "HF_TOKEN"),
        (404, "RevisionNotFound", "has no revision 'main'", "--revision"),
        (404, "", "the hub answered 404", "HF_ENDPOINT"),
        (500, "", "in trouble (500)", "later"),
    ],
)
def test_refusals_of_the_hub(machine: Machine, status: int, code: str, words: str, remedy: str) -> None:
    machine.hub.refuse = (status, {"X-Error-Code": code} if code else {})
    error, mend = machine.refused("tiny/model")
    assert words in error and remedy in mend


def test_a_bad_token_and_a_gate_before_the_files(machine: Machine) -> None:
    machine.hub.refuse = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})
    assert "doesn't take yours" in machine.refused("tiny/model")[0]
    machine.hub.refuse, machine.hub.refuse_files = None, (401, {"X-Error-Code": "GatedRepo"})
    error, mend = machine.refused("tiny/model")
    assert "tiny/model is gated" in error and "HF_TOKEN" in mend
    assert "holds characters" in machine.refused("tiny/model", HF_TOKEN=TOKEN + "\x01é")[0]


def test_no_network(machine: Machine) -> None:
    error, mend = machine.refused("tiny/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert "tiny/model: the hub can't be reached" in error and "HF_ENDPOINT" in mend
    error, mend = machine.refused("tiny/model", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in error and mend == "unset HF_HUB_OFFLINE"


NO_IDS = ["", "model", "../../etc/passwd", "a/../b", "a b/c", "a/b--c", "a/b.git", "a/b-", "é/b", "https://x/a/b"]


@pytest.mark.parametrize("repo", NO_IDS)
def test_what_is_no_hub_id(repo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", repo]) == 2
    error, mend = capsys.readouterr().err.splitlines()
    assert error == f"error: {repo!r} is not a hub id" and "owner/name" in mend


@pytest.mark.parametrize("revision", ["../../x", "/x", "a b", "", "a\nb", "x/.y", "-x"])
def test_what_is_no_revision(revision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", "tiny/model", f"--revision={revision}"]) == 2
    assert f"error: {revision!r} is not a revision\n" in capsys.readouterr().err


def test_an_unknown_revision(machine: Machine) -> None:
    error, mend = machine.refused("tiny/model", "--revision", "v9")
    assert error == "tiny/model has no revision 'v9'" and "--revision" in mend


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="not enough disk space") as error, hub_errors("a/b", "main", tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path) in error.value.message and "HF_HUB_CACHE" in error.value.remedy


def test_a_folder_that_cannot_be_written(machine: Machine) -> None:
    machine.home.write_text("a file")
    error, mend = machine.refused("tiny/model")
    assert str(machine.home) in error and "HF_HUB_CACHE" in mend


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_json_lines_where_nobody_looks(machine: Machine) -> None:
    done = machine.run("models", "pull", "tiny/model")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    last = [line for line in lines if line["event"] == "fetch"][-1]
    assert last["done"] == last["total"] == sum(len(machine.hub.repos["tiny/model"][name]) for name in WANTED)
    verified = {line["file"] for line in lines if line["event"] == "verify"}
    assert verified | {"added_tokens.json"} == WANTED, "one content under two names is fetched once"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    now = [100.0]
    lines, terminal = io.StringIO(), Terminal()
    for stream in (lines, terminal):
        now[0] = 100.0
        progress = Progress(stream, lambda: now[0])
        progress.transfer("fetch", "a.gguf", 500_000_000, 4_000_000_000)  # that much came earlier: no pace of this run
        for _ in range(20):
            now[0] += 0.5
            progress.transfer("fetch", "a.gguf", int(500_000_000 + (now[0] - 100) * 50_000_000), 4_000_000_000)
    shown = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["done"] for line in shown] == [500_000_000, 750_000_000, 1_000_000_000], "every 5 seconds"
    assert shown[0]["rate"] == 0 and shown[0]["seconds_left"] is None
    assert shown[2] == {
        "event": "fetch",
        "file": "a.gguf",
        "done": 1_000_000_000,
        "total": 4_000_000_000,
        "rate": 50_000_000,
        "seconds_left": 60.0,
    }
    bar = terminal.getvalue().split("\r\x1b[K")[-1]
    assert bar == "fetch [###         ]  25% 1.00 GB of 4.00 GB, 50.0 MB/s, 1:00 left  a.gguf"


def test_a_name_cannot_command_the_terminal_nor_wrap_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    with contextlib.suppress(ZeroDivisionError):
        Progress(terminal).transfer("fetch", "\x1b[2J" + "x" * 100, 0, 0)
    (line,) = terminal.getvalue().split("\r\x1b[K")[1:]
    assert "\x1b" not in line and len(line) == 59
