"""The real server, started as a user starts it: the command line, the embedded model, the engine process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from server_process import Running

from deepseek_r1.models.locate import locate_model

COMMAND = [sys.executable, "-m", "deepseek_r1.cli.main", "serve"]


def environment(folder: Path) -> dict[str, str]:
    """Ours, with the server's logs and sockets below `folder`. Socket paths are short: keep the folder's path so."""
    runtime = folder / "run"
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(folder / "state")}


def start_real(folder: Path, *arguments: str) -> Running:
    """Start `deepseek-r1 serve` on a free port and wait until it is ready. `close` ends it."""
    words = environment(folder)
    log = folder / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, *arguments, "--port", "0"], stdout=subprocess.PIPE, stderr=errors, text=True, env=words
        )
    running = Running(process, "", folder / "run", log)
    try:
        return running.until_ready()
    except BaseException:
        running.close()
        raise


def refuse_to_start(folder: Path, *arguments: str) -> tuple[int, str, float]:
    """Run a server that can't start: its exit code, what it wrote to stderr, and the seconds it took."""
    began = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=environment(folder), timeout=120, check=False
    )
    assert "Serving" not in done.stdout, done.stdout
    return done.returncode, done.stderr, time.monotonic() - began


def with_chat_template(source: Path, target: Path, template: str) -> Path:
    """A copy of a GGUF file with another chat template: the metadata is spliced, the tensors are the same bytes."""
    from gguf import GGUFReader  # here: it is only needed by this, and slow to import

    reader = GGUFReader(source)
    field = reader.fields["tokenizer.chat_template"]
    # parts: length of the key, key, type, length of the text, text
    begin = field.offset + sum(part.nbytes for part in field.parts[:3])
    end = begin + sum(part.nbytes for part in field.parts[3:])
    last = reader.tensors[-1].field
    data = source.read_bytes()
    text = template.encode()
    head = data[:begin] + len(text).to_bytes(8, "little") + text
    head += data[end : last.offset + sum(part.nbytes for part in last.parts)]
    padding = -len(head) % reader.alignment
    target.write_bytes(head + bytes(padding) + data[reader.data_offset :])
    return target


def embedded() -> Path:
    """The embedded model's file."""
    return locate_model("default")
