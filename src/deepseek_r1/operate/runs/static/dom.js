// Small makers of DOM nodes. Texts become text nodes: nothing of a run is ever read as HTML.

/** An element with attributes and children (nodes or text). */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** An SVG element with attributes and a text. */
export function svg(tag, attributes = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

/** A table of names and values. */
export function pairs(rows) {
  return el("table", {}, ...rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))));
}

/** A table under a header, in a box that scrolls where the table is too wide. */
export function table(header, rows) {
  const head = el("thead", {}, el("tr", {}, ...header.map((name) => el("th", { scope: "col" }, name))));
  const body = el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell)))));
  return el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Table" }, el("table", {}, head, body));
}
