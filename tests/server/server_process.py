"""A server in a process of its own, with the scripted engine behind it, and how tests talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

import deepseek_r1

HERE = Path(__file__).parent
SOURCE = Path(deepseek_r1.__file__).parent.parent
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"


def write_model(folder: Path, template: str | None) -> Path:
    """A directory with a byte-level tokenizer: ids 0 to 255 are the bytes, then a few merges and special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters: dict[int, str] = {byte: chr(byte) for byte in printable}
    for extra, byte in enumerate(sorted(set(range(256)) - set(printable))):
        letters[byte] = chr(256 + extra)
    vocabulary = {letters[byte]: byte for byte in range(256)} | {"he": 256, "the": 257}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("t", "he")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 262}))
    return folder


def script(**words: Any) -> str:
    """The prompt that makes the scripted engine do as told."""
    return f"@{json.dumps(words)}@"


def chat(**words: Any) -> list[dict[str, str]]:
    """Messages that hold a script."""
    return [{"role": "user", "content": script(**words)}]


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Poll until `condition` is true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {condition}")


class Running:
    """A server process and how to reach it."""

    def __init__(self, process: subprocess.Popen[str], url: str, runtime: Path, log: Path) -> None:
        self.process = process
        self.url = url
        self.runtime = runtime
        self.log = log
        self.http = httpx.Client(base_url=url, timeout=20)

    def until_ready(self) -> Running:
        """Read the server's lines until it names its address."""
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if match := re.match(r"Chat page: (http\S+)/", line):
                self.url = match[1]
                self.http.base_url = match[1]
                return self
        raise AssertionError(f"the server ended: {lines} {self.log.read_text()}")

    def client(self, **options: Any) -> openai.OpenAI:
        words = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 20} | options
        return openai.OpenAI(**words)

    def engine(self) -> psutil.Process:
        """The engine's process."""
        return wait_for(lambda: psutil.Process(self.process.pid).children())[0]

    def metric(self, name: str) -> float:
        """One sample of /metrics, by its full name with labels."""
        match = re.search(rf"^{re.escape(name)} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        assert match is not None, name
        return float(match[1])

    def sockets(self) -> list[Path]:
        """Our folders below the runtime folder."""
        return list(self.runtime.glob("deepseek-r1-*"))

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/ready").status_code == 200
        return False

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        self.process.stdout.close()


class Launcher:
    """Starts servers for tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.models = {
            "plain": write_model(folder / "tiny", CHATML + PROMPT),
            "thinker": write_model(folder / "thinker", CHATML + OPENS),
            "base": write_model(folder / "base", None),
        }

    def spawn(self, model: str = "plain", env: dict[str, str] | None = None, **config: Any) -> Running:
        """Start a server and don't wait for it; its `url` is empty."""
        self.count += 1
        runtime = self.folder / f"run{self.count}"
        runtime.mkdir(mode=0o700)
        log = self.folder / f"log{self.count}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "XDG_RUNTIME_DIR": str(runtime),
            **(env or {}),
        }
        settings = {"model": str(self.models.get(model, model)), "port": 0} | config
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "scripted_server.py"), json.dumps(settings)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        return Running(process, "", runtime, log)

    def start(self, model: str = "plain", env: dict[str, str] | None = None, **config: Any) -> Running:
        """Start a server and wait until it is ready."""
        return self.spawn(model, env, **config).until_ready()
