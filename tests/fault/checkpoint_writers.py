"""Writers of saved runs for the tests to kill, and what they write."""

from __future__ import annotations

from pathlib import Path

import torch

from deepseek_r1.train.saved import Saved, SavedRuns

# Forks writers, for a start of Python for each would take minutes; each is killed after some time (by its parent), or
# before a certain call to the system (by itself: what it does is the same then, each time).
NURSERY = """
import json, os, signal, sys, time
import torch
from deepseek_r1.train.saved import SavedRuns

def write(folder, pipe, until, again):
    with SavedRuns(folder, keep=2) as runs:
        saved = runs.latest()
        step = saved.step if saved is not None else 0
        step = step if again else step + 1
        while until is None or step <= until:
            os.write(pipe, f"b{step}\\n".encode())
            runs.save(step, {"w": torch.full((300,), float(step)), "n": torch.tensor(step)}, {"step": step})
            os.write(pipe, f"e{step}\\n".encode())
            step += 1

def die_at(call):
    left = [call]
    def count(event=None, arguments=None):
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fsync", "os.truncate"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    fsync = os.fsync
    def counted(descriptor):
        count("fsync")
        fsync(descriptor)
    os.fsync = counted
    sys.addaudithook(count)

torch.set_num_threads(1)
for line in sys.stdin:
    order = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        if order["call"]:
            die_at(order["call"])
        write(order["folder"], writer, order["until"], order["again"])
        os._exit(0)
    os.close(writer)
    heard = b""
    if order["seconds"] is not None:
        while b"e" not in heard:
            heard += os.read(reader, 65536)
        time.sleep(order["seconds"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while more := os.read(reader, 65536):
        heard += more
    os.close(reader)
    begun = [int(word[1:]) for word in heard.decode().split() if word[0] == "b"]
    ended = [int(word[1:]) for word in heard.decode().split() if word[0] == "e"]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    print(json.dumps({"begun": max(begun, default=0), "ended": max(ended, default=0), "killed": killed,
                      "status": status}), flush=True)
"""


def assert_whole(saved: Saved | None) -> int:
    """The step of a checkpoint that is as the writer of `NURSERY` writes it."""
    assert saved is not None and saved.state == {"step": saved.step}
    assert torch.equal(saved.tensors["w"], torch.full((300,), float(saved.step)))
    assert int(saved.tensors["n"]) == saved.step
    return saved.step


def saved_twice(folder: Path) -> Path:
    with SavedRuns(folder) as runs:
        for step in (1, 2):
            path = runs.save(step, {"w": torch.full((300,), float(step)), "n": torch.tensor(step)}, {"step": step})
    return path
