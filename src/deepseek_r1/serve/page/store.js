// Conversations and choices in the browser's own storage: one key per conversation, so that two open tabs don't
// overwrite each other; bounded in number and size; what is found there is checked before it is used.

const PREFIX = "deepseek-r1.";
const CHAT = `${PREFIX}chat.`;
const MAX_CHATS = 50;
const MAX_CHARS = 2_000_000; // of all conversations together; browsers give about 5 MB

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key) ?? "null");
  } catch {
    return null; // not ours, or storage is switched off: the page works without
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false; // full or switched off: the caller decides what that means
  }
}

const text = (value) => (typeof value === "string" ? value : "");

function validMessage(found) {
  if (found?.role !== "user" && found?.role !== "assistant") return null;
  const message = { role: found.role, content: text(found.content) };
  if (found.role === "user") return message;
  message.reasoning = text(found.reasoning);
  for (const name of [
    "thinkingMs",
    "thinkingTokens",
    "firstMs",
    "tokensPerSecond",
    "promptTokens",
    "cachedTokens",
    "tokens",
  ]) {
    if (Number.isFinite(found[name])) message[name] = found[name];
  }
  if (found.finish) message.finish = text(found.finish);
  if (found.pending) message.finish = "stopped"; // the page was closed in the middle of this answer
  if (found.error) message.error = { message: text(found.error.message), details: text(found.error.details) };
  return message;
}

function validChat(key) {
  const found = read(key);
  if (!Array.isArray(found?.messages)) return null;
  const messages = found.messages.map(validMessage).filter(Boolean);
  return { id: key.slice(CHAT.length), title: text(found.title), updated: Number(found.updated) || 0, messages };
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    return [];
  }
}

/** A conversation that is kept from its first message on. */
export function newChat() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return {
    id: `${Date.now().toString(36)}-${random[0].toString(36)}${random[1].toString(36)}`,
    title: "",
    updated: 0,
    messages: [],
  };
}

/** All kept conversations, newest first. */
export function listChats() {
  return keys()
    .map(validChat)
    .filter(Boolean)
    .sort((a, b) => b.updated - a.updated);
}

/** Keep a conversation; the oldest others make room. False if it can't be kept at all. */
export function saveChat(chat) {
  if (!chat.messages.length) {
    removeChat(chat.id);
    return true;
  }
  const others = keys()
    .filter((key) => key !== CHAT + chat.id)
    .map((key) => ({ key, updated: read(key)?.updated ?? 0, size: localStorage.getItem(key).length }))
    .sort((a, b) => a.updated - b.updated);
  let size = others.reduce((sum, other) => sum + other.size, JSON.stringify(chat).length);
  for (;;) {
    if (size <= MAX_CHARS && others.length < MAX_CHATS && write(CHAT + chat.id, chat)) return true;
    const oldest = others.shift();
    if (!oldest) return size <= MAX_CHARS && write(CHAT + chat.id, chat);
    size -= oldest.size;
    localStorage.removeItem(oldest.key);
  }
}

export function removeChat(id) {
  localStorage.removeItem(CHAT + id);
}

export function removeAllChats() {
  for (const key of keys()) localStorage.removeItem(key);
}

/** A remembered choice ("settings", "theme", "current", …), or null. */
export const readChoice = (name) => read(PREFIX + name);
export const writeChoice = (name, value) => write(PREFIX + name, value);

/** The API key lives as long as this tab, and is never put beside the conversations. */
export function readKey() {
  try {
    return sessionStorage.getItem(`${PREFIX}key`) ?? "";
  } catch {
    return "";
  }
}

export function writeKey(key) {
  try {
    sessionStorage.setItem(`${PREFIX}key`, key);
  } catch {
    // storage is switched off: the form field itself still holds the key
  }
}
