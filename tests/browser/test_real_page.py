"""The chat page against the real server and the real model: send, stream, stop, and the server going away."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_driver import ask, ask_and_wait, last_answer, opened_page

sys.path.insert(0, str(Path(__file__).parent.parent / "server"))
from real_server import start_real
from server_process import Launcher, script

SIZES = ("--memory", "1500MiB", "--max-concurrent", "4")


def test_the_page_on_the_real_server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    server = start_real(tmp_path_factory.mktemp("page"), *SIZES, "--adapter", "none")
    noise = ["the server is ended below"]
    try:
        with opened_page(browser, server.url, noise) as page:
            page.set_default_timeout(30_000)
            page.click("#open-settings")
            page.fill("#temperature", "0")  # a sampled answer is not always the right one
            page.click("text=Done")
            ask_and_wait(page, "What is the capital of France? Answer in one sentence.")
            assert "Paris" in last_answer(page)
            assert "tokens/s" in page.inner_text(".stats")
            ask(page, "Write a long story about the sea.")
            page.wait_for_selector(".message.assistant:nth-of-type(4) .content:not(:empty)")
            page.click("#stop")
            page.wait_for_selector("#send:not([hidden])")
            assert len(last_answer(page)) > 0
            page.wait_for_timeout(500)
            assert server.metric("deepseek_r1_requests_running") == 0, "the stopped request freed its slot"
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(15)
            page.wait_for_selector("#banner:not([hidden])")
            assert "not answering" in page.inner_text("#banner")
    finally:
        server.close()


def test_the_page_shows_what_the_default_model_thinks(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    server = start_real(tmp_path_factory.mktemp("think"), *SIZES)
    try:
        with opened_page(browser, server.url, []) as page:
            page.set_default_timeout(30_000)
            page.wait_for_selector("#models option:nth-child(2)", state="attached")
            assert page.locator("#models option").all_inner_texts() == ["r1-lite", "SmolLM2-135M-Instruct"]
            assert page.get_by_role("combobox", name="Model").input_value() == "r1-lite"
            page.click("#open-settings")
            page.fill("#temperature", "0")
            page.click("text=Done")
            ask_and_wait(page, "What is 17 + 26?")
            page.wait_for_selector(".thinking summary:has-text('Thought for ')")
            page.click(".thinking summary")
            page.wait_for_selector(".thinking .reasoning:not(:empty)")
            thought, said = page.inner_text(".thinking .reasoning"), last_answer(page)
            assert said.strip() and thought.strip().endswith(said.strip()) and "think>" not in thought + said
    finally:
        server.close()


def test_the_page_on_a_server_with_adapters(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The scripted engine says which adapter it was asked for; the server's default one is chosen at first."""
    folder = tmp_path_factory.mktemp("p")
    server = Launcher(folder).start(adapter=[f"poet={folder}", f"clerk={folder}"], default_adapter="clerk")
    try:
        with opened_page(browser, server.url, []) as page:
            choice = page.get_by_role("combobox", name="Model")
            page.wait_for_selector("#models option:nth-child(3)", state="attached")
            assert page.locator("#models option").all_inner_texts() == ["clerk", "tiny", "poet"]
            for model, said in (("clerk", "clerk"), ("poet", "poet"), ("tiny", "none")):
                if model != "clerk":
                    choice.select_option(model)
                page.click("#new-chat")
                ask_and_wait(page, script(name=True))
                assert last_answer(page) == said
            page.reload()
            page.wait_for_selector("#models:not([hidden])")
            assert choice.input_value() == "tiny", "the last choice is remembered"
    finally:
        server.close()
