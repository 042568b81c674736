// The list of rollouts: newest first, filtered, with whole texts behind each line.
import { el, pairs } from "./dom.js";
import { words } from "./scale.js";

const AT_ONCE = 50;
const find = (id) => document.getElementById(id);

export class Rollouts {
  constructor() {
    this.list = find("rollout-list");
    this.newest = null; // id of the first row shown
    this.asked = 0; // answers to questions that are no longer the newest are dropped
    for (const id of ["family", "sign", "step"]) find(id).addEventListener("change", () => this.load());
    find("filters").addEventListener("submit", (event) => {
      event.preventDefault();
      this.load();
    });
    find("newer").addEventListener("click", () => this.load());
    find("older").addEventListener("click", () => this.load(this.list.lastElementChild.dataset.id));
  }

  async ask(fields) {
    const query = new URLSearchParams(fields);
    for (const id of ["family", "sign", "step"]) if (find(id).value !== "") query.set(id, find(id).value);
    const answer = await fetch(`/rollouts.json?${query}`);
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    this.describe(content);
    return content;
  }

  /** Show the newest rollouts, or append those before an id. */
  async load(before = null) {
    const asked = ++this.asked;
    let content;
    try {
      content = await this.ask(before === null ? { limit: AT_ONCE } : { limit: AT_ONCE, before });
    } catch (error) {
      if (asked === this.asked) find("matching").textContent = error.message;
      return;
    }
    if (asked !== this.asked) return;
    const rows = content.rows.map((row) => rollout(row));
    if (before === null) {
      this.list.replaceChildren(...rows);
      this.newest = content.newest;
      find("newer").hidden = true;
    } else {
      this.list.append(...rows);
      rows[0]?.querySelector("summary").focus();
    }
    find("older").hidden = !content.more || rows.length === 0;
  }

  /** Say what came since; what is being read stays where it is. */
  async poll() {
    const asked = this.asked;
    const content = await this.ask({ limit: 0 });
    if (asked !== this.asked || content.newest === this.newest) return;
    if (this.newest === null || content.newest === null) await this.load();
    else find("newer").hidden = false;
  }

  describe({ matching, families }) {
    find("matching").textContent = `${matching.toLocaleString("en")} ${matching === 1 ? "rollout" : "rollouts"}`;
    const select = find("family");
    const known = [...select.options].map((option) => option.value);
    for (const family of families) if (!known.includes(family)) select.append(el("option", { value: family }, family));
  }
}

function rollout(row) {
  const sign = row.reward > 0 ? "positive" : row.reward < 0 ? "negative" : "zero";
  const kind = [row.family, row.level === null ? "" : `level ${row.level}`].filter(Boolean).join(" ");
  const reward = row.reward === null ? "no reward" : `reward ${words(row.reward)}`;
  const advantage = row.advantage === null ? "" : ` · advantage ${words(row.advantage)}`;
  const length = `${row.tokens.toLocaleString("en")} tokens, ${row.finished ? "finished" : "cut off"}`;
  const summary = el(
    "summary",
    {},
    `step ${row.step.toLocaleString("en")} · ${kind ? `${kind} · ` : ""}`,
    el("span", { class: `reward ${sign}` }, reward),
    `${advantage} · ${length}`,
    el("span", { class: "preview" }, row.text.slice(0, 300)),
  );
  const details = el("details", {}, summary);
  // Made when it is opened: texts can be long, and there are many.
  details.addEventListener("toggle", () => details.children.length > 1 || details.append(body(row)), { once: true });
  return el("li", { "data-id": row.id }, details);
}

function body(row) {
  const node = el("div", { class: "body" });
  if (row.error) node.append(el("p", { class: "problem" }, row.error));
  const parts = Object.entries(row.parts).map(([name, value]) => [name, value === null ? "none" : words(value)]);
  if (parts.length) node.append(el("h3", {}, "Parts of the reward"), pairs(parts));
  const text = (name, content) => node.append(el("h3", {}, name), el("pre", { tabindex: "0", "aria-label": name }, content));
  text("Prompt", row.prompt);
  text("Answer", row.text);
  return node;
}
