// Markdown to DOM nodes, streaming. Model text only ever becomes text nodes: nothing here writes HTML.

import { parseBlocks, splitLines } from "./blocks.js";
import { el, icon } from "./dom.js";
import { parseInline } from "./inline.js";

function inlineNodes(nodes) {
  return nodes.map((node) => {
    switch (node.type) {
      case "text":
        return document.createTextNode(node.text);
      case "br":
        return el("br");
      case "code":
        return el("code", {}, node.text);
      case "math":
        return el("code", { class: "math" }, node.text);
      case "link": {
        const link = el(
          "a",
          { href: node.address, target: "_blank", rel: "noopener noreferrer" },
          ...inlineNodes(node.children),
        );
        if (node.image) link.prepend("image: "); // images are never fetched: the page talks to its own server only
        return link;
      }
      case "strike":
        return el("del", {}, ...inlineNodes(node.children));
      default:
        return el(node.type, {}, ...inlineNodes(node.children));
    }
  });
}

const inline = (text, open) => inlineNodes(parseInline(text, { open }));

function codeBlock({ language, text }) {
  const copy = el(
    "button",
    { type: "button", class: "copy-code", "aria-label": "Copy code" },
    icon("copy"),
    el("span", {}, "Copy"),
  );
  return el(
    "div",
    { class: "code-block" },
    el("div", { class: "code-head" }, el("span", { class: "language" }, language || "text"), copy),
    el("pre", { tabindex: "0" }, el("code", {}, text)),
  );
}

function tableBlock({ header, align, rows, open }) {
  const cell = (tag, text, column, partial) => {
    const attributes = tag === "th" ? { scope: "col" } : {};
    if (align[column]) attributes.class = `align-${align[column]}`;
    return el(tag, attributes, ...inline(text, partial));
  };
  const head = el(
    "thead",
    {},
    el("tr", {}, ...header.map((text, column) => cell("th", text, column, open && !rows.length))),
  );
  const body = rows.map((row, at) =>
    el("tr", {}, ...row.map((text, column) => cell("td", text, column, open && at === rows.length - 1))),
  );
  const table = el("table", {}, head, ...(body.length ? [el("tbody", {}, ...body)] : []));
  return el("div", { class: "table-wrap", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

function listBlock({ start, items, loose }) {
  const list = el(start === null ? "ul" : "ol", start === null || start === 1 ? {} : { start: String(start) });
  for (const { blocks, task } of items) {
    const item = el("li");
    if (task !== null) {
      item.className = "task";
      item.append(
        el("input", {
          type: "checkbox",
          disabled: "",
          "aria-label": task ? "done" : "to do",
          ...(task ? { checked: "" } : {}),
        }),
      );
    }
    for (const block of blocks) {
      if (block.type === "paragraph" && !loose) item.append(...inline(block.text, block.open));
      else item.append(blockNode(block));
    }
    list.append(item);
  }
  return list;
}

function blockNode(block) {
  switch (block.type) {
    case "heading":
      return el(`h${block.level}`, {}, ...inline(block.text, block.open));
    case "rule":
      return el("hr");
    case "code":
      return codeBlock(block);
    case "math":
      return el("pre", { class: "math", tabindex: "0" }, el("code", {}, block.text));
    case "quote":
      return el("blockquote", {}, ...block.blocks.map(blockNode));
    case "list":
      return listBlock(block);
    case "table":
      return tableBlock(block);
    default:
      return el("p", {}, ...inline(block.text, block.open));
  }
}

/** Make `old` equal to `fresh` with as few changes as can be, so that selection, focus and scrolling survive. */
function morph(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE && fresh.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(old.data)) {
      if (fresh.data.length > old.data.length) old.appendData(fresh.data.slice(old.data.length));
    } else old.data = fresh.data;
    return;
  }
  if (old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [had, has] = [[...old.childNodes], [...fresh.childNodes]];
  has.forEach((child, index) => (index < had.length ? morph(had[index], child) : old.append(child)));
  had.slice(has.length).forEach((child) => child.remove());
}

const normalised = (text) => (text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text);

/** Render a whole text at once into a fragment. */
export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...parseBlocks(splitLines(normalised(text))).map(blockNode));
  return fragment;
}

/** A container whose markdown grows. `update` re-renders only what can still change: from the last block on. */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.container.replaceChildren();
    this.settledChars = 0; // everything before this offset of the text is final ...
    this.settledNodes = 0; // ... and is shown by this many child nodes
    this.text = "";
  }

  /** Show `text`, of which what was shown before is a prefix; `done` says that nothing follows. */
  update(text, done = false) {
    const whole = normalised(text);
    if (!whole.startsWith(this.text)) [this.settledChars, this.settledNodes] = [0, 0];
    this.text = whole;
    this.settle(whole);
    const blocks = parseBlocks(splitLines(whole.slice(this.settledChars)), !done);
    const old = [...this.container.childNodes].slice(this.settledNodes);
    blocks.forEach((block, index) => {
      const fresh = blockNode(block);
      if (index < old.length) morph(old[index], fresh);
      else this.container.append(fresh);
    });
    old.slice(blocks.length).forEach((node) => node.remove());
  }

  /** Blocks that complete lines have closed can't change any more: render them for good. */
  settle(whole) {
    const lineEnd = whole.lastIndexOf("\n");
    if (lineEnd <= this.settledChars) return;
    const raw = whole.slice(this.settledChars, lineEnd);
    const lines = splitLines(raw);
    const blocks = parseBlocks(lines);
    if (blocks.length < 2) return;
    const old = [...this.container.childNodes].slice(this.settledNodes);
    blocks.slice(0, -1).forEach((block, index) => {
      const fresh = blockNode(block);
      if (index < old.length) morph(old[index], fresh);
      else this.container.append(fresh);
    });
    this.settledNodes += blocks.length - 1;
    let offset = this.settledChars;
    for (const line of raw.split("\n").slice(0, blocks.at(-1).line)) offset += line.length + 1;
    this.settledChars = offset;
  }
}
