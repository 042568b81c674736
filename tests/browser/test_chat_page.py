"""The chat page as a person uses it: asking, stopping, editing, copying, settings, keyboard, looks."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from chat_driver import ask, ask_and_wait, last_answer, opened_page, until
from fake_server import FakeServer


def test_sends_and_streams(page: Any, server: FakeServer) -> None:
    ask(page, "slow please")
    page.wait_for_selector(".content:has-text('word3')")
    growing = last_answer(page)
    assert page.is_visible("#stop")
    assert page.is_hidden("#send")
    assert page.get_attribute(".message.assistant", "aria-busy") == "true"
    until(page, f"document.querySelector('.content').innerText.length > {len(growing) + 20}")
    assert last_answer(page).startswith(growing.strip())
    page.keyboard.press("Escape")
    request = server.requests[0]
    assert request["messages"] == [{"role": "user", "content": "slow please"}]
    assert request["model"] == "smollm2-135m-instruct"
    assert request["stream"] is True
    assert request["stream_options"] == {"include_usage": True}
    assert set(request) == {"messages", "model", "stream", "stream_options"}  # empty settings are not sent


def test_usage_and_speed_stand_under_the_answer(page: Any) -> None:
    ask_and_wait(page, "think about it")
    stats = page.inner_text(".stats")
    assert re.fullmatch(r"140 tokens · \d+\.\d tokens/s · first after \d+\.\d\d s · prompt 20 \(16 cached\)", stats), (
        stats
    )
    ask_and_wait(page, "long")
    assert page.inner_text(".message.assistant:last-child .stats").startswith("Stopped at the token limit · 480 tokens")


def test_stop_button_cancels_at_the_server_and_keeps_the_text(page: Any, server: FakeServer) -> None:
    ask(page, "slow")
    page.wait_for_selector(".content:has-text('word5')")
    page.click("#stop")
    page.wait_for_selector("#send:not([hidden])")
    text = last_answer(page)
    assert "word5" in text
    assert server.cancelled.wait(5)
    assert page.inner_text(".stats").startswith("Stopped")
    time.sleep(0.2)
    assert last_answer(page) == text
    ask_and_wait(page, "and now?")
    assert [message["role"] for message in server.requests[1]["messages"]] == ["user", "assistant", "user"]


def test_stop_before_the_first_token(page: Any, server: FakeServer) -> None:
    ask(page, "silent")
    page.wait_for_selector(".waiting:has-text('Waiting for the first token… 0.')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".stats:has-text('Stopped')")
    assert page.is_hidden(".waiting")
    assert server.cancelled.wait(5)


def test_reasoning_is_folded_and_timed(page: Any, server: FakeServer) -> None:
    ask(page, "think about it")
    page.wait_for_selector("summary:has-text('Thinking… 0.')")
    assert page.get_attribute(".thinking", "open") is None
    page.wait_for_selector("#send:not([hidden])")
    assert re.fullmatch(r"Thought for 0\.\d s \(120 tokens\)", page.inner_text(".thinking summary"))
    assert page.is_hidden(".reasoning")
    assert page.inner_html(".content") == "<p>The answer is <strong>42</strong>.</p>"
    page.click(".thinking summary")
    page.wait_for_selector(".reasoning li strong:has-text('points')")
    assert page.inner_text(".reasoning p") == "First I weigh"
    ask_and_wait(page, "echo x")
    answers = [message["content"] for message in server.requests[1]["messages"] if message["role"] == "assistant"]
    assert answers == ["The answer is **42**."]  # reasoning is not sent back


def test_reasoning_streams_into_an_open_fold(page: Any) -> None:
    ask(page, "think about it")
    page.click(".thinking summary")
    page.wait_for_selector(".reasoning:has-text('one')")
    assert "Thinking…" in page.inner_text(".thinking summary")
    page.wait_for_selector(".reasoning strong:has-text('points')")
    page.wait_for_selector("#send:not([hidden])")
    assert page.get_attribute(".thinking", "open") is not None


def test_bytes_cut_anywhere(page: Any) -> None:
    ask_and_wait(page, "split")
    assert page.inner_text(".content p") == "Zürich 東京 🦊"
    assert [cell.inner_text() for cell in page.query_selector_all(".content td")] == ["ü", "🦊"]
    assert page.is_hidden(".error-box")


def test_characters_cut_into_bytes(module_page: Any) -> None:
    got = module_page.evaluate(
        """async () => {
          const { readEvents } = await import("/page/sse.js");
          const bytes = new TextEncoder().encode("data: Zürich 東京 🦊\\n\\ndata: é\\n\\n");
          const body = new ReadableStream({
            start(controller) {
              for (const byte of bytes) controller.enqueue(new Uint8Array([byte]));
              controller.close();
            },
          });
          const out = [];
          for await (const { data } of readEvents(body)) out.push(data);
          return out;
        }"""
    )
    assert got == ["Zürich 東京 🦊", "é"]


def test_event_parser_at_every_cut(module_page: Any) -> None:
    wrong = module_page.evaluate(
        """async () => {
          const { EventParser } = await import("/page/sse.js");
          const text = ': hi\\r\\ndata: a\\r\\ndata:b\\r\\n\\r\\nevent: error\\rdata: {"x": 1}\\r\\rid: 3\\n\\n'
            + 'data\\n\\ndata: end\\n\\ndata: cut';
          const parse = (pieces) => {
            const parser = new EventParser();
            return JSON.stringify(pieces.flatMap((piece) => parser.push(piece)));
          };
          const want = JSON.stringify([
            { event: "message", data: "a\\nb" }, { event: "error", data: '{"x": 1}' },
            { event: "message", data: "" }, { event: "message", data: "end" }]);
          const cuts = [parse([...text])];
          for (let a = 0; a <= text.length; a++)
            for (let b = a; b <= text.length; b++)
              cuts.push(parse([text.slice(0, a), text.slice(a, b), text.slice(b)]));
          return cuts.filter((got) => got !== want).slice(0, 3);
        }"""
    )
    assert wrong == []


def test_model_text_is_never_markup(page: Any) -> None:
    attack = (
        '<img src=x onerror="document.title=1"> <script>document.title=2</script> [x](javascript:document.title=3) '
        "<svg onload=alert(1)> ```<b>``` **<i>b</i>** [ok](https://example.org)"
    )
    ask_and_wait(page, f"echo {attack}")
    html = page.evaluate(
        """() => [...document.querySelectorAll('.content *')].map((node) => node.tagName.toLowerCase())"""
    )
    assert set(html) <= {"p", "a", "strong", "code"}
    links = page.eval_on_selector_all(".content a", "(all) => all.map((a) => [a.href, a.rel, a.target])")
    assert links == [["https://example.org/", "noopener noreferrer", "_blank"]]
    shown = last_answer(page)
    assert '<img src=x onerror="document.title=1">' in shown
    assert "[x](javascript:document.title=3)" in shown
    # the question stays text too, in the bubble and in the list of conversations
    assert "<script>" in page.inner_text(".bubble")
    assert page.eval_on_selector_all(".bubble *, .chat-link *", "(all) => all.length") == 0


def test_copy_message_and_code(page: Any) -> None:
    markdown = "Use **this**:\n\n```python\nprint('hi')\n```\n"
    ask_and_wait(page, "echo " + markdown)
    page.click(".copy-code")
    page.wait_for_selector(".copy-code:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == "print('hi')"
    assert page.inner_text(".language") == "python"
    page.click("[aria-label='Copy answer']")
    page.wait_for_selector("[aria-label='Copied']")
    assert page.evaluate("navigator.clipboard.readText()") == markdown.strip()
    page.hover(".bubble")
    page.click("[aria-label='Copy message']")
    until(page, "(async () => (await navigator.clipboard.readText()).startsWith('echo Use'))()")


def test_copy_without_the_clipboard_api(page: Any) -> None:
    """Over plain http from another machine there is no navigator.clipboard."""
    ask_and_wait(page, "echo plain text")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.click("[aria-label='Copy answer']")
    page.wait_for_selector("[aria-label='Copied']")
    page.fill("#prompt", "")
    page.focus("#prompt")
    page.keyboard.press("Control+v")
    assert page.input_value("#prompt") == "plain text"


def test_settings_are_sent_and_kept(page: Any, server: FakeServer) -> None:
    page.click("#open-settings")
    values = {
        "temperature": "0.5",
        "top_p": "0.9",
        "top_k": "40",
        "min_p": "0.05",
        "max_tokens": "64",
        "max_thinking_tokens": "32",
        "seed": "7",
    }
    for name, value in values.items():
        page.fill(f"#{name}", value)
    page.fill("#system_prompt", "Be brief.")
    page.fill("#api_key", "secret")
    page.click("text=Done")
    assert page.inner_text("#settings-count") == "8"
    ask_and_wait(page, "hello")
    body = server.requests[0]
    assert {name: body[name] for name in values} == {name: json.loads(value) for name, value in values.items()}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert server.authorizations[-1] == "Bearer secret"
    stored = page.evaluate("JSON.stringify({...localStorage})")
    assert "Be brief." in stored
    assert "secret" not in stored

    page.reload()
    page.wait_for_selector('#state[data-state="ready"]')
    page.click("#open-settings")
    assert page.input_value("#temperature") == "0.5"
    page.click("text=Reset to defaults")
    page.fill("#temperature", "3")
    assert "2" in page.inner_text("#temperature-error")
    page.keyboard.press("Escape")
    ask_and_wait(page, "again")
    assert "temperature" not in server.requests[-1]  # a value out of range is shown as such, and not sent
    assert "seed" not in server.requests[-1]


def test_regenerate_edit_and_new_chat(page: Any, server: FakeServer) -> None:
    ask_and_wait(page, "one")
    ask_and_wait(page, "two")
    page.click("[aria-label='Regenerate answer']:visible")
    page.wait_for_selector("#send:not([hidden])")
    assert server.requests[2]["messages"] == server.requests[1]["messages"]
    assert page.locator(".message").count() == 4

    page.focus("#prompt")
    page.keyboard.press("ArrowUp")
    assert page.input_value("[aria-label='Edit message']:is(textarea)") == "two"
    page.keyboard.press("Escape")
    assert page.inner_text(".message.user >> nth=1") == "two"
    page.hover(".message.user >> nth=1")
    page.click("button[aria-label='Edit message']:visible")
    page.fill("textarea[aria-label='Edit message']", "three")
    page.click("text=Save and send")
    page.wait_for_selector("#send:not([hidden])")
    contents = [message["content"] for message in server.requests[3]["messages"]]
    assert contents == ["one", "You said: one", "three"]
    assert last_answer(page) == "You said: three"

    page.click("#new-chat")
    assert page.is_visible("#welcome")
    assert page.evaluate("document.activeElement.id") == "prompt"
    ask_and_wait(page, "fresh")
    assert [message["content"] for message in server.requests[4]["messages"]] == ["fresh"]
    assert page.locator(".chat-link").all_inner_texts() == ["fresh", "one"]


def test_conversations_are_kept_switched_and_deleted(page: Any) -> None:
    ask_and_wait(page, "first chat")
    page.click("#new-chat")
    ask_and_wait(page, "think second")
    page.reload()
    page.wait_for_selector(".content strong:has-text('42')")
    assert re.fullmatch(r"Thought for 0\.\d s \(120 tokens\)", page.inner_text(".thinking summary"))
    page.click(".chat-link:has-text('first chat')")
    assert last_answer(page) == "You said: first chat"
    page.hover(".sidebar li:has-text('first chat')")
    page.click("[aria-label='Delete “first chat”']")
    assert page.is_visible("#welcome")
    assert page.locator(".chat-link").count() == 1
    page.click("[data-action=clear]")
    page.click("text=Really delete all?")
    assert page.is_visible("text=None yet.")
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('.chat.')).length") == 0


def test_switching_away_keeps_what_had_arrived(page: Any, server: FakeServer) -> None:
    ask(page, "slow one")
    page.wait_for_selector(".content:has-text('word3')")
    page.click("#new-chat")
    assert server.cancelled.wait(5)
    page.click(".chat-link:has-text('slow one')")
    assert "word3" in last_answer(page)
    assert page.inner_text(".stats").startswith("Stopped")


def test_reload_in_the_middle_keeps_what_had_arrived(page: Any) -> None:
    ask(page, "slow one")
    page.wait_for_selector(".content:has-text('word3')")
    page.reload()
    page.wait_for_selector(".content:has-text('word3')")
    assert page.inner_text(".stats").startswith("Stopped")


def test_storage_is_bounded(module_page: Any) -> None:
    kept = module_page.evaluate(
        """async () => {
          const { listChats, newChat, removeAllChats, saveChat } = await import("/page/store.js");
          const messages = (size) => [{ role: "user", content: "x".repeat(size) }];
          const chat = (size, updated) => ({ ...newChat(), updated, messages: messages(size) });
          const results = [];
          for (let n = 0; n < 60; n++) saveChat(chat(10, n));
          results.push(listChats().length, listChats()[0].updated, listChats().at(-1).updated);
          saveChat(chat(1_900_000, 100));
          results.push(listChats().length);
          saveChat(chat(500_000, 101));
          results.push(listChats().map((found) => found.updated).join());
          results.push(saveChat(chat(3_000_000, 102)));
          localStorage.setItem("deepseek-r1.chat.bad", "{not json");
          const odd = { messages: [{ role: "system" }, { role: "user", content: 5 }, null] };
          localStorage.setItem("deepseek-r1.chat.odd", JSON.stringify(odd));
          results.push(listChats().map((found) => found.messages.length).join());
          removeAllChats();
          results.push(listChats().length);
          return results;
        }"""
    )
    assert kept == [50, 59, 10, 50, "101", False, "1", 0]


def test_several_models(browser: Any, server: FakeServer) -> None:
    server.models = ["one", "two"]
    with opened_page(browser, server.url, []) as page:
        page.select_option("#models", "two")
        ask_and_wait(page, "hello")
        assert server.requests[0]["model"] == "two"
        page.reload()
        page.wait_for_selector("#models:not([hidden])")
        assert page.input_value("#models") == "two"


def test_one_model_is_no_choice(page: Any) -> None:
    page.wait_for_selector("#model:has-text('smollm2')")
    assert page.is_hidden("#models") and page.is_visible("#model")


def test_a_choice_of_models_by_name_and_keyboard(browser: Any, server: FakeServer) -> None:
    """It stays when the engine comes back, whatever another tab has chosen; what is gone falls back to the first."""
    server.models = ["one", "two", "three"]
    with opened_page(browser, server.url, []) as page:
        choice = page.get_by_role("combobox", name="Model")
        assert choice.input_value() == "one" and page.is_hidden("#model")
        choice.focus()
        page.keyboard.press("ArrowDown")
        page.evaluate("localStorage.setItem('deepseek-r1.model', JSON.stringify('three'))")
        rounds = ((["one", "two", "three"], "two"), (["one", "three"], "three"), (["one", "four"], "one"))
        for number, (models, chosen) in enumerate(rounds):
            server.models = models
            page.click("#open-settings")
            page.fill("#api_key", f"key{number}")  # with another key the list is asked for again
            page.keyboard.press("Enter")
            for _ in range(100):
                if f"Bearer key{number}" in server.authorizations:
                    break
                page.wait_for_timeout(50)
            page.wait_for_function(
                "wanted => [...document.querySelectorAll('#models option')].map(o => o.innerText).join() === wanted",
                arg=",".join(models),
            )
            assert (page.locator("#models option").all_inner_texts(), choice.input_value()) == (models, chosen)
            ask_and_wait(page, "hello")
            assert server.requests[-1]["model"] == chosen
