"""The engine process and its supervisor: crashes, restarts, failed starts, and leaving nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import openai
import psutil
import pytest
from server_process import SOURCE, Launcher, Running, chat, script, wait_for

Start = Callable[..., Running]


def torch_is_mapped(pid: int) -> bool:
    with open(f"/proc/{pid}/maps") as maps:
        return "libtorch" in maps.read()


def test_the_api_process_never_loads_torch(server: Running) -> None:
    assert not torch_is_mapped(server.process.pid)


def test_kill_of_the_engine(start: Start) -> None:
    server = start()
    with server.client() as client:
        stream = client.chat.completions.create(model="default", messages=chat(forever=True, delay=0.02), stream=True)
        next(iter(stream))
        engine = server.engine()
        engine.kill()
        with pytest.raises(openai.APIError, match="engine process ended") as caught:
            list(stream)
        assert caught.value.body["code"] == "engine_unavailable"
        answer = server.http.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_unavailable"
        assert answer.headers["retry-after"]
        assert server.http.get("/health").status_code == 200
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="default", messages=chat(say="a"))
        assert refused.value.status_code == 503
        wait_for(server.ready)
        assert client.chat.completions.create(model="default", messages=chat(say="a")).choices[0].message.content == "a"
    assert server.engine().pid != engine.pid
    assert server.metric("deepseek_r1_engine_restarts_total") == 1
    assert len(server.sockets()) == 1


def test_requests_that_break_the_engine(start: Start) -> None:
    server = start()
    for words in ({"crash": 3, "forever": True}, {"raise": 3, "forever": True}):  # an end before that would be luck
        with server.client() as client, pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="default", messages=chat(**words))
        assert caught.value.status_code == 503
        assert caught.value.code == "engine_unavailable"
        wait_for(server.ready)
    log = server.log.read_text()
    assert "was ended by signal 9 (out of memory?); starting it again in 0.1 s" in log
    assert "ValueError in the engine; starting it again in 0.2 s" in log
    assert '@{"' not in log  # the prompt, which the exception quotes


def test_no_capacity(server: Running) -> None:
    answer = server.http.post("/v1/completions", json={"prompt": script(refuse="capacity")})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_capacity"


def test_an_engine_that_can_not_come_back_is_tried_again(start: Start, launcher: Launcher) -> None:
    server = start(env={"SCRIPTED_ENGINE_PROBLEM": "fails-later"})
    server.engine().kill()
    wait_for(lambda: server.log.read_text().count("is cut short; starting it again") >= 2)
    assert server.http.get("/ready").status_code == 503
    os.unlink(launcher.models["plain"] / "started")
    wait_for(server.ready)
    os.unlink(launcher.models["plain"] / "started")


def test_kill_of_the_api_leaves_nothing(start: Start) -> None:
    server = start()
    engine = server.engine()
    assert len(server.sockets()) == 1
    assert server.sockets()[0].stat().st_mode & 0o777 == 0o700
    with server.client() as client:
        next(iter(client.completions.create(model="default", prompt=script(forever=True, delay=0.05), stream=True)))
        server.process.kill()
        server.process.wait()
    wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 2.0)
    wait_for(lambda: not server.sockets(), 2.0)


def test_kill_of_the_api_while_the_engine_loads(spawn: Start) -> None:
    server = spawn(env={"SCRIPTED_ENGINE_PROBLEM": "slow"})
    engine = server.engine()
    wait_for(server.sockets)
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 2.0)
    wait_for(lambda: not server.sockets(), 2.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_in_order(start: Start, number: int) -> None:
    server = start()
    engine = server.engine()
    engine.send_signal(signal.SIGINT)  # Ctrl-C reaches every process of a terminal
    time.sleep(0.1)
    assert server.ready()
    server.process.send_signal(number)
    assert server.process.wait(10) == 0
    assert server.process.stdout.read() == "Stopped.\n"
    assert not engine.is_running()
    assert server.sockets() == []
    assert "Traceback" not in server.log.read_text()


def test_answers_in_flight_end_in_order(start: Start) -> None:
    server = start()
    with server.client() as client:
        stream = client.completions.create(model="default", prompt=script(say="x" * 40, delay=0.05), stream=True)
        first = next(iter(stream)).choices[0].text
        server.process.send_signal(signal.SIGINT)
        assert first + "".join(chunk.choices[0].text for chunk in stream) == "x" * 40
    assert server.process.wait(10) == 0
    assert server.process.stdout.read() == "Stopping: 1 in flight, 5 s to finish.\n"


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("broken", "error: {model}: tensor x: is cut short -- fetch the file again"),
        ("defect", "error: KeyError while loading {model}: 'nothing' -- this is a defect"),
        ("killed", "error: the engine was ended by signal 9 (out of memory?), 3 times while starting"),
    ],
)
def test_engines_that_can_not_start(launcher: Launcher, spawn: Start, problem: str, words: str) -> None:
    server = spawn(env={"SCRIPTED_ENGINE_PROBLEM": problem})
    output, _ = server.process.communicate(timeout=20)
    assert server.process.returncode == 1
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(words.format(model=launcher.models["plain"]))
    assert server.sockets() == []


def test_http_answers_while_the_engine_loads(spawn: Start) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = spawn(env={"SCRIPTED_ENGINE_PROBLEM": "slow"}, port=port)
    server.http.base_url = f"http://127.0.0.1:{port}"

    def loading() -> bool:
        try:
            return server.http.get("/ready").status_code == 503
        except httpx.TransportError:
            return False

    wait_for(loading)
    assert server.http.get("/health").status_code == 200
    answer = server.http.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 503
    assert "loading" in answer.json()["error"]["message"]
    assert server.http.get("/v1/models").json()["data"][0]["max_model_len"] is None
    wait_for(server.ready)


def test_a_port_in_use(spawn: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = spawn(port=port)
        output, _ = server.process.communicate(timeout=20)
    assert server.process.returncode == 2
    assert output.startswith(f"error: port {port} is in use on 127.0.0.1 -- use --port")


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_host_that_is_not_ours(spawn: Start, host: str) -> None:
    server = spawn(host=host)
    output, _ = server.process.communicate(timeout=30)
    assert server.process.returncode == 2
    assert host in output
    assert "--host" in output


def test_a_model_that_is_not_there(spawn: Start) -> None:
    server = spawn("/no/such/model.gguf")
    output, _ = server.process.communicate(timeout=20)
    assert server.process.returncode == 1
    assert output.startswith("error: /no/such/model.gguf: no such file or directory")


def test_a_broken_tokenizer(launcher: Launcher, spawn: Start) -> None:
    broken = launcher.folder / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{")
    (broken / "config.json").write_text(json.dumps({}))
    server = spawn(str(broken))
    output, _ = server.process.communicate(timeout=20)
    assert server.process.returncode == 1
    assert "tokenizer.json" in output
    assert server.sockets() == []


def test_ipv6(start: Start) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")
    server = start(host="::1")
    assert server.url.startswith("http://[::1]:")
    assert server.ready()
    assert server.http.get("/ready", headers={"Host": "evil.example"}).status_code == 403


def test_open_to_the_network(start: Start) -> None:
    server = start(host="0.0.0.0")
    assert server.url.startswith("http://127.0.0.1:")
    assert "set --api-key" in server.log.read_text()
    assert server.http.get("/ready", headers={"Host": "my-machine.lan"}).status_code == 200


def test_two_servers_do_not_meet(server: Running, thinker: Running) -> None:
    assert server.http.get("/ready").json()["model"] == "tiny"
    assert thinker.http.get("/ready").json()["model"] == "thinker"


def test_the_engine_ends_without_settings() -> None:
    command = [sys.executable, "-m", "deepseek_r1.serve.engine_process"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, timeout=20, check=False)
    assert done.returncode == 0


def test_the_engine_can_be_ended_at_any_moment() -> None:
    """SIGTERM may find the process inside any callback, its own last ones included: it must stay silent there."""
    code = (
        "import os, signal, sys, time, weakref\n"
        "from deepseek_r1.core.errors import UnsupportedError\n"
        "from deepseek_r1.serve.engine_process import main\n"
        "def load(settings):\n"
        "    weakref.finalize(main, lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.1)))\n"
        "    raise UnsupportedError('no model')\n"
        "sys.exit(main(load))\n"
    )
    settings = {"address": "ipc:///nowhere/engine", "model_path": "m", "precision": "fp32", "memory_bytes": None}
    settings |= {"max_concurrent": 1, "parent_pid": os.getpid()}
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()  # and left open: its end would end the process
        assert process.wait(timeout=30) == -signal.SIGTERM
        assert process.stderr.read() == b""
