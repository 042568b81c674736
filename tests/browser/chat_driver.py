"""Drives the chat page: opening it under watch, asking, waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


def until(page: Any, condition: str, seconds: float = 8) -> None:
    """Wait for an expression to become true. (Playwright's wait_for_function is eval: the page's CSP forbids it.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.03)


@contextmanager
def opened_page(browser: Any, url: str, network_noise: list[str], **options: Any) -> Iterator[Any]:
    """The chat page, opened and ready. At its end, console messages, page errors and foreign requests are failures."""
    context = browser.new_context(viewport={"width": 1100, "height": 800}, **options)
    context.set_default_timeout(8000)
    problems: list[str] = []

    def requested(request: Any) -> None:
        if not request.url.startswith(url):
            problems.append(f"left the origin: {request.url}")

    def heard(message: Any) -> None:
        if not (network_noise and message.text.startswith("Failed to load resource")):
            problems.append(f"console {message.type}: {message.text}")

    context.on("request", requested)
    context.on("console", heard)
    context.on("weberror", lambda error: problems.append(f"page error: {error.error}"))
    opened = context.new_page()
    opened.goto(url)
    opened.wait_for_selector('#state[data-state="ready"]')
    yield opened
    context.close()
    assert problems == []


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def ask_and_wait(page: Any, text: str) -> None:
    ask(page, text)
    page.wait_for_selector("#send:not([hidden])")


def last_answer(page: Any) -> str:
    return str(page.inner_text(".message.assistant:last-child .content"))
