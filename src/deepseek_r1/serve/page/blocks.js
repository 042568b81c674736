// Block markdown: lines -> a list of plain objects (heading, paragraph, list, table, quote, code, math, rule).
//
// The parser reads line by line and never goes back behind the block it is in. That is what makes streaming cheap:
// once a later block has begun on a complete line, all earlier blocks are final (see markdown.js). Two choices differ
// from CommonMark on purpose, because of how models write: text above `---` is no heading, and four spaces make no code.

const HEADING = /^ *(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ *([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const FENCE = /^( *)(`{3,}|~{3,})[ \t]*([^`]*)$/;
const QUOTE = /^ *> ?/;
const ITEM = /^( *)([-*+]|(\d{1,9})([.)]))(?:([ \t]+)(.*)|)$/;
const DELIMITER_ROW = /^ *\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const UNFINISHED_DELIMITER_ROW = /^ *\|?[ \t:|-]*$/;
const TASK = /^\[([ xX])\] +/;
/** A last line that may still become nearly anything: not shown while more text is coming. */
const UNDECIDED = /^\s*(?:#{1,6}|[-+]|--|[*_]{1,3}|\d{1,9}[.)]?|>|`{1,2}|~{1,2}|\\|\$|!?\[)$/;
const MAX_DEPTH = 16;

const isBlank = (line) => !/\S/.test(line);
const indentOf = (line) => line.length - line.trimStart().length;
const dedent = (line, width) => line.slice(Math.min(indentOf(line), width));

/** Split into lines, with tabs at the start of a line widened to stops of four columns. */
export function splitLines(text) {
  const widen = (space) => [...space].reduce((out, c) => out + (c === "\t" ? " ".repeat(4 - (out.length % 4)) : c), "");
  return text.split("\n").map((line) => (/^ *\t/.test(line) ? line.replace(/^[ \t]+/, widen) : line));
}

function cells(row) {
  const inner = row
    .trim()
    .replace(/^\|/, "")
    .replace(/(^|[^\\])\|$/, "$1");
  return (inner.match(/(?:^|\|)(?:\\.|[^|\\])*\\?/gs) ?? [""]).map((cell, index) =>
    (index || cell.startsWith("|") ? cell.slice(1) : cell).trim().replace(/\\\|/g, "|"),
  );
}

/** 0: no table begins here; 1: only its header is there so far (streaming); 2: header and delimiter row. */
function tableAt(lines, at, open) {
  const header = lines[at];
  if (!header.includes("|")) return 0;
  const second = lines[at + 1];
  if (
    second !== undefined &&
    second.includes("-") &&
    DELIMITER_ROW.test(second) &&
    (second.includes("|") || second.includes(":"))
  ) {
    if (cells(header).length === cells(second).length) return 2;
  }
  const undecided = second === undefined || (at + 2 === lines.length && UNFINISHED_DELIMITER_ROW.test(second));
  return open && undecided && /^ *\|/.test(header) ? 1 : 0;
}

/** A displayed formula that begins on this line (null: none): its closing mark and what follows the opening one. */
function mathOpens(line) {
  const match = /^ *(\\\[|\$\$)(.*)$/.exec(line);
  if (!match) return null;
  const close = match[1] === "$$" ? "$$" : "\\]";
  const end = match[2].indexOf(close);
  if (end >= 0 && !isBlank(match[2].slice(end + 2))) return null;
  return { close, rest: match[2], done: end >= 0 };
}

function interruptsParagraph(lines, at, open) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || mathOpens(line)) return true;
  const item = ITEM.exec(line);
  if (item && item[6] && !isBlank(item[6]) && (!item[3] || item[3] === "1")) return true;
  return tableAt(lines, at, open) > 0;
}

function takeCode(lines, at, open) {
  const [, space, fence, info] = FENCE.exec(lines[at]);
  const close = new RegExp(`^ *${fence[0] === "`" ? "`" : "~"}{${fence.length},}[ \\t]*$`);
  const body = [];
  let next = at + 1;
  while (next < lines.length && !close.test(lines[next])) body.push(dedent(lines[next++], space.length));
  const closed = next < lines.length;
  if (!closed && open && body.length && new RegExp(`^ *${fence[0]}{1,${fence.length - 1}}$`).test(body.at(-1)))
    body.pop();
  const language = info
    .trim()
    .split(/\s+/)[0]
    .replace(/^\{?\.?|\}$/g, "");
  return [{ type: "code", language, text: body.join("\n") }, closed ? next + 1 : next];
}

function takeMath(lines, at, { close, rest, done }) {
  const body = [done ? rest.slice(0, rest.indexOf(close)) : rest];
  let next = at + 1;
  while (!done && next < lines.length && !isBlank(lines[next])) {
    const line = lines[next++];
    const end = line.indexOf(close);
    body.push(end < 0 ? line : line.slice(0, end));
    if (end >= 0) break;
  }
  return [{ type: "math", text: body.join("\n").trim() }, next];
}

function takeTable(lines, at, open) {
  const header = cells(lines[at]);
  const delimiters = lines[at + 1] !== undefined ? cells(lines[at + 1]) : [];
  const align = header.map((_, index) => {
    const [left, right] = [delimiters[index]?.startsWith(":"), delimiters[index]?.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : "";
  });
  const rows = [];
  let next = Math.min(at + 2, lines.length);
  while (next < lines.length && !isBlank(lines[next])) {
    const line = lines[next];
    if (
      FENCE.test(line) ||
      HEADING.test(line) ||
      RULE.test(line) ||
      QUOTE.test(line) ||
      (ITEM.test(line) && !line.includes("|"))
    )
      break;
    const row = cells(line).slice(0, header.length);
    rows.push([...row, ...Array(header.length - row.length).fill("")]);
    next++;
  }
  return [{ type: "table", header, align, rows, open: open && next === lines.length }, next];
}

function takeQuote(lines, at, open, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length; next++) {
    const line = lines[next];
    if (QUOTE.test(line)) inner.push(line.replace(QUOTE, ""));
    else if (
      isBlank(line) ||
      isBlank(inner.at(-1)) ||
      interruptsParagraph(lines, next, false) ||
      FENCE.test(inner.at(-1))
    )
      break;
    else inner.push(line.trimStart());
  }
  return [{ type: "quote", blocks: parseBlocks(inner, open && next === lines.length, depth + 1) }, next];
}

function takeList(lines, at, open, depth) {
  const first = ITEM.exec(lines[at]);
  const kind = first[4] ?? first[2];
  const base = first[1].length;
  const items = [];
  let [next, width, gap, fence, loose] = [at, 0, false, null, false];
  for (; next < lines.length; next++) {
    const line = lines[next];
    const current = items.at(-1);
    if (isBlank(line)) {
      current.push("");
      gap = !fence;
      continue;
    }
    const indent = indentOf(line);
    const marker = fence ? null : ITEM.exec(line);
    if (marker && marker[1].length < base + 2) {
      if ((marker[4] ?? marker[2]) !== kind || (RULE.test(line) && next > at)) break;
      loose ||= gap;
      const space = marker[5]?.length ?? 1;
      width = marker[1].length + marker[2].length + (space > 4 ? 1 : space);
      items.push([" ".repeat(space > 4 ? space - 1 : 0) + (marker[6] ?? "")]);
    } else if (fence || indent >= Math.min(width, base + 2)) {
      current.push(dedent(line, width));
    } else if (gap || interruptsParagraph(lines, next, open)) {
      break;
    } else {
      current.push(line.trimStart());
    }
    gap = false;
    const edge = FENCE.exec(items.at(-1).at(-1));
    if (fence && edge && edge[2].startsWith(fence) && !edge[3]) fence = null;
    else if (!fence && edge) fence = edge[2];
  }
  while (isBlank(lines[next - 1])) next--; // the blank lines after a list are not its own
  const reachesEnd = lines.slice(next).every(isBlank);
  const parsed = items.map((inner, index) => {
    const last = index === items.length - 1;
    if (last) while (inner.length > 1 && isBlank(inner.at(-1))) inner.pop();
    const task = TASK.exec(inner[0]);
    if (task) inner[0] = inner[0].slice(task[0].length);
    const blocks = parseBlocks(inner, open && last && reachesEnd, depth + 1);
    loose ||= blocks.some((block, order) => order > 0 && block.gap);
    return { blocks, task: task ? task[1] !== " " : null };
  });
  return [{ type: "list", start: first[3] === undefined ? null : Number(first[3]), items: parsed, loose }, next];
}

/** Parse lines into blocks. Each has `line` (where it begins) and `gap` (whether a blank line is above it). */
export function parseBlocks(lines, open = false, depth = 0) {
  const blocks = [];
  let [at, gap] = [0, false];
  while (at < lines.length) {
    const line = lines[at];
    if (isBlank(line)) {
      gap = true;
      at++;
      continue;
    }
    if (open && at === lines.length - 1 && UNDECIDED.test(line)) break;
    let block;
    let next;
    const heading = HEADING.exec(line);
    const math = mathOpens(line);
    if (FENCE.test(line)) [block, next] = takeCode(lines, at, open);
    else if (heading) {
      const text = (heading[2] ?? "")
        .trim()
        .replace(/(^|[ \t])#+$/, "")
        .trimEnd();
      [block, next] = [
        { type: "heading", level: heading[1].length, text, open: open && at + 1 === lines.length },
        at + 1,
      ];
    } else if (RULE.test(line)) [block, next] = [{ type: "rule" }, at + 1];
    else if (math) [block, next] = takeMath(lines, at, math);
    else if (QUOTE.test(line) && depth < MAX_DEPTH) [block, next] = takeQuote(lines, at, open, depth);
    else if (ITEM.test(line) && depth < MAX_DEPTH) [block, next] = takeList(lines, at, open, depth);
    else if (tableAt(lines, at, open)) [block, next] = takeTable(lines, at, open);
    else {
      next = at + 1;
      while (next < lines.length && !isBlank(lines[next]) && !interruptsParagraph(lines, next, open)) next++;
      let end = next;
      if (open && next === lines.length && next > at + 1 && UNDECIDED.test(lines[next - 1])) end--;
      const text = lines
        .slice(at, end)
        .map((part) => part.trimStart())
        .join("\n");
      block = { type: "paragraph", text: text.trimEnd(), open: open && next === lines.length };
    }
    blocks.push(Object.assign(block, { line: at, gap }));
    gap = false;
    at = next;
  }
  return blocks;
}
