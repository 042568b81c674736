"""The chat page for every reader: themes, contrast, keyboard, input methods, scrolling, small screens."""

from __future__ import annotations

from typing import Any

from chat_driver import ask, ask_and_wait, opened_page, until
from fake_server import FakeServer


def test_theme(page: Any) -> None:
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "light"
    page.emulate_media(color_scheme="dark")
    until(page, f"{theme} === 'dark'")
    page.click("#toggle-theme")
    assert page.evaluate(theme) == "light"
    page.reload()
    assert page.evaluate(theme) == "light"  # remembered against the system
    page.click("#open-settings")
    page.select_option("#theme", "system")
    assert page.evaluate(theme) == "dark"


CONTRAST = """() => {
  const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = numbers(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!text || !node.checkVisibility() || node.closest("svg")) continue;
    const pair = [luminance(numbers(getComputedStyle(node).color)), luminance(ground(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) poor.push([node.outerHTML.slice(0, 80), ratio]);
  }
  return poor;
}"""


def test_contrast_and_names(page: Any, network_noise: list[str]) -> None:
    network_noise.append("400")
    ask_and_wait(page, "think about it")
    page.click(".thinking summary")
    ask_and_wait(page, "echo # T\n\n> q\n\n`c` [l](https://a.org)\n\n```py\nx\n```\n\n|a|\n|-|\n|b|")
    ask_and_wait(page, "badrequest")
    page.evaluate("document.querySelector('#banner').hidden = false")
    for theme in ("light", "dark"):
        page.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
        for state in ("gone", "starting"):
            page.evaluate("(state) => (document.querySelector('#banner').dataset.state = state)", state)
            assert page.evaluate(CONTRAST) == []
    unnamed = page.eval_on_selector_all(
        "button, input, textarea, select",
        """(all) => all.filter((node) => !(node.ariaLabel || node.innerText?.trim() || node.labels?.length))
          .map((node) => node.outerHTML)""",
    )
    assert unnamed == []


def test_keyboard(page: Any, server: FakeServer) -> None:
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    assert server.requests == []
    page.keyboard.press("Enter")
    page.wait_for_selector(".stats:has-text('tokens')")
    assert server.requests[0]["messages"][0]["content"] == "line one\nline two"
    for shortcut in ("/", "Control+k", "Meta+k"):
        page.focus("#open-settings")
        page.keyboard.press(shortcut)
        assert page.evaluate("document.activeElement.id") == "prompt"
        assert page.input_value("#prompt") == ""
    page.keyboard.type("a/b")
    assert page.input_value("#prompt") == "a/b"
    page.fill("#prompt", "   ")
    page.keyboard.press("Enter")
    assert len(server.requests) == 1


def test_skip_link_and_focus_rings(page: Any) -> None:
    page.focus("#toggle-sidebar")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "skip-link"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top >= 0")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.focus(".skip-link")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_enter_while_composing_does_not_send(page: Any, server: FakeServer) -> None:
    page.fill("#prompt", "にほん")
    for options in ({"isComposing": True}, {"keyCode": 229}):
        page.eval_on_selector(
            "#prompt",
            "(field, options) => field.dispatchEvent(new KeyboardEvent('keydown', options))",
            {"key": "Enter", "bubbles": True, "cancelable": True, **options},
        )
    assert server.requests == []
    assert page.input_value("#prompt") == "にほん"


END = """(({ scrollHeight, clientHeight, scrollTop }) => scrollHeight - clientHeight - scrollTop)(
  document.querySelector("#scroll"))"""


def test_follows_the_end_until_the_reader_scrolls_up(page: Any) -> None:
    page.set_viewport_size({"width": 900, "height": 380})
    ask(page, "slow")
    page.wait_for_selector(".content:has-text('word110')")
    assert page.evaluate(END) < 30
    assert page.is_hidden("#latest")
    page.hover("#log")
    page.mouse.wheel(0, -150)
    page.wait_for_selector("#latest:not([hidden])")
    place = page.evaluate("document.querySelector('#scroll').scrollTop")
    page.wait_for_timeout(500)
    assert page.evaluate("document.querySelector('#scroll').scrollTop") == place
    page.click("#latest")
    page.wait_for_selector("#latest", state="hidden")
    page.wait_for_timeout(300)
    assert page.evaluate(END) < 30


def test_narrow_screen(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    wide = (
        "| "
        + " | ".join(f"column{n}" for n in range(12))
        + " |\n|"
        + "---|" * 12
        + "\n\n```\n"
        + "x" * 300
        + "\n```\n\n"
        + "https://example.org/"
        + "y" * 200
        + "\n\n"
        + "z" * 200
    )
    ask_and_wait(page, "echo " + wide)
    spare = page.eval_on_selector_all("html, body, #scroll", "(all) => all.map((n) => n.scrollWidth - n.clientWidth)")
    assert spare == [0, 0, 0]
    outside = page.evaluate(
        """() => [...document.querySelectorAll('header *, .bottom *')].filter((node) =>
          node.checkVisibility() && node.getBoundingClientRect().right > 360.5).map((node) => node.outerHTML)"""
    )
    assert outside == []
    page.click("#toggle-sidebar")
    assert page.is_visible(".chat-link")
    page.keyboard.press("Escape")
    page.click("#toggle-sidebar")
    page.click("#scrim", position={"x": 350, "y": 300})
    assert page.is_hidden(".sidebar")
    page.click("#open-settings")
    assert page.evaluate("document.querySelector('#settings').scrollWidth") <= 360


def test_reduced_motion(browser: Any, server: FakeServer) -> None:
    with opened_page(browser, server.url, [], reduced_motion="reduce") as page:
        ask(page, "slow")
        page.wait_for_selector(".message.assistant")
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.waiting .sonar'), '::after').animationName")
            == "none"
        )
