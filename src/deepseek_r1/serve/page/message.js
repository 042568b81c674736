// One message on the page: the user's as plain text, the model's as markdown with its reasoning folded above it.

import { copyText, el, icon, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;

/** Show for a moment that a copy worked (or how to copy by hand). */
export async function copyWithNotice(button, text) {
  const worked = await copyText(text);
  const label = button.querySelector("span");
  const before = button.dataset.label ?? (label ? label.textContent : button.getAttribute("aria-label"));
  button.dataset.label = before;
  const now = worked ? "Copied" : "Press Ctrl+C";
  if (label) label.textContent = now;
  else button.setAttribute("aria-label", now);
  button.classList.toggle("done", worked);
  button.querySelector("use").setAttribute("href", worked ? "#icon-check" : "#icon-copy");
  setTimeout(() => {
    if (label) label.textContent = before;
    else button.setAttribute("aria-label", before);
    button.classList.remove("done");
    button.querySelector("use").setAttribute("href", "#icon-copy");
  }, 1600);
}

/** The user's message; `onEdit(text)` says whether the changed text was taken. */
export class UserMessage {
  constructor(message, { onEdit }) {
    this.message = message;
    this.onEdit = onEdit;
    this.body = el("div", { class: "bubble", dir: "auto" }, message.content);
    this.copy = iconButton("copy", "Copy message", () => copyWithNotice(this.copy, message.content));
    this.edit = iconButton("edit", "Edit message", () => this.startEdit());
    this.footer = el("div", { class: "message-footer" }, el("div", { class: "actions" }, this.copy, this.edit));
    this.node = el("article", { class: "message user", "aria-label": "You" }, this.body, this.footer);
  }

  setLast(last) {
    this.edit.hidden = !last;
  }

  startEdit() {
    if (this.form) return;
    const area = el("textarea", { "aria-label": "Edit message", rows: "3", dir: "auto" });
    area.value = this.message.content;
    const cancel = el("button", { type: "button", class: "button quiet" }, "Cancel");
    const save = el("button", { type: "submit", class: "button" }, "Save and send");
    const form = el("form", { class: "edit" }, area, el("div", { class: "edit-buttons" }, cancel, save));
    const close = () => {
      form.replaceWith(this.body);
      this.form = null;
      this.footer.hidden = false;
    };
    cancel.addEventListener("click", () => {
      close();
      this.edit.focus();
    });
    area.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        form.requestSubmit();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        cancel.click();
      }
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (area.value.trim()) this.onEdit(area.value.trim());
    });
    this.form = form;
    this.body.replaceWith(form);
    this.footer.hidden = true;
    area.style.height = `${Math.min(area.scrollHeight + 4, 320)}px`;
    area.focus();
  }
}

/** The model's message. While it grows, `live` has its clock: {started, thinkingSince} in performance.now() ms. */
export class AssistantMessage {
  constructor(message, { onRegenerate, onOpenSettings }) {
    this.message = message;
    this.onOpenSettings = onOpenSettings;
    this.live = null;
    this.waiting = el(
      "p",
      { class: "waiting" },
      el("span", { class: "sonar", "aria-hidden": "true" }),
      el("span", {}, ""),
    );
    this.thinkingLabel = el("span", {}, "");
    this.reasoning = el("div", { class: "markdown reasoning", dir: "auto" });
    this.thinking = el(
      "details",
      { class: "thinking" },
      el("summary", {}, el("span", { class: "sonar", "aria-hidden": "true" }), this.thinkingLabel, icon("chevron")),
      this.reasoning,
    );
    this.thinking.addEventListener("toggle", () => this.renderReasoning());
    this.content = el("div", { class: "markdown content", dir: "auto" });
    this.errorBox = el("div", { class: "error-box", role: "alert" });
    this.stats = el("span", { class: "stats" });
    this.copy = iconButton("copy", "Copy answer", () => copyWithNotice(this.copy, message.content));
    this.again = iconButton("again", "Regenerate answer", onRegenerate);
    this.retry = el("button", { type: "button", class: "button" }, "Try again");
    this.retry.addEventListener("click", onRegenerate);
    this.footer = el(
      "div",
      { class: "message-footer" },
      this.stats,
      el("div", { class: "actions" }, this.copy, this.again),
    );
    this.node = el(
      "article",
      { class: "message assistant", "aria-label": "Answer" },
      this.waiting,
      this.thinking,
      this.content,
      this.errorBox,
      this.footer,
    );
    this.reasoningView = new MarkdownView(this.reasoning);
    this.contentView = new MarkdownView(this.content);
    this.update();
  }

  setLast(last) {
    this.again.hidden = !last;
    this.retry.hidden = !last;
  }

  /** Show the message as it now is. */
  update() {
    const { message } = this;
    const growing = this.live !== null;
    this.node.setAttribute("aria-busy", String(growing));
    this.node.classList.toggle("growing", growing);
    this.waiting.hidden = !growing || Boolean(message.content || message.reasoning);
    this.thinking.hidden = !message.reasoning;
    this.renderReasoning();
    this.contentView.update(message.content, !growing);
    this.content.hidden = !message.content;
    this.footer.hidden = growing || Boolean(message.error && !message.content); // the error has its own button
    this.copy.hidden = !message.content;
    this.stats.textContent = growing ? "" : statistics(message);
    this.errorBox.hidden = !message.error;
    if (message.error && !this.errorBox.childElementCount) this.showError(message.error);
    this.tick();
  }

  renderReasoning() {
    // folded reasoning costs nothing: it is rendered when somebody looks
    if (this.thinking.open) this.reasoningView.update(this.message.reasoning, !this.thinkingNow);
  }

  get thinkingNow() {
    return this.live !== null && !this.message.content && Boolean(this.message.reasoning);
  }

  /** Move the clocks on. */
  tick() {
    const { message, live } = this;
    this.thinking.classList.toggle("now", this.thinkingNow);
    if (!this.waiting.hidden) {
      this.waiting.lastChild.textContent = `Waiting for the first token… ${seconds(performance.now() - live.started)}`;
    }
    if (!message.reasoning) return;
    if (this.thinkingNow) {
      this.thinkingLabel.textContent = `Thinking… ${seconds(performance.now() - live.thinkingSince)}`;
    } else {
      const tokens = message.thinkingTokens ? ` (${message.thinkingTokens} tokens)` : "";
      this.thinkingLabel.textContent = `Thought for ${seconds(message.thinkingMs ?? 0)}${tokens}`;
    }
  }

  showError({ message, details, needsKey }) {
    const buttons = el("div", { class: "edit-buttons" }, this.retry);
    if (needsKey) {
      const open = el("button", { type: "button", class: "button quiet" }, "Enter API key");
      open.addEventListener("click", this.onOpenSettings);
      buttons.append(open);
    }
    this.errorBox.append(el("p", { class: "error-text" }, message));
    if (details) this.errorBox.append(el("p", { class: "error-details" }, details));
    this.errorBox.append(buttons);
  }
}

const ENDINGS = {
  length: "Stopped at the token limit",
  stopped: "Stopped",
  content_filter: "Withheld by the server's filter",
};

/** The line under an answer: how it ended, how long it is, how fast it came. */
export function statistics(message) {
  const parts = [ENDINGS[message.finish]];
  if (message.tokens !== undefined) parts.push(`${message.tokens} tokens`);
  if (message.tokensPerSecond) parts.push(`${message.tokensPerSecond.toFixed(1)} tokens/s`);
  if (message.firstMs) parts.push(`first after ${(message.firstMs / 1000).toFixed(2)} s`);
  if (message.promptTokens !== undefined) {
    parts.push(`prompt ${message.promptTokens}${message.cachedTokens ? ` (${message.cachedTokens} cached)` : ""}`);
  }
  return parts.filter(Boolean).join(" · ");
}
