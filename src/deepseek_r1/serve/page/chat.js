// A conversation and its turns: what is sent, what comes back, what happens when it fails.

import { ApiError, streamChat } from "./api.js";
import { AssistantMessage, UserMessage } from "./message.js";
import { newChat, saveChat } from "./store.js";

const SAVE_EVERY_MS = 2000;

/** Messages as the API wants them: no failed or empty answers, no reasoning, never two of one role in a row. */
export function requestMessages(messages, systemPrompt) {
  const out = systemPrompt ? [{ role: "system", content: systemPrompt }] : [];
  for (const { role, content } of messages) {
    if (!content) continue;
    const last = out.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else out.push({ role, content });
  }
  return out;
}

/**
 * `log` is the element that shows the messages. `hooks`: settings() -> {request, systemPrompt, apiKey, model},
 * canSend() -> bool, draft(text) puts text back into the composer, notice(text), changed(), grew(), announce(text),
 * lost() says that the server did not answer, openSettings().
 */
export class Chat {
  constructor(log, hooks) {
    this.log = log;
    this.hooks = hooks;
    this.turn = null;
    this.chat = newChat();
    this.views = [];
  }

  get busy() {
    return this.turn !== null;
  }

  /** Show another conversation; an answer in flight stops and is kept as far as it came. */
  open(chat) {
    this.stop();
    this.chat = chat;
    this.views = [];
    this.log.replaceChildren();
    for (const message of chat.messages) this.addView(message);
    this.refresh();
  }

  addView(message) {
    const view =
      message.role === "user"
        ? new UserMessage(message, { onEdit: (text) => this.edit(text) })
        : new AssistantMessage(message, {
            onRegenerate: () => this.regenerate(),
            onOpenSettings: this.hooks.openSettings,
          });
    this.views.push(view);
    this.log.append(view.node);
    return view;
  }

  refresh() {
    const lastUser = this.chat.messages.findLastIndex((message) => message.role === "user");
    this.views.forEach((view, index) => {
      const last = view instanceof UserMessage ? index === lastUser : index === this.views.length - 1;
      view.setLast(last && !this.busy);
    });
    this.hooks.changed();
  }

  setMessages(messages) {
    this.chat.messages = messages;
    while (this.views.length && this.views.at(-1).message !== messages[this.views.length - 1])
      this.views.pop().node.remove();
    for (const message of messages.slice(this.views.length)) this.addView(message);
    this.refresh();
  }

  /** Ask something; false if it can't be sent now (then nothing has changed). */
  send(text) {
    if (this.busy || !text.trim() || !this.hooks.canSend()) return false;
    const before = this.chat.messages;
    this.setMessages([...before, { role: "user", content: text }]);
    this.answer({ before, draft: text });
    return true;
  }

  /** Replace the last question, dropping what followed it. */
  edit(text) {
    if (this.busy || !this.hooks.canSend()) return;
    const before = this.chat.messages;
    const index = before.findLastIndex((message) => message.role === "user");
    this.setMessages([...before.slice(0, index), { role: "user", content: text }]);
    this.answer({ before, draft: text });
  }

  /** Answer the last question anew. */
  regenerate() {
    if (this.busy || !this.hooks.canSend()) return;
    const before = this.chat.messages;
    const index = before.findLastIndex((message) => message.role === "user");
    if (index < 0) return;
    this.setMessages(before.slice(0, index + 1));
    this.answer({ before, draft: "" });
  }

  editLast() {
    if (!this.busy) this.views.findLast((view) => view instanceof UserMessage)?.startEdit();
  }

  /** Stop the answer in flight: closing the connection makes the server cancel it. */
  stop() {
    this.turn?.abort.abort();
    this.turn?.settle("stopped");
  }

  save(chat) {
    chat.updated = Date.now();
    if (!chat.messages.length) chat.title = "";
    chat.title ||=
      chat.messages
        .find((message) => message.role === "user")
        ?.content.trim()
        .split("\n")[0]
        .slice(0, 80) ?? "";
    if (!saveChat(chat))
      this.hooks.notice("This conversation is too long for the browser's storage: it is lost when the page closes.");
  }

  async answer({ before, draft }) {
    const { chat } = this;
    const { request, systemPrompt, apiKey, model } = this.hooks.settings();
    const body = { model, messages: requestMessages(chat.messages, systemPrompt), ...request };
    const message = { role: "assistant", content: "", reasoning: "", pending: true };
    chat.messages = [...chat.messages, message];
    const view = this.addView(message);
    const clock = { started: performance.now(), thinkingSince: 0, first: 0, last: 0 };
    view.live = clock;

    const turn = { abort: new AbortController(), frame: 0, settled: false };
    const draw = () => {
      turn.frame = 0;
      view.update();
      this.hooks.grew();
    };
    const timers = [setInterval(() => view.tick(), 100), setInterval(() => this.save(chat), SAVE_EVERY_MS)];
    turn.settle = (finish) => {
      if (turn.settled) return;
      turn.settled = true;
      timers.forEach(clearInterval);
      cancelAnimationFrame(turn.frame);
      delete message.pending;
      if (finish) message.finish = finish;
      if (message.reasoning) message.thinkingMs ??= (clock.last || performance.now()) - clock.thinkingSince;
      const spent = clock.last - clock.first;
      if (message.tokens > 1 && spent > 50) message.tokensPerSecond = (1000 * (message.tokens - 1)) / spent;
      view.live = null;
      if (this.turn === turn) this.turn = null;
      draw();
      this.save(chat);
      if (this.chat === chat) this.refresh();
    };
    this.turn = turn;
    this.save(chat);
    this.refresh();
    view.update();
    this.hooks.grew(true);
    this.hooks.announce("Waiting for the answer");

    try {
      for await (const event of streamChat(body, { apiKey, signal: turn.abort.signal })) {
        if (turn.settled) return;
        if (event.type === "content" || event.type === "reasoning") {
          clock.last = performance.now();
          clock.first ||= clock.last;
          message.firstMs ??= clock.first - clock.started;
          if (event.type === "reasoning") {
            clock.thinkingSince ||= clock.last;
            message.reasoning += event.text;
          } else {
            if (message.reasoning) message.thinkingMs ??= clock.last - clock.thinkingSince;
            message.content += event.text;
          }
        } else if (event.type === "finish") {
          message.finish = event.reason;
        } else {
          takeUsage(message, event.usage);
        }
        turn.frame ||= requestAnimationFrame(draw);
      }
      turn.settle();
      this.hooks.announce("Answer complete");
    } catch (error) {
      if (turn.settled) return; // stopped by the user
      if (!(error instanceof ApiError)) {
        turn.settle("stopped");
        throw error;
      }
      this.fail(error, { turn, chat, message, before, draft });
    }
  }

  fail(error, { turn, chat, message, before, draft }) {
    if (error.kind === "network" || error.kind === "cut") this.hooks.lost();
    const empty = !message.content && !message.reasoning;
    const replaced = before.at(-1)?.role === "assistant" && before.at(-1).content && !draft;
    if (empty && (error.kind === "network" || replaced)) {
      // nothing has happened: put everything back as it was
      turn.settle();
      this.setMessages(before);
      this.save(chat);
      if (draft) this.hooks.draft(draft);
      if (error.kind !== "network") this.hooks.notice(`${error.message} ${error.details && `(${error.details})`}`);
      return;
    }
    message.error = { message: error.message, details: error.details, needsKey: error.status === 401 };
    turn.settle();
  }
}

function takeUsage(message, usage) {
  message.tokens = usage.completion_tokens;
  message.promptTokens = usage.prompt_tokens;
  message.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
  message.thinkingTokens = usage.completion_tokens_details?.reasoning_tokens ?? 0;
}
