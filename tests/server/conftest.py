from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from server_process import Launcher, Running


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    # Socket paths are short: pytest's own temporary folders may not be.
    return Launcher(tmp_path_factory.mktemp("s"))


@pytest.fixture(scope="session")
def server(launcher: Launcher) -> Iterator[Running]:
    """One server for all tests that don't harm it."""
    running = launcher.start()
    yield running
    running.close()


@pytest.fixture(scope="session")
def thinker(launcher: Launcher) -> Iterator[Running]:
    """A server whose chat template opens the reasoning itself."""
    running = launcher.start("thinker")
    yield running
    running.close()


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture
def spawn(launcher: Launcher) -> Iterator[Callable[..., Running]]:
    """Start servers that this test may harm, or that won't start; don't wait for them."""
    started: list[Running] = []

    def spawn_one(*arguments: Any, **options: Any) -> Running:
        started.append(launcher.spawn(*arguments, **options))
        return started[-1]

    yield spawn_one
    for running in started:
        running.close()


@pytest.fixture
def start(spawn: Callable[..., Running]) -> Callable[..., Running]:
    """Start servers that this test may harm, and wait until they are ready."""
    return lambda *arguments, **options: spawn(*arguments, **options).until_ready()
