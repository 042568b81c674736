// Wires the page together: composer, conversation, state of the server, keyboard.

import { listModels } from "./api.js";
import { Chat } from "./chat.js";
import { Health } from "./health.js";
import { copyWithNotice } from "./message.js";
import { Follower } from "./scroll.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { listChats, newChat, readChoice, writeChoice } from "./store.js";

const $ = (selector) => document.querySelector(selector);
const [composer, input, sendButton, stopButton] = [$("#composer"), $("#prompt"), $("#send"), $("#stop")];
const [banner, notice, welcome, modelName, modelSelect] = [
  $("#banner"),
  $("#notice"),
  $("#welcome"),
  $("#model"),
  $("#models"),
];

const settings = new Settings($("#settings"));
const health = new Health();
const follower = new Follower($("#scroll"), $("#latest"));
let noticeTimer = 0;
let everReady = false;
let model = "default";

const chat = new Chat($("#log"), {
  settings: () => ({ ...settings.forRequest(), model }),
  canSend() {
    if (health.state !== "gone" && health.state !== "starting") return true;
    health.check();
    const why = health.state === "gone" ? "the server is not answering" : "the engine is not ready";
    showNotice(`Not sent: ${why}. Your text is kept.`);
    return false;
  },
  draft(text) {
    input.value = input.value ? `${text}\n${input.value}` : text;
    fitInput();
    input.focus();
    showNotice("Not sent: the server is not answering. Your text is kept.");
  },
  notice: showNotice,
  changed() {
    welcome.hidden = chat.chat.messages.length > 0;
    const focused = document.activeElement;
    sendButton.hidden = chat.busy;
    stopButton.hidden = !chat.busy;
    if (focused === sendButton || focused === stopButton) input.focus();
    document.title = chat.chat.title ? `${chat.chat.title} · deepseek-r1` : "deepseek-r1 · chat";
    writeChoice("current", chat.chat.id);
    sidebar.refresh();
  },
  grew: (jump) => (jump ? follower.follow() : follower.grew()),
  announce: (text) => ($("#announcer").textContent = text),
  lost: () => health.check(),
  openSettings,
});

const sidebar = new Sidebar($("#sidebar"), $("#toggle-sidebar"), $("#scrim"), {
  open(stored) {
    chat.open(stored);
    follower.follow();
    input.focus();
  },
  removed: (id) => (id === null || id === chat.chat.id) && startNew(),
  current: () => chat.chat.id,
});

function startNew() {
  chat.open(newChat());
  follower.follow();
  input.focus();
}

function openSettings() {
  settings.open();
}

function showNotice(text) {
  clearTimeout(noticeTimer);
  notice.textContent = text;
  notice.hidden = false;
  noticeTimer = setTimeout(() => (notice.hidden = true), 8000);
}

function fitInput() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, Math.round(window.innerHeight * 0.4))}px`;
  sendButton.disabled = !input.value.trim();
}

function submit() {
  if (!chat.send(input.value.trim())) return;
  input.value = "";
  notice.hidden = true;
  fitInput();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
input.addEventListener("input", fitInput);
input.addEventListener("keydown", (event) => {
  // while an input method composes, Enter takes its suggestion (229: Safari tells it only this way)
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !input.value) {
    event.preventDefault();
    chat.editLast();
  }
});
stopButton.addEventListener("click", () => chat.stop());
for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    input.value = button.dataset.prompt;
    fitInput();
    submit();
  });
}
$("#new-chat").addEventListener("click", () => {
  if (sidebar.narrow.matches) sidebar.show(false);
  startNew();
});
$("#open-settings").addEventListener("click", openSettings);
$("#toggle-theme").addEventListener("click", () => {
  settings.setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});
$("#log").addEventListener("click", (event) => {
  const button = event.target.closest(".copy-code");
  if (button) copyWithNotice(button, button.closest(".code-block").querySelector("code").textContent);
});

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input, textarea, select");
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && chat.busy) {
    chat.stop();
  } else if ((command && event.key.toLowerCase() === "k") || (!command && !typing && event.key === "/")) {
    event.preventDefault();
    input.focus();
  }
});
window.addEventListener("pagehide", () => chat.stop()); // keeps the answer in flight as far as it came
window.addEventListener("resize", fitInput);

const LABELS = { ready: "Ready", starting: "Engine starting", gone: "Not answering", unknown: "Connecting" };

function showHealth({ state, reason }) {
  $("#state").dataset.state = state;
  $("#state-label").textContent = LABELS[state];
  banner.dataset.state = state;
  banner.hidden = state === "ready";
  const verb = everReady ? "restarting" : "starting";
  const sentences = {
    gone: "The server is not answering — it may have been stopped, or the connection is down; retrying",
    starting: `The engine is ${verb} — the server answers, but can't write yet${reason ? ` (${reason})` : ""}; retrying`,
  };
  $("#banner-text").textContent = sentences[state] ?? "";
  if (state !== "ready") return;
  everReady = true;
  notice.hidden = true;
  loadModels();
}

health.addEventListener("change", (event) => showHealth(event.detail));
$("#retry-now").addEventListener("click", () => health.check());
setInterval(() => {
  if (banner.hidden) return;
  const left = Math.ceil((health.nextAt - performance.now()) / 1000);
  $("#banner-count").textContent = left > 0 ? `in ${left} s` : "now";
}, 500);

/** Which models there are; the only one is a name, several are a choice. */
async function loadModels() {
  let names;
  try {
    names = await listModels(settings.apiKey);
  } catch (error) {
    modelName.textContent = error.status === 401 ? "API key needed" : "default model";
    if (error.status === 401) showNotice("This server wants an API key: enter it in the settings.");
    return;
  }
  // What is chosen here stays chosen when the engine comes back, whatever another tab chose meanwhile.
  model = [model, readChoice("model"), names[0]].find((name) => names.includes(name)) ?? "default";
  modelName.textContent = model;
  modelName.title = model;
  modelName.hidden = names.length > 1;
  modelSelect.hidden = names.length < 2;
  modelSelect.replaceChildren(...names.map((name) => new Option(name, name, false, name === model)));
}

modelSelect.addEventListener("change", () => {
  model = modelSelect.value;
  writeChoice("model", model);
});
let keyTimer = 0;
settings.dialog.addEventListener("keychange", () => {
  clearTimeout(keyTimer);
  keyTimer = setTimeout(loadModels, 400);
});
function showSettingsCount() {
  $("#settings-count").textContent = settings.count ? String(settings.count) : "";
  $("#open-settings").setAttribute("aria-label", settings.count ? `Settings, ${settings.count} changed` : "Settings");
}
settings.dialog.addEventListener("settingschange", showSettingsCount);

const current = readChoice("current");
chat.open(listChats().find((candidate) => candidate.id === current) ?? newChat());
showSettingsCount();
fitInput();
follower.follow();
health.check();
if (!matchMedia("(pointer: coarse)").matches) input.focus();
