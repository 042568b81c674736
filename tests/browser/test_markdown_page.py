"""markdown.js in the browser: a table of cases, CommonMark's reference, hostile text, and streaming in any pieces."""

from __future__ import annotations

import random
import re
from typing import Any

from markdown_it import MarkdownIt

RENDER = """async (texts) => {
  const { renderMarkdown } = await import("/page/markdown.js");
  return texts.map((text) => {
    const box = document.createElement("div");
    box.append(renderMarkdown(text));
    for (const head of box.querySelectorAll(".code-head, .table-wrap")) {
      if (head.className === "table-wrap") head.replaceWith(...head.childNodes);
      else head.replaceWith(head.querySelector(".language"));
    }
    return box.innerHTML
      .replace(/ tabindex="0"/g, "")
      .replace(/ target="_blank" rel="noopener noreferrer"/g, "");
  });
}"""

CODE = '<div class="code-block"><span class="language">{}</span><pre><code>{}</code></pre></div>'

CASES = [
    # what a chat needs and CommonMark has no word on
    ("a\nb", "<p>a<br>b</p>"),
    ("text\n---\nmore", "<p>text</p><hr><p>more</p>"),
    ("- [x] done\n- [ ] open", None),
    ("```python\nx = 1\n\n  y\n```\nend", CODE.format("python", "x = 1\n\n  y") + "<p>end</p>"),
    ("```\nno end *yet*\n", CODE.format("text", "no end *yet*\n")),
    ("~~~js\n```\n~~~", CODE.format("js", "```")),
    ("1. one\n  - two\n2. three", "<ol><li>one<ul><li>two</li></ul></li><li>three</li></ol>"),
    ("1. a\n```sh\nls\n```", "<ol><li>a</li></ol>" + CODE.format("sh", "ls")),
    ("1. a\n   ```sh\n   ls\n   ```\n2. b", f"<ol><li>a{CODE.format('sh', 'ls')}</li><li>b</li></ol>"),
    ("    four spaces", "<p>four spaces</p>"),
    # Chinese punctuation beside emphasis
    ("**重点：**文字", "<p><strong>重点：</strong>文字</p>"),
    ("这是**“引用”**的", "<p>这是<strong>“引用”</strong>的</p>"),
    # formulas are shown as they are
    (r"so \(a_1 * b_1 * c\) is", '<p>so <code class="math">a_1 * b_1 * c</code> is</p>'),
    ("x\n\\[\na^2 * b\n\\]\ny", '<p>x</p><pre class="math"><code>a^2 * b</code></pre><p>y</p>'),
    ("$$x_1$$", '<pre class="math"><code>x_1</code></pre>'),
    ("it is $5 and $6 now", "<p>it is $5 and $6 now</p>"),
    ("it is $x_i$ now", '<p>it is <code class="math">x_i</code> now</p>'),
    # addresses
    ("see https://a.org/x_(y), ok", '<p>see <a href="https://a.org/x_(y)">https://a.org/x_(y)</a>, ok</p>'),
    ("[m](mailto:a@b.org)", '<p><a href="mailto:a@b.org">m</a></p>'),
    ("<a@b.org>", '<p><a href="mailto:a@b.org">a@b.org</a></p>'),
    ("![alt](https://a.org/i.png)", '<p><a href="https://a.org/i.png">image: alt</a></p>'),
    ("[rel](/v1/models)", "<p>[rel](/v1/models)</p>"),
    ("[ftp](ftp://a.org)", "<p>[ftp](ftp://a.org)</p>"),
    # markup stays text
    ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>"),
    ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
    ("a<br>b", "<p>a<br>b</p>"),
    ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
    ("[x](JaVaScRiPt:alert(1))", "<p>[x](JaVaScRiPt:alert(1))</p>"),
    ("[x](&#106;avascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
    ("[x](data:text/html,hi)", "<p>[x](data:text/html,hi)</p>"),
    ("<javascript:alert(1)>", "<p>&lt;javascript:alert(1)&gt;</p>"),
    ('[x](https://a.org/"onmouseover=alert(1))', '<p><a href="https://a.org/%22onmouseover=alert(1)">x</a></p>'),
    ('```"><img src=x onerror=alert(1)>\ny\n```', CODE.format('"&gt;&lt;img', "y")),
    ("", ""),
    ("\n\n  \n", ""),
]

# where CommonMark (with tables, strikethrough, and line breaks kept) is followed to the letter
REFERENCE = """\

# One|## Two ##|### *Three*|####### seven|#tag|a *b* c|a **b** c|***both***|**a *b* c**|*a **b** c*
_a_ __b__ a_b_c
2 * 3 * 4|5*3*2|** no **|a ~~gone~~ b|`code`|`` a ` b ``|` a `|`a|\\*not\\*|*open|**open
[a](https://x.org)|[a] (b)
[a](https://x.org "title")|[*a*](https://x.org)|*[a*](https://x.org)|[a [b] c](https://x.org)
&amp; &lt; &#42; &bogus;
> quote|> a\\n> b|> a\\nlazy|> a\\n\\n> b|> # h\\n> text|> > deep|> - a\\n> - b|***|---|* * *
- a\\n- b|- a\\n\\n- b|* a\\n+ b
1. a\\n2. b|7. a\\n8. b|3) a\\n4) b|- a\\n  - b\\n    - c|- a\\n\\n  more|- a\\nlazy|- a\\n\\nafter
1. a\\n\\n   b\\n2. c|-\\n- b
text\\n- a|text\\n2. b|text\\n1. b|text\\n# h|a\\n\\nb|a  \\nb|a\\\\\\nb|- # h\\n- b|- > q\\n- ***
1. - a\\n   - b|a \\* b|\\# no
<https://x.org/a?b=c>|***a* b**|***a** b*|*a*b*|**a**b**|a**b**c|__a__b|*(a)*|"*a*"|*a*.
~~a **b** c~~|a\\\\|\\|"""

TABLES = [
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "a | b\n--|--\n1 | 2\n\nafter",
    "| a | b | c |\n|:--|:-:|--:|\n| 1 | 2 |\n| 1 | 2 | 3 | 4 |",
    "| `a\\|b` | **c** |\n|---|---|\n| x | y |\ntext",
    "| a | b |\n|---|\n| 1 | 2 |",
    "intro\n\n| a |\n|---|\n| 1 |\n> quote",
]


def reference(text: str) -> str:
    """What markdown-it-py renders, in the spelling of a browser's innerHTML."""
    parser = MarkdownIt("commonmark", {"breaks": True, "html": False}).enable(["table", "strikethrough"])
    html = str(parser.render(text))
    html = html.replace("<br />", "<br>").replace("<hr />", "<hr>").replace("&quot;", '"')
    html = re.sub(r"<(/?)s>", r"<\1del>", html)
    html = re.sub(r' title="[^"]*"', "", html)
    html = re.sub(r' style="text-align:(\w+)"', r' class="align-\1"', html)
    html = html.replace("<th>", '<th scope="col">').replace("<th class", '<th scope="col" class')
    html = html.replace('https://x.org"', 'https://x.org/"')
    return re.sub(r"(?<=>)\n+|\n+(?=<)", "", html)


def test_cases(module_page: Any) -> None:
    got = module_page.evaluate(RENDER, [text for text, _ in CASES])
    wrong = [
        (text, html, want) for (text, want), html in zip(CASES, got, strict=True) if want is not None and html != want
    ]
    assert wrong == []


def test_task_list(module_page: Any) -> None:
    (html,) = module_page.evaluate(RENDER, ["- [x] done\n- [ ] open"])
    assert html.count('type="checkbox"') == 2
    assert html.count("checked") == 1
    assert html.count("disabled") == 2


def test_equals_the_commonmark_reference(module_page: Any) -> None:
    texts = [
        piece.replace("\\n", "\n").replace("\\\\", "\\") for line in REFERENCE.splitlines() for piece in line.split("|")
    ]
    texts += TABLES
    got = module_page.evaluate(RENDER, texts)
    wrong = [(text, html, reference(text)) for text, html in zip(texts, got, strict=True) if html != reference(text)]
    assert wrong == []
    assert len(texts) > 80


HOSTILE = {
    "emphasis": "*a _b " * 5000,
    "closers": "a* b_ " * 5000,
    "star run": "*" * 20000 + "x" + "*" * 20000,
    "brackets": "[" * 20000,
    "links": "[a](" * 8000,
    "open parens": "[a](" + "(x" * 10000 + " y",
    "quotes": "> " * 5000 + "x",
    "nested list": "\n".join(" " * (2 * depth) + "- x" for depth in range(400)),
    "backticks": " ".join("`" * length for length in range(1, 250)),
    "formulas": "\\(" * 8000,
    "pipes": "|" * 20000 + "\n" + "|-" * 9999 + "|",
    "entities": "&#1" * 10000,
    "parens after an address": "https://a.org/" + ")" * 20000,
    "blank": "x" + " " * 20000 + "y",
}


def test_hostile_text_costs_little(module_page: Any) -> None:
    found = module_page.evaluate(
        """async (texts) => {
          const { MarkdownView } = await import("/page/markdown.js");
          return texts.map(([name, text]) => {
            const box = document.createElement("div");
            const began = performance.now();
            const view = new MarkdownView(box);
            view.update(text.slice(0, text.length / 2));
            view.update(text, true);
            const seconds = (performance.now() - began) / 1000;
            let depth = 0;
            const walker = document.createTreeWalker(box);
            while (walker.nextNode()) {
              let level = 0;
              for (let node = walker.currentNode; node !== box; node = node.parentNode) level++;
              depth = Math.max(depth, level);
            }
            return [name, seconds, depth];
          });
        }""",
        list(HOSTILE.items()),
    )
    assert [name for name, seconds, _ in found if seconds > 1.5] == []
    assert [name for name, _, depth in found if depth > 120] == []


DOCUMENT = """# Title with `code`

A paragraph with **bold**, *italic*, ~~gone~~ and a [link](https://example.org/a_b).
Second line with `code` and \\(x_1\\).

1. first
   - nested **one**
   - nested two

   ```python
   print("*not* bold")
   ```
2. second

| name | value |
|:-----|------:|
| `a`  | **1** |
| b    | 2     |

> quoted *text*
> goes on

---

```js
const a = `x`;

if (a) {}
```
- [ ] task
* other
7. seven
\\[
a * b
\\]
The end, with 3 * 4 * 5 and 2_000_000.
"""

STREAM = """async ([text, cuts]) => {
  const { MarkdownView, renderMarkdown } = await import("/page/markdown.js");
  const whole = document.createElement("div");
  whole.append(renderMarkdown(text));
  return cuts.map((ends) => {
    const box = document.createElement("div");
    const view = new MarkdownView(box);
    for (const end of ends) view.update(text.slice(0, end));
    view.update(text, true);
    return box.innerHTML === whole.innerHTML ? "" : box.innerHTML + "\\n!==\\n" + whole.innerHTML;
  });
}"""

PIECES = [
    *"*_~`[](){}<>#|-+:.!$\\ \n\n\n\n1ab漢",
    "**",
    "```",
    "\n- ",
    "\n1. ",
    "\n> ",
    "\n|a|b|",
    "\n|-|-|",
    "  ",
    "\n\n",
    "](https://a.b)",
    "\\[",
    "\t",
    "---",
    "~~",
    "\r\n",
]


def test_streaming_ends_in_the_same_page(module_page: Any) -> None:
    chance = random.Random(4)
    every = list(range(len(DOCUMENT) + 1))
    cuts = [every, *(sorted(chance.sample(every, chance.randrange(1, 60))) for _ in range(60))]
    assert [wrong for wrong in module_page.evaluate(STREAM, [DOCUMENT, cuts]) if wrong] == []


def test_streaming_of_random_text_ends_in_the_same_page(module_page: Any) -> None:
    chance = random.Random(7)
    texts = ["".join(chance.choices(PIECES, k=chance.randrange(5, 70))) for _ in range(400)]
    wrong = module_page.evaluate(
        f"""async (texts) => {{
          const stream = {STREAM};
          const out = [];
          for (const text of texts) {{
            const [result] = await stream([text, [[...Array(text.length + 1).keys()]]]);
            if (result) out.push([text, result]);
          }}
          return out;
        }}""",
        texts,
    )
    assert wrong == []


def test_streaming_shows_no_half_written_marks(module_page: Any) -> None:
    text = DOCUMENT.partition("```js")[0].replace("*not* ", "")
    shown = module_page.evaluate(
        """async (text) => {
          const { MarkdownView } = await import("/page/markdown.js");
          const box = document.createElement("div");
          const view = new MarkdownView(box);
          return [...Array(text.length + 1).keys()].map((end) => (view.update(text.slice(0, end)), box.textContent));
        }""",
        text,
    )
    marks = [(end, part) for end, part in enumerate(shown) if re.search(r"\*\*|~~|`|\]\(|\|-|^\||#|>", part)]
    assert marks == []


def test_streaming_keeps_settled_nodes(module_page: Any) -> None:
    """A finished block is never drawn again, and the last one is changed in place."""
    kept = module_page.evaluate(
        """async (text) => {
          const { MarkdownView } = await import("/page/markdown.js");
          const box = document.createElement("div");
          const view = new MarkdownView(box);
          view.update(text);
          const nodes = [...box.childNodes];
          let changes = 0;
          const watch = new MutationObserver((records) => (changes += records.length));
          const what = { subtree: true, childList: true, characterData: true };
          nodes.slice(0, -1).forEach((node) => watch.observe(node, what));
          for (let n = 1; n <= 50; n++) view.update(text + " more".repeat(n));
          watch.takeRecords().forEach(() => changes++);
          return [nodes.every((node) => node.isConnected === box.isConnected && node.parentNode === box), changes];
        }""",
        DOCUMENT + "\n\nlast paragraph",
    )
    assert kept == [True, 0]
