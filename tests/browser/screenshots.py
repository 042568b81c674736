"""Takes the pictures of the chat page in docs/images.

With the address of a running server, the answers in chat-light.png and chat-dark.png are its model's own. Without one
they are scripted, as they always are in chat-thinking.png and chat-gone.png (the default model does not think, and
nobody's server is stopped for a picture).

    python tests/browser/screenshots.py [http://127.0.0.1:8080] [--to docs/images]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from chat_driver import ARGUMENTS, ask
from fake_server import FakeServer
from playwright.sync_api import sync_playwright

SIZE = {"width": 1120, "height": 720}
LIMIT = 200_000  # bytes of one picture

CODE_QUESTION = "How do I remove duplicates from a list in Python, keeping the order?"
CODE_ANSWER = """A dictionary keeps its keys in the order they were added, so its keys are the list without duplicates:

```python
def unique(items):
    return list(dict.fromkeys(items))

print(unique([3, 1, 3, 2, 1]))  # [3, 1, 2]
```

- It takes **one pass** over the list.
- The items must be *hashable*: numbers, strings, tuples. For lists inside the list, compare them one by one.
"""
TABLE_QUESTION = "Compare tea and coffee in a table with three rows."
TABLE_ANSWER = """Here is how they differ, for a cup of 240 ml:

| | Tea | Coffee |
|:--|:--|:--|
| **Caffeine** | 30–50 mg | 80–100 mg |
| **Best water** | 75–95 °C | 90–96 °C |
| **Time** | 2–5 minutes | 4 minutes |

> Coffee wakes you sooner; tea keeps you company for longer.
"""
THINK_QUESTION = "A bat and a ball cost 1.10 together. The bat costs 1.00 more than the ball. What does the ball cost?"
THINK_ANSWER = """The tempting answer is 0.10. Check it: then the bat costs 1.10 and both together 1.20. Too much.

Call the ball $x$. The bat is $x + 1.00$, so

\\[ x + (x + 1.00) = 1.10 \\]

which gives $2x = 0.10$ and $x = 0.05$.</think>The ball costs **0.05**.

1. Let the ball cost $x$; the bat costs $x + 1.00$.
2. Together: $2x + 1.00 = 1.10$, so $x = 0.05$.

*Check:* 0.05 + 1.05 = 1.10.
"""
GONE_DRAFT = "And which of the two has more antioxidants?"


def open_page(browser: Any, url: str, scheme: str) -> Any:
    page = browser.new_context(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce").new_page()
    page.goto(url)
    page.wait_for_selector('#state[data-state="ready"]')
    return page


def answered(page: Any, question: str) -> None:
    ask(page, question)
    page.wait_for_selector("#send:not([hidden])", timeout=120_000)


def take(page: Any, folder: Path, name: str) -> None:
    file = folder / name
    page.screenshot(path=file)
    size = file.stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{file}: {size} bytes, more than {LIMIT}; make SIZE smaller")
    print(f"{file}: {size // 1000} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", help="address of a running server (default: a scripted one)")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[2] / "docs" / "images")
    arguments = parser.parse_args()
    executable = shutil.which("chromium")
    if executable is None:
        sys.exit("no Chromium on this machine: apt-get install chromium")
    arguments.to.mkdir(parents=True, exist_ok=True)

    scripted = FakeServer()
    scripted.texts = {CODE_QUESTION: CODE_ANSWER, TABLE_QUESTION: TABLE_ANSWER, THINK_QUESTION: THINK_ANSWER}
    scripted.models = ["scripted-answers"]  # no model's name under words that are not its own
    scripted.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        for scheme in ("light", "dark"):
            page = open_page(browser, arguments.url or scripted.url, scheme)
            if scheme == "light":
                answered(page, TABLE_QUESTION)
                page.click("#new-chat")
            answered(page, CODE_QUESTION)
            if scheme == "dark":
                answered(page, TABLE_QUESTION)
            page.mouse.move(5, 300)
            take(page, arguments.to, f"chat-{scheme}.png")

        page = open_page(browser, scripted.url, "light")
        ask(page, THINK_QUESTION)
        page.click(".thinking summary")
        page.wait_for_selector("#send:not([hidden])")
        page.mouse.move(5, 300)
        take(page, arguments.to, "chat-thinking.png")

        page = open_page(browser, scripted.url, "dark")
        answered(page, TABLE_QUESTION)
        page.fill("#prompt", GONE_DRAFT)
        scripted.stop()
        page.wait_for_selector("#banner[data-state=gone]:not([hidden])")
        page.keyboard.press("Enter")
        page.mouse.move(5, 300)
        page.wait_for_timeout(600)  # the countdown of the banner
        take(page, arguments.to, "chat-gone.png")
        browser.close()


if __name__ == "__main__":
    main()
