// Inline markdown: text -> a small tree of plain objects (never HTML). CommonMark's rules for emphasis, made friendly
// to Chinese/Japanese/Korean punctuation; raw HTML stays text; only http, https and mailto addresses become links.
//
// `open` says that more text will follow (streaming): unclosed emphasis and code then reach to the end, and an address
// that is still being written stays hidden, so that nothing flickers.

const SPECIAL = /[\\`*_~[!<&$\n]|https?:\/\//g;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const CJK = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303f\uff00-\uffef]/u;
const DESTINATION =
  /\([ \n]*(?:<([^<>\n]*)>|([^\s()<>]*(?:\([^\s()]*\)[^\s()]*)*))(?:[ \n]+(?:"[^"]*"|'[^']*'|\([^()]*\)))?[ \n]*\)/y;
const UNFINISHED_DESTINATION = /\((?:[^\s()]|\([^\s()]*\))*(?:\([^\s()]*)?$/y;
const BARE_ADDRESS = /https?:\/\/[^\s<>"`*|\\\u3000-\u303f\uff00-\uffef]+/y;
const ANGLE_ADDRESS = /<((?:https?:\/\/|mailto:)[^\s<>]+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+)>/iy;
const LINE_BREAK_TAG = /<br ?\/?>/iy;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(amp|lt|gt|quot|apos|nbsp));/y;
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const MAX_OPEN = 32; // nesting of emphasis: keeps hostile input linear, and the tree of nodes shallow

/** The address if it may be clicked, else null. Relative addresses are refused: they would point into this page. */
export function safeAddress(address) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(address)) return null;
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function sticky(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Where every `[` that has a partner finds its `]`; brackets in code and escaped ones don't count. */
function matchBrackets(text, codeEnd) {
  const partner = new Map();
  const stack = [];
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === "\\") at++;
    else if (char === "`") at = (codeEnd(at) ?? at + runLength(text, at)) - 1;
    else if (char === "[") stack.push(at);
    else if (char === "]" && stack.length) partner.set(stack.pop(), at);
  }
  return partner;
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end++;
  return end - at;
}

/** A function from the start of a run of backticks to the end of its code span (null: no such span). */
function codeSpans(text) {
  let runs = null; // run length -> ascending starts, built at the first backtick
  return (at) => {
    if (!runs) {
      runs = new Map();
      for (const match of text.matchAll(/`+/g)) {
        const starts = runs.get(match[0].length) ?? [];
        starts.push(match.index);
        runs.set(match[0].length, starts);
      }
    }
    const length = runLength(text, at);
    const starts = runs.get(length) ?? [];
    let low = 0;
    let high = starts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (starts[middle] > at) high = middle;
      else low = middle + 1;
    }
    return low < starts.length ? starts[low] + length : null;
  };
}

function codeText(raw) {
  const text = raw.replace(/\n/g, " ");
  return /^ .*[^ ].* $|^ [^ ] $/.test(text) ? text.slice(1, -1) : text;
}

/** The end of a formula that opens at `at` (0: none opens), and its source without the marks. */
function formula(text, at, open) {
  const two = text.slice(at, at + 2);
  const close = { "\\(": "\\)", "\\[": "\\]", $$: "$$" }[two];
  if (close) {
    const end = text.indexOf(close, at + 2);
    if (end > at + 2) return [end + 2, text.slice(at + 2, end)];
    if (open && end < 0 && text.length > at + 2) return [text.length, text.slice(at + 2)];
  } else if (text[at] === "$" && /[^\s$]/.test(text[at + 1] ?? "")) {
    const match = sticky(/\$([^$\n]*[^\s$\\])\$(?!\d)/y, text, at);
    if (match) return [at + match[0].length, match[1]];
  }
  return [0, ""];
}

class Frames {
  constructor() {
    this.stack = [{ mark: "", count: 0, children: [] }];
  }

  get top() {
    return this.stack[this.stack.length - 1];
  }

  add(node) {
    const { children } = this.top;
    const last = children[children.length - 1];
    if (node.type === "text" && last?.type === "text") last.text += node.text;
    else if (node.type !== "text" || node.text) children.push(node);
  }

  /** The topmost frame turns out to be no emphasis: its marks become text. */
  dissolve() {
    const frame = this.stack.pop();
    this.add({ type: "text", text: frame.mark.repeat(frame.count) });
    for (const child of frame.children) this.add(child);
  }

  /** Spend as much of a closing run as finds an opener; the count that is left. */
  close(mark, count, both) {
    while (count > 0) {
      let index = this.stack.length - 1;
      for (; index > 0; index--) {
        const frame = this.stack[index];
        // CommonMark's rule of three, for runs that could both open and close
        const odd = (both || frame.both) && (frame.run + count) % 3 === 0 && (frame.run % 3 || count % 3);
        if (frame.mark === mark && !odd && (mark !== "~" || frame.count === count)) break;
      }
      if (index < 1) return count;
      while (this.stack.length - 1 > index) this.dissolve();
      const frame = this.top;
      const used = frame.count >= 2 && count >= 2 ? 2 : 1;
      const type = mark === "~" ? "strike" : used === 2 ? "strong" : "em";
      const node = { type, children: frame.children };
      frame.count -= used;
      count -= used;
      if (frame.count === 0) {
        this.stack.pop();
        this.add(node);
      } else {
        frame.children = [node];
      }
    }
    return 0;
  }

  /** Everything that is still open becomes text, or (streaming) emphasis up to the end. */
  finish(open) {
    while (this.stack.length > 1) {
      const frame = this.top;
      const certain = frame.count === 2 || (frame.count <= 3 && !frame.both);
      if (!open || !certain || !frame.children.length) {
        this.dissolve();
        continue;
      }
      this.stack.pop();
      let children = frame.children;
      if (frame.mark === "~") children = [{ type: "strike", children }];
      else {
        if (frame.count % 2) children = [{ type: "em", children }];
        if (frame.count > 1) children = [{ type: "strong", children }];
      }
      this.add(children[0]);
    }
    return this.top.children;
  }
}

function flanking(text, at, end) {
  const width = at > 1 && /[\udc00-\udfff]/.test(text[at - 1]) ? 2 : 1;
  const before = at === 0 ? " " : String.fromCodePoint(text.codePointAt(at - width));
  const after = end >= text.length ? " " : String.fromCodePoint(text.codePointAt(end));
  const mark = text[at];
  const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)];
  const [pointBefore, pointAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
  const left = !spaceAfter && (!pointAfter || spaceBefore || pointBefore || CJK.test(before));
  const right = !spaceBefore && (!pointBefore || spaceAfter || pointAfter || CJK.test(after));
  if (mark === "_") return [left && (!right || pointBefore), right && (!left || pointAfter), left && right];
  return [left, right, left && right];
}

/** Parse one run of text (a paragraph, a heading, a cell) into nodes: text, code, math, br, em, strong, strike, link. */
export function parseInline(source, { open = false, links = true, depth = 0 } = {}) {
  const text = open ? source.replace(/[*_~`]+$/, "") : source;
  const frames = new Frames();
  const codeEnd = codeSpans(text);
  let partner = null;
  let at = 0;
  const plain = (piece) => frames.add({ type: "text", text: piece });

  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text);
    if (!next) break;
    if (next.index > at) plain(text.slice(at, next.index));
    at = next.index;
    const char = text[at];

    if (char === "\n") {
      const last = frames.top.children.at(-1);
      if (last?.type === "text") last.text = last.text.trimEnd();
      frames.add({ type: "br" });
      at += 1;
      while (text[at] === " ") at++;
    } else if (char === "\\" || char === "$") {
      const [end, tex] = formula(text, at, open);
      if (end) {
        frames.add({ type: "math", text: tex.trim() });
        at = end;
      } else if (char === "\\" && text[at + 1] === "\n") {
        at += 1; // the line break itself follows
      } else if (char === "\\" && ESCAPABLE.test(text[at + 1] ?? "")) {
        plain(text[at + 1]);
        at += 2;
      } else {
        plain(char);
        at += 1;
      }
    } else if (char === "`") {
      const length = runLength(text, at);
      const end = codeEnd(at);
      if (end) {
        frames.add({ type: "code", text: codeText(text.slice(at + length, end - length)) });
        at = end;
      } else if (open) {
        frames.add({ type: "code", text: text.slice(at + length).replace(/\n/g, " ") });
        at = text.length;
      } else {
        plain(text.slice(at, at + length));
        at += length;
      }
    } else if (char === "*" || char === "_" || char === "~") {
      const count = runLength(text, at);
      const [opens, closes, both] = flanking(text, at, at + count);
      if ((char === "~" && count !== 2) || count > MAX_OPEN) {
        plain(text.slice(at, at + count));
      } else {
        const left = closes ? frames.close(char, count, both) : count;
        if (left && opens && frames.stack.length <= MAX_OPEN)
          frames.stack.push({ mark: char, count: left, run: count, both, children: [] });
        else if (left) plain(char.repeat(left));
      }
      at += count;
    } else if (char === "[" || (char === "!" && text[at + 1] === "[")) {
      const bracket = char === "!" ? at + 1 : at;
      partner ??= matchBrackets(text, codeEnd);
      const end = partner.get(bracket);
      const found = links && depth < 8 && end !== undefined ? sticky(DESTINATION, text, end + 1) : null;
      const address = found && safeAddress(found[1] ?? found[2] ?? "");
      const unfinished = open && links && end !== undefined && !found && sticky(UNFINISHED_DESTINATION, text, end + 1);
      if (address || unfinished) {
        const inside = text.slice(bracket + 1, end);
        const children = inside.trim()
          ? parseInline(inside, { links: false, depth: depth + 1 })
          : [{ type: "text", text: char === "!" ? "image" : (address ?? "") }];
        if (address) frames.add({ type: "link", address, image: char === "!", children });
        else for (const child of children) frames.add(child);
        at = address ? end + 1 + found[0].length : text.length;
      } else {
        plain(text.slice(at, bracket + 1));
        at = bracket + 1;
      }
    } else if (char === "<") {
      const lineBreak = sticky(LINE_BREAK_TAG, text, at);
      const angle = links && !lineBreak ? sticky(ANGLE_ADDRESS, text, at) : null;
      const address = angle && safeAddress(/^(?:https?:|mailto:)/i.test(angle[1]) ? angle[1] : `mailto:${angle[1]}`);
      if (lineBreak) frames.add({ type: "br" });
      else if (address) frames.add({ type: "link", address, children: [{ type: "text", text: angle[1] }] });
      else plain("<");
      at += lineBreak ? lineBreak[0].length : address ? angle[0].length : 1;
    } else if (char === "&") {
      const entity = sticky(ENTITY, text, at);
      plain(
        entity ? (NAMED[entity[3]] ?? character(entity[1] ? parseInt(entity[1], 10) : parseInt(entity[2], 16))) : "&",
      );
      at += entity ? entity[0].length : 1;
    } else if (next[0].length > 1) {
      const match = links && !/\w/.test(text[at - 1] ?? "") ? sticky(BARE_ADDRESS, text, at) : null;
      const shown = match ? trimAddress(match[0]) : "";
      const address = safeAddress(shown);
      if (address) frames.add({ type: "link", address, children: [{ type: "text", text: shown }] });
      else plain(next[0]);
      at += address ? shown.length : next[0].length;
    } else {
      plain(char);
      at += 1;
    }
  }
  plain(text.slice(at));
  return frames.finish(open);
}

/** The character of a numeric entity; what is none becomes the replacement character. */
function character(code) {
  const valid = code > 0 && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
  return valid ? String.fromCodePoint(code) : "\ufffd";
}

/** A bare address without the punctuation of the sentence around it. */
function trimAddress(address) {
  let unopened = address.split(")").length - address.split("(").length;
  let end = address.length;
  for (; end > 0; end--) {
    const last = address[end - 1];
    if (last === ")" && unopened > 0) unopened--;
    else if (!/[.,;:!?'_~\]]/.test(last)) break;
  }
  return address.slice(0, end);
}
