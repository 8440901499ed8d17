"""Markdown becomes messages that Telegram takes, and no word of it is lost."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rolecall.frontends.telegram.markdown.entities import ENTITY_BYTES, TextPart, joined, utf16_len
from rolecall.frontends.telegram.markdown.render import message_entities, plain, render, render_growing
from rolecall.frontends.telegram.markdown.syntax import TAGS
from tests.telegram.entities import accepted, size

EXAMPLES = int(os.environ.get("ROLECALL_MARKDOWN_EXAMPLES", "0"))
"""The proof sets it, and has the machine for itself."""
many = settings(
    max_examples=EXAMPLES or 60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def marked(part: TextPart, kind: str) -> list[str]:
    raw = part.text.encode("utf-16-le")
    spans = [(one.offset * 2, (one.offset + one.length) * 2) for one in part.entities if one.kind == kind]
    return [raw[first:last].decode("utf-16-le") for first, last in spans]


def one(markdown: str) -> TextPart:
    (part,) = render(markdown)
    return part


def check(part: TextPart, limit: int = 4096) -> None:
    """Telegram takes the part and keeps it as it is."""
    given = [message.to_dict() for message in message_entities(part)]
    text, entities = accepted(part.text, given)
    assert text == part.text
    shape = [(entity["type"], entity["offset"], entity["length"]) for entity in entities]
    assert sorted(shape) == sorted((entity.kind, entity.offset, entity.length) for entity in part.entities)
    assert utf16_len(part.text) <= limit and len(part.entities) <= 100
    assert sum(map(size, given)) <= ENTITY_BYTES


# What is lost must not be: every letter, digit and emoji of the source comes in order, but for these.

SYNTAX = (
    r"(?m)^[ \t>*+\x00-]*(?:\d+[.)][ \t]+)*(?:`{3,}|~{3,})[^\n]*$",  # fences with their language and what is behind it
    r"(?m)^[ \t>*+-]*(?:\d{1,9}[.)][ \t]*)+",  # numbers of list items
    r"\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+(?:\"[^\"\n]*\"|'[^'\n]*'))?\)",  # addresses and titles of links
    r"\[[xX]\]",  # ticks
    r"&#?\w+;",  # characters by name
    r"\\[A-Za-z]+",  # commands in formulas
    rf"(?i)</?(?:{'|'.join(TAGS)}|br)\b[^<>\n]*>",
)


def told(text: str) -> list[str]:
    """Its letters, digits and emoji, accents apart."""
    return [
        char for char in unicodedata.normalize("NFKD", text) if char.isalnum() or unicodedata.category(char) == "So"
    ]


def check_nothing_lost(markdown: str, parts: list[TextPart]) -> None:
    visible = markdown
    for syntax in SYNTAX:
        visible = re.sub(syntax, " ", visible)
    said = told("\n".join(part.text for part in parts))
    if "|" in markdown:  # lines within cells stand beside each other, and columns have their names in each row
        assert not Counter(told(visible)) - Counter(said)
        return
    rest = iter(said)
    missing = next((char for char in told(visible) if char not in rest), None)
    assert missing is None, f"{missing!r} is lost"


def check_all(markdown: str, limit: int = 4096) -> None:
    parts = render(markdown, limit)
    for part in parts:
        check(part, limit)
    check_nothing_lost(markdown, parts)
    for part in render_growing(markdown, limit):
        check(part, limit)


WORDS = st.sampled_from([
    "word", "Zürich", "naïve", "e\u0301te\u0301", "a\u030angstro\u0308m", "слово", "λόγος", "שלום", "مرحبا",
    "हिन्दी", "क्षत्रिय", "中文", "日本語", "한국어", "ไทย", "🦉",
    "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "👍🏽", "1️⃣", "𝔘𝔫𝔦", "𓂀",
    "x1", "snake_case", "2*3", "5 < 6", "List<String>", "a||b", "$5", "100%", "http://a.bc/d_e", "#tag", "@name",
    "~3", "C:\\dir", "a\u202eb",
])  # fmt: skip
PUNCTUATION = st.sampled_from([". ", ", ", "! ", "。", "…", " ", " ", " ", "\n", "\n\n", "  \n", "\\\n", "\t", " - "])
INLINE = st.sampled_from([
    "**", "*", "_", "__", "***", "`", "``", "~~", "~", "||", "[", "](http://a.b/c)", "](/rel)", "](x \"t\")", "![",
    "<b>", "</b>", "<br>", "<i>", "</i>", "<div>", "<!-- ", " -->", "<a href='x'>", "$", "$$", "\\(", "\\)",
    "\\[", "\\]", "\\frac{a}{b}", "\\", "\\*", "&amp;", "&lt;", "<https://x.y/z>", "[^1]", "[x]", "[ ] ", "]:", "|",
    "[see](/rel)", "$\\color{red}x$", "\r\n", "\x00", "\u200b", "\ufeff", "x^2",
])  # fmt: skip
BLOCKS = st.sampled_from([
    "\n# ", "\n## ", "\n###### ", "\n- ", "\n* ", "\n  - ", "\n1. ", "\n   2) ", "\n- [ ] ", "\n> ", "\n> > ", "\n>\n",
    "\n```\n", "\n```py\n", "\n````md\n", "\n~~~\n", "\n    ", "\n---\n", "\n===\n", "\n|a|b|\n|-|-|\n|",
    "\n| ", " |\n", "\n\n[n]: http://a.b/c\n", "\n[^1]: ", "\n<div>\n", "\n</details>\n", "\n\n\n\n",
    "\n> ```sh\n> ", "\n- ```\n  ",
])  # fmt: skip


@st.composite
def soups(draw: st.DrawFn) -> str:
    """Words and signs in any order."""
    pieces = draw(st.lists(st.one_of(WORDS, WORDS, PUNCTUATION, INLINE, BLOCKS), max_size=60))
    return "".join(pieces)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """What a model writes: paragraphs, lists, code, tables, quotes, well formed."""
    words = st.lists(WORDS, min_size=1, max_size=5).map(" ".join)
    styled = st.one_of(
        words,
        words.map("**{}**".format),
        words.map("*{}*".format),
        words.map("`{}`".format),
        words.map("[{}](https://example.org/a_(b))".format),
        words.map("~~{}~~".format),
        words.map("[{}](./READ.md)".format),
    )
    line = st.lists(styled, min_size=1, max_size=4).map(" ".join)
    fence = st.tuples(st.sampled_from(["```", "```python", "~~~~", "````c++"]), st.lists(words, max_size=8))
    cells = st.lists(
        st.lists(words.map(lambda text: text.replace("|", "/")), min_size=2, max_size=4), min_size=1, max_size=6
    )
    block: st.SearchStrategy[str] = st.one_of(
        line,
        line.map("## {}".format),
        st.lists(line, min_size=1, max_size=3).map(lambda lines: "\n".join(f"- {text}" for text in lines)),
        st.lists(line, min_size=1, max_size=5).map(
            lambda lines: "\n".join(f"{n}. {t}" for n, t in enumerate(lines, 1))
        ),
        st.lists(line, min_size=1, max_size=3).map(lambda lines: "\n".join(f"> {text}" for text in lines)),
        fence.map(lambda one: "\n".join([one[0], *one[1], one[0][:4].rstrip("pc")])),
        cells.map(_table),
    )
    repeated = draw(st.sampled_from([1] * 7 + [12]))
    return "\n\n".join(draw(st.lists(block, max_size=8)) * repeated)


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


@many
@given(soups())
def test_telegram_takes_any_soup_of_signs_and_no_word_is_lost(markdown: str) -> None:
    check_all(markdown)


@many
@given(documents())
def test_telegram_takes_what_models_write_and_no_word_is_lost(markdown: str) -> None:
    check_all(markdown)


@many
@given(soups(), st.integers(min_value=20, max_value=300))
def test_cuts_at_any_length_lose_nothing(markdown: str, limit: int) -> None:
    check_all(markdown, limit)


@many
@given(st.text(st.characters(codec=None), max_size=200))
def test_any_text_at_all_is_taken(text: str) -> None:
    for part in [*render(text), *plain(text)]:
        check(part)
    if max(text, default="") < "\ud800":
        check_nothing_lost(text, plain(text))


# Each rule on its own


def test_headings_have_no_emoji_and_are_bold() -> None:
    assert one("# Title\ntext") == one("Title\n===\ntext")
    assert (one("# Title\ntext").text, marked(one("### Title"), "bold")) == ("Title\ntext", ["Title"])


def test_a_table_stands_in_columns_with_wide_characters_and_links() -> None:
    part = one(
        "| Name | Size |\n|:-----|-----:|\n| 日本語 | 1 |\n| [docs](http://a.b) `x` | 100 |\n"
        "| one<br>two | **3** | more |"
    )
    assert marked(part, "pre") == [part.text]
    assert part.text.split("\n") == [
        "Name                │ Size │",
        "────────────────────┼──────┼─────",
        "日本語              │    1 │",
        "docs (http://a.b) x │  100 │",
        "one                 │    3 │ more",
        "two                 │      │",
    ]


def test_a_table_too_wide_for_a_phone_is_a_list_with_the_names_of_its_columns() -> None:
    part = one("| Name | What | |\n|---|---|---|\n| Alpha | " + "text " * 7 + "| x |\n| Beta | [see](http://a.bc/d) ||")
    assert part.text == f"• Name: Alpha\n  What: {('text ' * 7).strip()}\n  x\n\n• Name: Beta\n  What: see"
    assert [entity.kind for entity in part.entities] == ["bold", "bold", "text_link"]
    assert [entity.offset for entity in part.entities][:2] == [8, part.text.index("Beta")]


def test_a_table_of_38_columns_is_a_grid_and_one_of_39_a_list() -> None:
    for width, grid in ((34, True), (35, False)):
        part = one(f"| {'a' * width} | b |\n|---|---|\n| 1 | 2 |")
        assert [entity.kind for entity in part.entities] == (["pre"] if grid else ["bold"])


def test_a_heading_is_not_left_alone_at_the_foot_of_a_message() -> None:
    for heading in ("## Section 2", "**Section 2**"):
        parts = render(f"{'word ' * 17}\n\n{heading}\n\n{'text ' * 10}", 100)
        assert not parts[0].text.endswith("Section 2")
        assert parts[1].text.startswith("Section 2\n\ntext")


@pytest.mark.parametrize(
    ("markdown", "bold"),
    [
        ("**重点：**内容", ["重点："]),
        ("这是**重点：**内容，还有**「引用」**文字", ["重点：", "「引用」"]),
        ("他说**“你好”**。然后**《书名》**很好", ["“你好”", "《书名》"]),
        ("これは**「重要」**です", ["「重要」"]),
        ("**중요(important)**은", ["중요(important)"]),
        ("**wichtig:**dann **Achtung!**Hier", ["wichtig:", "Achtung!"]),
        ('das **"Wort"**ist', ['"Wort"']),
        ("f(**kw), g(**kw)", []),
        ("{**a, **b}", []),
    ],
)
def test_bold_beside_signs_is_what_a_reader_expects(markdown: str, bold: list[str]) -> None:
    part = one(markdown)
    raw = part.text.encode("utf-16-le")
    found = [raw[e.offset * 2 : (e.offset + e.length) * 2].decode("utf-16-le") for e in part.entities]
    assert found == bold


def test_code_keeps_its_language_its_signs_and_its_indentation() -> None:
    part = one('Run:\n```c++ title=x\n\tif (a < b && !c) { x[0] = "<br>"; } // ||no||\n```\nand `a||b <b>`')
    assert marked(part, "pre") == ['if (a < b && !c) { x[0] = "<br>"; } // ||no||']
    assert "\n    if" in part.text and part.entities[0].language == "c++"
    assert marked(part, "code") == ["a||b <b>"]


@pytest.mark.parametrize(
    "url", ["http://localhost:8000", "./README.md", "#part", "javascript:alert(1)", "http://a b.c"]
)
def test_a_link_that_telegram_refuses_is_text_with_its_address(url: str) -> None:
    part = one(f"see [here](<{url}>)" if " " not in url else f"see [here]({url})")
    assert not part.entities and "here" in part.text and url in part.text


def test_links_by_name_are_links_and_their_definitions_stay() -> None:
    part = one(
        "As [said][1], [Docs] and [^2].\n\n[1]: http://a.b/c 'T'\n[docs]: http://d.e\n[^2]: a note\n[unused]: http://f.g"
    )
    assert [(entity.url, text) for entity, text in zip(part.entities, ["said", "Docs"], strict=True)] == [
        ("http://a.b/c", "said"),
        ("http://d.e", "Docs"),
    ]
    for kept in ("[1]: http://a.b/c", "[^2]: a note", "and [^2].", "[unused]: http://f.g"):
        assert kept in part.text


def test_bold_words_need_no_spaces_beside_chinese_japanese_and_korean() -> None:
    part = one("中文**「粗体」**文字，**重要：**请。これは**「重要」**です。**한국어(설명)**는")
    assert marked(part, "bold") == ["「粗体」", "重要：", "「重要」", "한국어(설명)"]
    assert "*" not in part.text


def test_what_is_nested_too_deep_is_shown_as_it_is_written() -> None:
    for nested in ("> " * 60 + "deep", "\n".join("  " * depth + f"- level {depth}" for depth in range(40))):
        told_last = render(nested)[-1].text.split()[-1]
        assert told_last in ("deep", "39")


def test_html_is_shown_but_for_breaks_and_pairs_for_looks() -> None:
    part = one("A List<String> is <b>not <i>that</i></b> <blink>bad</blink><br>new <b>\n\n<div>\nkept\n</div>")
    assert part.text == "A List<String> is not that <blink>bad</blink>\nnew <b>\n\nkept"
    assert (marked(part, "bold"), marked(part, "italic")) == (["not that"], ["that"])


def test_formulas_are_unicode_where_nothing_is_lost_and_as_written_elsewhere() -> None:
    assert one(r"\(x_1 + \alpha\) costs $5 to $6").text == "x₁ + α costs $5 to $6"
    assert one(r"$\color{red}x$ and \(\frac{abc\)").text == r"$\color{red}x$ and \(\frac{abc\)"
    assert one("```tex\n\\[ \\frac{a}{b} \\]\n```").text == r"\[ \frac{a}{b} \]"


def test_spoilers_quotes_lists_and_ticks() -> None:
    part = one("||secret|| if a || b\n\n> quote\n> > inner\n\n- one\n- [x] done\n- [ ] open\n7. seven")
    assert (marked(part, "spoiler"), marked(part, "blockquote")) == (["secret"], ["quote\ninner"])
    for line in ("secret if a || b", "• one", "✅ done", "☐ open", "7. seven"):
        assert line in part.text.split("\n")


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a" * 3000 + "\n\n" + "b c. d\n" * 300, "\n\n"),
        ("a b. " * 700 + "a\n" + "b c. " * 300, "\n"),
        ("Long words go on. " * 400, " "),
        ("words " * 900, " "),
        ("x" * 5000, ""),
    ],
)
def test_an_answer_is_cut_at_paragraphs_else_lines_else_sentences_else_words(text: str, cut: str) -> None:
    first, second, *_ = render(text)
    assert text.startswith(first.text + cut + second.text[:9])
    assert 1024 <= utf16_len(first.text) <= 4096
    assert first.text.endswith("on.") or "Long" not in text


def test_code_that_is_cut_goes_on_as_code_of_its_language_at_a_line_that_is_not_indented() -> None:
    code = "\n".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(300))
    parts = render(f"Look:\n\n```python\n{code}\n```\n\nThat is **all**.")
    assert len(parts) > 2
    for part in parts:
        (block,) = (entity for entity in part.entities if entity.kind == "pre")
        assert block.language == "python" and marked(part, "pre")[0].startswith("def f")
    assert parts[0].text.startswith("Look:\n\ndef f0") and marked(parts[-1], "bold") == ["all"]


def test_a_short_code_block_moves_whole_to_the_next_message() -> None:
    first, second = render("word " * 790 + "\n\n```\n" + "line\n" * 60 + "```")
    assert (marked(first, "pre"), marked(second, "pre")) == ([], [("line\n" * 60).strip()])


FAMILY, FLAG, LETTER = "👩‍👩‍👧‍👦", "🇩🇪", "e\u0301\u0323"


@pytest.mark.parametrize("whole", [FAMILY, FLAG, LETTER, "👍🏽", "1️⃣", "क्ष"])
@pytest.mark.parametrize("before", range(0, 12, 3))
def test_no_cut_goes_through_what_people_see_as_one_character(whole: str, before: int) -> None:
    parts = render("x" * before + whole * 2000)
    assert len(parts) > 1
    assert "".join(part.text for part in parts) == "x" * before + whole * 2000
    for part in parts:
        rest = part.text.replace(whole, "").strip("x")
        assert not rest
    assert joined(whole, 1)


def test_many_marks_and_heavy_links_make_more_messages() -> None:
    parts = render("**b** w " * 250)
    assert [len(part.entities) for part in parts] == [100, 100, 50]
    heavy = render(" ".join(f"[w{n}](http://a.b/{'x' * 900})" for n in range(30)))
    assert sum(len(part.entities) for part in heavy) == 30 and len(heavy) >= 3
    for part in [*parts, *heavy]:
        check(part)


@pytest.mark.parametrize(
    ("markdown", "text", "kinds"),
    [
        ("```python\nx = 1", "x = 1", ["pre"]),
        ("so **far", "so far", ["bold"]),
        ("so **", "so", []),
        ("call `f(x", "call f(x", ["code"]),
        ("see [the do", "see the do", []),
        ("see [the docs](http://exam", "see the docs", []),
        ("", "", []),
        (" \n", "", []),
    ],
)
def test_a_growing_answer_shows_open_things_closed(markdown: str, text: str, kinds: list[str]) -> None:
    parts = render_growing(markdown)
    assert "".join(part.text for part in parts) == text
    assert [entity.kind for part in parts for entity in part.entities] == kinds


def test_the_full_messages_of_a_growing_answer_stay_as_they_are() -> None:
    markdown = "\n\n".join(f"## Part {number}\n\n" + f"some *words* of {number}. " * 60 for number in range(9))
    whole = render(markdown)
    for end in range(100, len(markdown), 97):
        parts = render_growing(markdown[:end])
        assert parts[:-1] == whole[: len(parts) - 1]


def test_plain_text_is_cut_and_left_as_it_is() -> None:
    text = "**not bold** <b>`\n" * 400
    parts = plain(text)
    assert len(parts) == 2 and not any(part.entities for part in parts)
    assert "\n".join(part.text for part in parts) == text.strip()


def test_nothing_to_see_is_no_message() -> None:
    for nothing in ("", " \n ", "\u200b", "```\n```", "\u030a", "\n\u030a\u030a"):
        assert render(nothing) == []


def test_twenty_kilobytes_hold_up_nobody() -> None:
    block = (
        "# Heading\n\nSome *text* with **bold** words, `code` and a [link](http://example.com/x), и слова, 中文."
        " a < b\n\n- item one\n  - nested **b**\n\n```python\ndef f(x):\n    return x + 1\n```\n\n"
        "| a | b |\n|---|---|\n| 1 | **4** |\n\n> quote\n\n"
    )
    markdown = (block * 100)[:20_000]
    longest, tries = (0.1, 5) if EXAMPLES else (1.0, 1)
    assert _fastest(lambda: render(markdown), tries) < longest
    assert _fastest(lambda: render_growing(markdown), tries) < longest


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "<div>\n" * 3000,
        "**a " * 5000,
        "> " * 3000,
        "||a" * 5000,
        "[a]: b\n" * 2000,
        "<b>" * 5000,
        "$\\a$ " * 3000,
        "[" * 15_000 + "\nx",
        "[" * 15_000 + "x] y",
        "[](" * 5000 + " x",
    ],
)
def test_texts_made_to_be_slow_are_not(text: str) -> None:
    assert _fastest(lambda: render(text), 1) < 2.0
    assert _fastest(lambda: render_growing(text), 1) < 2.0


def _fastest(run: Callable[[], object], tries: int) -> float:
    took = []
    for _ in range(tries):
        began = time.process_time()
        run()
        took.append(time.process_time() - began)
    return min(took)
