"""The page of a training run: it follows the trainer, shows every text as text, and asks nobody else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_driver import opened_page, until
from test_page_access import CONTRAST

from deepseek_r1.operate.runs.page import RunServer
from deepseek_r1.operate.runs.report import write_report
from deepseek_r1.operate.runs.write import RunWriter
from support.run_folder import HOSTILE, metrics, rollouts, write_run

SHOWN = HOSTILE.replace("\x1b", "\N{SYMBOL FOR ESCAPE}").replace("\u202e", "\ufffd")


@pytest.fixture
def run_server(tmp_path: Path) -> Iterator[RunServer]:
    write_run(tmp_path / "run", 60)
    with RunServer(tmp_path / "run") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Any, run_server: RunServer, network_noise: list[str]) -> Iterator[Any]:
    with opened_page(browser, run_server.url, network_noise) as opened:
        yield opened


def curve(page: Any, name: str, style: str = "smooth") -> list[list[float]]:
    path = page.get_attribute(f'figure[data-name="{name}"] path.{style}', "d")
    return [[float(number) for number in point.split()] for point in path[1:].split("L")]


def test_curves_follow_the_trainer(page: Any, run_server: RunServer) -> None:
    assert page.eval_on_selector_all("figure", "(all) => all.map((n) => n.dataset.name)") == [
        "loss",
        "lr",
        "reward",
        "seconds",
    ]
    assert len(curve(page, "reward", "raw")) == 60
    assert page.inner_text("figure[data-name=reward] output") == "0.6 at step 60"
    assert page.inner_text("#state-label") == "running"
    assert page.inner_text("#progress").startswith("step 60 of 60, last step written ")
    with RunWriter(run_server.folder) as writer:
        writer.step(metrics(61) | {"kl": None})
        page.wait_for_selector("figure[data-name=reward] output:has-text('0.61 at step 61')")
        assert page.text_content("figure[data-name=kl] svg") == "no values to draw"
        writer.rewind(30)  # resumed from a checkpoint
        page.wait_for_selector("figure[data-name=reward] output:has-text('0.3 at step 30')")
        assert len(curve(page, "reward", "raw")) == 30
        until(page, "!document.querySelector('figure[data-name=kl]')")
        writer.begin({"steps": 60})
        writer.finish("interrupted")
    page.wait_for_selector("#state-label:has-text('interrupted')")


def test_smoothing_and_the_logarithmic_axis(page: Any) -> None:
    raw = curve(page, "loss", "raw")
    page.fill("#smoothing", "0")
    assert curve(page, "loss") == raw, "nothing is smoothed"
    page.check("#logarithmic")
    line = curve(page, "loss")  # exponential decay is straight there
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(line[:-10:10], line[10::10], strict=True)]
    assert max(slopes) - min(slopes) < 0.03 and slopes[0] > 0.1


def test_values_are_read_out_by_pointer_and_keys(page: Any) -> None:
    readout = "figure[data-name=reward] output"
    page.focus("figure[data-name=reward] svg")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(readout) == "0.59 at step 59"
    page.keyboard.press("Home")
    assert page.inner_text(readout) == "0.01 at step 1"
    assert page.get_attribute("figure[data-name=reward] svg", "aria-label").startswith("reward: 0.01 at step 1.")
    page.wait_for_timeout(1200)
    assert page.inner_text(readout) == "0.01 at step 1", "it stays while the page is updated"
    box = page.query_selector("figure[data-name=loss] svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * (76 + 468 * 29 / 59) / 560, box["y"] + 60)
    assert page.inner_text("figure[data-name=loss] output").endswith("at step 30")


def test_tabs_by_keys_and_by_address(page: Any, run_server: RunServer) -> None:
    page.focus("#tab-curves")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-rollouts"
    assert page.is_visible("#rollouts") and page.is_hidden("#curves")
    assert page.url.endswith("#rollouts")
    page.keyboard.press("End")
    assert page.is_visible("#settings") and f"{SHOWN}" in page.inner_text("#settings")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#curves")
    page.goto(run_server.url + "#evaluation")
    page.wait_for_selector("#evaluation table")
    assert page.inner_text("#evaluation td:nth-child(6)") == "62.5 %"
    assert page.inner_text("#evaluation td:nth-child(7)") == "55.1 to 69.4 %"


def test_rollouts_are_listed_filtered_and_shown_whole(page: Any, run_server: RunServer) -> None:
    page.click("#tab-rollouts")
    page.wait_for_selector("#rollout-list li")
    assert page.inner_text("#matching") == "240 rollouts"
    assert page.locator("#rollout-list li").count() == 50
    page.click("#older")
    until(page, "document.querySelectorAll('#rollout-list li').length === 100")
    page.select_option("#family", "sums")
    page.select_option("#sign", "none")
    page.wait_for_selector("#matching:has-text('60 rollouts')")
    page.fill("#step", "7")
    page.keyboard.press("Enter")
    page.wait_for_selector("#matching:has-text('1 rollout')")
    until(page, "document.querySelectorAll('#rollout-list li').length === 1")
    page.focus("#rollout-list summary")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rollout-list pre")
    prompt, answer = page.locator("#rollout-list pre").all_inner_texts()
    assert prompt == "prompt of step 7" and answer == f"answer 3 of step 7 {SHOWN}"
    facts = page.inner_text("#rollout-list summary")
    assert "step 7 · sums level 2 · no reward · advantage 1.5 · 13 tokens, cut off" in facts
    assert page.inner_text("#rollout-list .problem") == SHOWN
    parts = page.inner_text("#rollout-list table")
    assert "correct" in parts and SHOWN in parts and "0.5" in parts
    assert page.locator("body script, body img, body a").count() == 0


def test_new_rollouts_are_told_and_what_is_read_stays(page: Any, run_server: RunServer) -> None:
    page.click("#tab-rollouts")
    page.click("#rollout-list li:first-child summary")
    with RunWriter(run_server.folder) as writer:
        writer.rollouts(rollouts(61))
    page.wait_for_selector("#newer:not([hidden])")
    assert page.inner_text("#matching") == "244 rollouts"
    assert page.get_attribute("#rollout-list li:first-child details", "open") == ""
    page.click("#newer")
    page.wait_for_selector("#rollout-list li:first-child:has-text('step 61')")
    assert page.is_hidden("#newer")


def test_a_run_that_has_not_begun_and_a_server_that_ends(
    browser: Any, tmp_path: Path, network_noise: list[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    network_noise.append("the server ends")
    with RunServer(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with opened_page(browser, server.url, network_noise) as page:
            assert page.inner_text("#no-curves") == "No step was made yet."
            page.click("#tab-evaluation")
            assert page.inner_text("#evaluation") == "There is no evaluation yet."
            page.click("#tab-rollouts")
            page.wait_for_selector("#matching:has-text('0 rollouts')")
            with RunWriter(tmp_path) as writer:
                writer.step(metrics(1))
                writer.rollouts(rollouts(1))
            page.wait_for_selector("#rollout-list li:nth-child(4)")
            (tmp_path / "run.json").unlink()
            (tmp_path / "metrics.jsonl").unlink()
            page.wait_for_selector("#state[data-state=gone]:has-text('holds no run')")
            server.shutdown()
            thread.join()
            server.server_close()
            page.wait_for_selector("#state-label:has-text('server has ended')")


def test_contrast_names_and_narrow_screens(page: Any) -> None:
    for tab in ("rollouts", "evaluation", "settings", "curves"):
        page.click(f"#tab-{tab}")
        if tab == "rollouts":
            page.click("#rollout-list li:first-child summary")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(CONTRAST) == []
        page.set_viewport_size({"width": 360, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, tab
        page.set_viewport_size({"width": 1100, "height": 800})
    unnamed = page.eval_on_selector_all(
        "button, input, select",
        """(all) => all.filter((node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.length))
          .map((node) => node.outerHTML)""",
    )
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_needs_nothing_else(browser: Any, run_server: RunServer, scheme: str) -> None:
    path, _ = write_report(run_server.folder)
    context = browser.new_context(viewport={"width": 360, "height": 800}, color_scheme=scheme)
    problems: list[str] = []
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: problems.append(message.text))
    page = context.new_page()
    page.goto(path.as_uri())
    page.click("summary >> nth=-1")
    assert SHOWN in page.inner_text("details[open] pre >> nth=1")
    assert page.evaluate(CONTRAST) == []
    stroke = page.evaluate("getComputedStyle(document.querySelector('.curve .grid')).stroke")
    assert stroke == ("rgb(32, 36, 44)" if scheme == "light" else "rgb(232, 234, 238)"), "styles are allowed"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
    assert problems == [] and asked == [path.as_uri()]
