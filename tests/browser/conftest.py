"""One Chromium for the folder; a fresh profile and a fresh fake server for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from chat_driver import ARGUMENTS, opened_page
from fake_server import FakeServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless, with a fresh profile. It ends with the module: its event loop is in others' way."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def network_noise() -> list[str]:
    """A test that makes requests fail appends to it: Chromium's own line about them is then no problem."""
    return []


@pytest.fixture
def page(browser: Any, server: FakeServer, network_noise: list[str]) -> Iterator[Any]:
    with opened_page(browser, server.url, network_noise, permissions=["clipboard-read", "clipboard-write"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def module_page(browser: Any) -> Iterator[Any]:
    """One page for all tests of a module: for those that only call functions of the page's modules."""
    fake = FakeServer()
    fake.start()
    with opened_page(browser, fake.url, []) as opened:
        yield opened
    fake.stop()
