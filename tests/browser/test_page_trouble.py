"""What the chat page does when things go wrong: server gone, engine restarting, errors, broken streams."""

from __future__ import annotations

from typing import Any

import pytest
from chat_driver import ask, ask_and_wait, last_answer, opened_page, until
from fake_server import FakeServer


@pytest.fixture(autouse=True)
def expected_noise(network_noise: list[str]) -> None:
    """Every test here makes requests fail."""
    network_noise.append("expected")


def test_server_gone_and_back(page: Any, server: FakeServer) -> None:
    server.stop()
    page.wait_for_selector("#banner[data-state=gone]:not([hidden])", timeout=4000)
    assert page.get_attribute("#banner", "role") == "alert"
    assert page.inner_text("#banner").startswith("The server is not answering — ")
    assert "retrying" in page.inner_text("#banner")
    assert page.inner_text("#state-label") == "Not answering"

    ask(page, "please keep this")
    page.wait_for_selector("#notice:has-text('Not sent')")
    assert page.input_value("#prompt") == "please keep this"
    assert page.locator(".message").count() == 0

    server.start()
    page.wait_for_selector("#banner", state="hidden", timeout=8000)
    assert page.get_attribute("#state", "data-state") == "ready"
    assert page.input_value("#prompt") == "please keep this"
    page.keyboard.press("Enter")
    page.wait_for_selector(".content:has-text('You said: please keep this')")


def test_send_just_as_the_server_goes(page: Any, server: FakeServer) -> None:
    """The page has not noticed yet: the failed request puts everything back."""
    ask_and_wait(page, "before")
    server.stop()
    ask(page, "lost?")
    page.wait_for_selector("#banner[data-state=gone]:not([hidden])", timeout=2000)
    assert page.input_value("#prompt") == "lost?"
    assert page.locator(".message").count() == 2
    page.evaluate("document.querySelector('#prompt').value = ''")
    page.click("[aria-label='Regenerate answer']:visible")
    assert last_answer(page) == "You said: before"  # an answer is not thrown away for one that can't come


def test_connection_closed_without_an_answer(page: Any) -> None:
    ask(page, "die now")
    page.wait_for_selector("#notice:has-text('Not sent')")
    assert page.input_value("#prompt") == "die now"
    assert page.is_visible("#welcome")
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('.chat.')).length") == 0


def test_server_dies_in_the_middle_of_an_answer(page: Any, server: FakeServer) -> None:
    ask(page, "slow")
    page.wait_for_selector(".content:has-text('word5')")
    server.stop()
    page.wait_for_selector(".error-box:has-text('before it was complete')")
    assert "word5" in last_answer(page)
    page.wait_for_selector("#banner[data-state=gone]:not([hidden])")
    server.start()
    page.click("#retry-now")
    page.wait_for_selector("#banner", state="hidden", timeout=8000)
    page.click(".error-box button:text-is('Try again')")
    page.wait_for_selector(".content:has-text('word3')")
    assert page.is_hidden(".error-box")


def test_engine_restarting(page: Any, server: FakeServer) -> None:
    server.ready = False
    page.wait_for_selector("#banner[data-state=starting]:not([hidden])", timeout=4000)
    text = page.inner_text("#banner")
    assert text.startswith("The engine is restarting")
    assert "(the engine was lost)" in text
    ask(page, "keep")
    assert page.input_value("#prompt") == "keep"
    assert server.requests == []
    server.ready = True
    page.evaluate("window.dispatchEvent(new Event('online'))")  # asks at once
    page.wait_for_selector('#state[data-state="ready"]', timeout=8000)
    assert page.is_hidden("#banner")


ERRORS = {
    "badrequest": ("max_tokens: 99999 is more than the context", "HTTP 400 · too_long · field: max_tokens"),
    "busy": ("The queue is full.", "HTTP 429 · queue_full · try again in 3 s"),
    "nojson": ("The server answered “502", "HTTP 502"),
    "streamerror": ("The engine died.", "engine_died"),
    "cut": ("The answer ended before it was complete.", ""),
}


def test_errors_are_sentences(page: Any, server: FakeServer) -> None:
    for question, (sentence, details) in ERRORS.items():
        page.click("#new-chat")
        ask_and_wait(page, question)
        assert page.inner_text(".error-text").startswith(sentence)
        assert page.get_attribute(".error-box", "role") == "alert"
        assert (page.inner_text(".error-details") if details else "") == details
        assert page.inner_text(".bubble") == question  # the question is still there, to be tried again
        server.requests.clear()
        page.click("button:text-is('Try again')")
        page.wait_for_selector("#stop", state="hidden")
        until(page, "document.querySelectorAll('.error-box:not([hidden])').length === 1")
        assert [request["messages"] for request in server.requests] == [[{"role": "user", "content": question}]]


def test_the_next_question_after_an_error(page: Any, server: FakeServer) -> None:
    ask_and_wait(page, "badrequest")
    page.fill("#prompt", "shorter")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.message.assistant').length === 2")
    for _ in range(100):  # the page shows the answer's place before it asks for the answer
        if len(server.requests) == 2:
            break
        page.wait_for_timeout(50)
    assert server.requests[1]["messages"] == [{"role": "user", "content": "badrequest\n\nshorter"}]


def test_api_key_wanted(browser: Any, server: FakeServer, network_noise: list[str]) -> None:
    server.api_key = "right"
    with opened_page(browser, server.url, network_noise) as page:
        page.wait_for_selector("#notice:has-text('wants an API key')")
        ask_and_wait(page, "hello")
        assert page.inner_text(".error-text") == "Incorrect API key."
        page.click("text=Enter API key")
        page.fill("#api_key", "right")
        page.keyboard.press("Enter")
        page.wait_for_selector("#model:has-text('smollm2')")
        page.click("button:text-is('Try again')")
        page.wait_for_selector(".content:has-text('You said: hello')")


def test_storage_switched_off(browser: Any, server: FakeServer, network_noise: list[str]) -> None:
    with opened_page(browser, server.url, network_noise) as page:
        page.add_init_script(
            "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"
        )
        page.reload()
        page.wait_for_selector('#state[data-state="ready"]')
        ask_and_wait(page, "hello")
        assert last_answer(page) == "You said: hello"
        assert "too long for the browser's storage" in page.inner_text("#notice")
