"""The Markdown that models write, as tokens of markdown-it-py: CommonMark, tables, strikethrough, and what chats add.

Every rule here keeps what a web page would drop: definitions of links, HTML that is not for looks, cells beyond a
table's last column, blocks nested too deep.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from html import unescape
from typing import TYPE_CHECKING

from rolecall.errors import MissingExtra

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

DEEPEST = 30
"""Levels of lists and quotes; what is nested deeper is shown as it is written."""
TAGS = {
    **dict.fromkeys(("b", "strong"), "bold"), **dict.fromkeys(("i", "em"), "italic"),
    **dict.fromkeys(("u", "ins"), "underline"), **dict.fromkeys(("s", "del", "strike"), "strikethrough"),
    **dict.fromkeys(("code", "kbd", "tt"), "code"),
    **dict.fromkeys(("sub", "sup", "mark", "small", "span", "p", "div", "center", "details", "summary"), ""),
}  # fmt: skip
"""HTML for looks: a pair of these becomes an entity or vanishes. All other HTML is shown as it is written."""
TAG = re.compile(r"<(/?)([a-z]+)(?: [^<>\n]*)?/?>", re.IGNORECASE)
SPOILER = re.compile(r"\|\|(?!\|)(?=\S)([^\n|]*[^\s|])\|\|(?!\|)")
ROW = re.compile(r"[ >\t]*\|(?!\|)")
FORMULAS = (("$$", "$$", "pre"), ("$", "$", "code"), (r"\[", r"\]", "pre"), (r"\(", r"\)", "code"))
"""How a formula opens and closes, and the kind of its entity."""
MATHS = re.compile(r"\\[A-Za-z]|[\^_=]|^[A-Za-z]$")
COMMAND = re.compile(r"\\(?:frac\{([^{}]*)\}\{([^{}]*)\}|(?:text|mathrm|mathbf|operatorname)\{([^{}]*)\})")
SYMBOL = re.compile(r"\\[A-Za-z]+\{\w\}|\\(?:[A-Za-z]+|[,;:!| ]) ?")
RAISED = re.compile(r"([_^])(?:\{([^{}]*)\}|([^\s{}\\]))")
ROOT = re.compile(r"\\sqrt\{([^{}]*)\}")
FUNCTIONS = re.compile(r"\\(left|right|(?:lim|log|ln|sin|cos|tan|exp|max|min|det|gcd|dim|arg|inf|sup)(?![A-Za-z]))")


def parse(markdown: str) -> list[Token]:
    """The block tokens of ``markdown``, their inline tokens as children. Beside those of markdown-it-py: ``raw`` is
    text to show as it is; ``mark_open`` (its ``meta`` is the entity's kind) and ``mark_close`` stand around text;
    ``formula`` has its kind as ``meta``; ``more_cells`` of a table's row are in the row's ``meta``.

    Raises MissingExtra.
    """
    tags = {(tag[1], tag[2].lower()) for tag in TAG.finditer(markdown)}
    layout = {name for name, kind in TAGS.items() if not kind and {("", name), ("/", name)} <= tags}
    return parser().parse(markdown, {"layout": layout})


@cache
def parser() -> MarkdownIt:
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise MissingExtra("telegram", "Markdown for Telegram") from error

    md = MarkdownIt("commonmark", {"maxNesting": DEEPEST + 10})
    md.enable(["table", "strikethrough"]).disable(["html_block", "html_inline"])
    md.normalizeLink = lambda url: url  # type: ignore[method-assign]
    md.normalizeLinkText = lambda link: link  # type: ignore[method-assign]
    md.validateLink = lambda url: True  # type: ignore[method-assign]
    md.block.ruler.before("table", "too_deep", _too_deep)
    md.block.ruler.before("table", "layout", _layout_line, {"alt": ["paragraph", "blockquote"]})
    md.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    md.block.ruler.at("reference", _definition)
    md.inline.add_terminator_char("|")
    md.inline.ruler.before("escape", "formula", _formula)
    md.inline.ruler.before("link", "spoiler", _spoiler)
    md.inline.ruler.before("entity", "tag", _tag)
    md.inline.ruler.before("emphasis", "stars", _stars)
    return md


# Blocks


def _raw(state: StateBlock, start: int, end: int) -> None:
    token = state.push("raw", "", 0)
    token.content, token.map = state.getLines(start, end, state.blkIndent, False), [start, end]


def _too_deep(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """All the rest of a block that is nested deeper than is read."""
    if state.level < DEEPEST or silent:
        return False
    _raw(state, start, end)
    state.line = end
    return True


def _layout_line(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A line that only begins or ends a layout, as ``<div>``: it is left out."""
    line = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].strip()
    tag = TAG.fullmatch(line) if line.startswith("<") else None
    if tag is None or tag[2].lower() not in state.env["layout"]:
        return False
    if not silent:
        state.line = start + 1
    return True


def _definition(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A definition is used, and shown too. A footnote is text."""
    from markdown_it.rules_block import reference

    if state.src.startswith("[^", state.bMarks[start] + state.tShift[start]):
        return False
    found = reference(state, start, end, silent)
    if found and not silent:
        _raw(state, start, state.line)
    return found


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A table whose rows keep the cells beyond the last column, in ``meta``."""
    from markdown_it.rules_block import table

    first = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    columns = sum(token.type == "th_open" for token in state.tokens[first:])
    for token in state.tokens[first:]:
        if token.type == "tr_open" and token.map:
            line = token.map[0]
            cells = _cells(state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]])
            token.meta = {"more_cells": cells[columns:]}
    return True


def _cells(row: str) -> list[str]:
    cells = [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", row.strip().removeprefix("|"))]
    while cells and not cells[-1]:
        cells.pop()
    return cells


# Within a paragraph


def _wrap(state: StateInline, kind: str, start: int, end: int, after: int) -> None:
    """What stands from ``start`` to ``end`` as an entity of ``kind``; reading goes on at ``after``."""
    last = state.posMax
    state.push("mark_open", "", 1).meta = {"kind": kind}
    state.pos, state.posMax = start, end
    state.md.inline.tokenize(state)
    state.push("mark_close", "", -1)
    state.pos, state.posMax = after, last


def _spoiler(state: StateInline, silent: bool) -> bool:
    """``||this||``, where no table row begins."""
    at = state.pos
    if state.src[at] != "|" or state.src[at - 1 : at] == "|":
        return False
    found = SPOILER.match(state.src, at, state.posMax)
    if not found or ROW.match(state.src, state.src.rfind("\n", 0, at) + 1):
        return False
    if silent:
        state.pos = found.end()
    else:
        _wrap(state, "spoiler", *found.span(1), found.end())
    return True


def _tag(state: StateInline, silent: bool) -> bool:
    """HTML for looks, and line breaks."""
    found = TAG.match(state.src, state.pos, state.posMax) if state.src[state.pos] == "<" else None
    if not found:
        return False
    name, after = found[2].lower(), found.end()
    kind = TAGS.get(name, "none")
    if name == "br" or name in state.env["layout"]:
        if not silent and name == "br":
            state.pending = state.pending.rstrip(" ")
            state.push("hardbreak", "br", 0)
            after += len(state.src[after:]) - len(state.src[after:].lstrip(" "))
        state.pos = min(after, state.posMax)
        return True
    closing = _pairs(state).get(found.start()) if kind in set(TAGS.values()) - {""} else None
    if closing is None or closing.end() > state.posMax:
        return False
    if silent or kind == "code":
        state.pos = closing.end()
        if not silent:
            state.push("code_inline", "", 0).content = unescape(state.src[found.end() : closing.start()])
    else:
        _wrap(state, kind, found.end(), closing.start(), closing.end())
    return True


def _pairs(state: StateInline) -> dict[int, re.Match[str]]:
    """The tags that close those which open, by where those begin."""
    known: dict[str, dict[int, re.Match[str]]] = state.env.setdefault("pairs", {})
    if state.src not in known:
        waiting: dict[str, list[int]] = {}
        pairs = known[state.src] = {}
        for tag in TAG.finditer(state.src):
            opened = waiting.setdefault(tag[2].lower(), [])
            if not tag[1]:
                opened.append(tag.start())
            elif opened:
                pairs[opened.pop()] = tag
    return known[state.src]


def _stars(state: StateInline, silent: bool) -> bool:
    """Emphasis by ``*`` where CommonMark sees none. Beside Chinese, Japanese and Korean, which have no spaces between
    words and signs, a letter of these counts as punctuation does (the rule of markdown-cjk-friendly). Two stars also
    close behind a sign that ends something and open before one that begins something, as in ``**Note:**this``."""
    from markdown_it.rules_inline.state_inline import Delimiter

    src, start = state.src, state.pos
    if silent or src[start] != "*":
        return False
    end = start
    while end < state.posMax and src[end] == "*":
        end += 1
    before, after = src[start - 1] if start else " ", src[end] if end < state.posMax else " "
    tight = end - start >= 2 and (before in ENDING_SIGNS or after in BEGINNING_SIGNS)
    if not (_wide(before) or _wide(after) or tight):
        return False
    opens = not after.isspace() and (not _sign(after) or before.isspace() or _sign(before) or _wide(before))
    closes = not before.isspace() and (not _sign(before) or after.isspace() or _sign(after) or _wide(after))
    if tight:
        opens = opens or after in BEGINNING_SIGNS
        closes = closes or (before in ENDING_SIGNS and not after.isspace())
    for _ in range(end - start):
        state.push("text", "", 0).content = "*"
        state.delimiters.append(Delimiter(ord("*"), end - start, len(state.tokens) - 1, -1, opens, closes))
    state.pos = end
    return True


ENDING_SIGNS, BEGINNING_SIGNS = frozenset(":.!?…)]}»”’\"'%"), frozenset("([{«“‘„\"'$€£#@")


def _wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF" or "\uac00" <= char <= "\ud7af"


def _sign(char: str) -> bool:
    return unicodedata.category(char)[0] in "PS"


# Formulas


def _formula(state: StateInline, silent: bool) -> bool:
    r"""``$x$``, ``\(x\)``, ``$$x$$`` and ``\[x\]``: in Unicode, or as it is written where that would lose something.
    Two prices are no formula."""
    src, at = state.src, state.pos
    signs = next((signs for signs in FORMULAS if src.startswith(signs[0], at)), None)
    if signs is None:
        return False
    opening, closing, kind = signs
    end = src.find(closing, at + len(opening), state.posMax)
    formula, after = src[at + len(opening) : end], end + len(closing)
    if end < 0 or not MATHS.search(formula.strip()) or "$" in formula:
        return False
    if opening == "$" and (formula != formula.strip() or src[after : after + 1].isalnum()):
        return False
    if not silent:
        text = converted(formula.strip())
        token = state.push("text" if text is None else "formula", "", 0)
        token.content, token.meta = src[at:after] if text is None else text, {"kind": kind}
    state.pos = after
    return True


@lru_cache(1000)
def converted(formula: str) -> str | None:
    """A formula in Unicode; None where something has no such form."""
    text = FUNCTIONS.sub(lambda name: "" if name[1] in ("left", "right") else name[1], formula)
    for _ in range(3):  # from the inside out
        text = ROOT.sub(lambda root: "√" + _grouped(root[1]), text)
        text = COMMAND.sub(_command, text)
    text = SYMBOL.sub(_symbol, text)
    text = RAISED.sub(_raised, text)
    return None if re.search(r"[\\{}&]", text) else text.strip() or None


def _grouped(text: str) -> str:
    return text if re.fullmatch(r"\w+|\\[A-Za-z]+", text.strip()) else f"({text})"


def _command(found: re.Match[str]) -> str:
    return f"{_grouped(found[1])}/{_grouped(found[2])}" if found[3] is None else found[3]


def _symbol(found: re.Match[str]) -> str:
    name = found[0].rstrip(" ") or found[0]
    return (symbol(name) or name) + found[0][len(name) :]


@cache
def symbol(command: str) -> str:
    r"""The sign that ``\alpha``, ``\le`` or ``\mathbb{R}`` stands for, by pylatexenc; empty if there is none."""
    from pylatexenc.latex2text import LatexNodes2Text

    return str(LatexNodes2Text().latex_to_text(command))


def _raised(found: re.Match[str]) -> str:
    """``x_1`` and ``x^{2n}``, if every sign of it can be lowered or raised."""
    signs = found[2] if found[2] is not None else found[3]
    raised = [small_signs().get(found[1] + sign, "") for sign in signs.replace(" ", "")]
    if all(raised) and raised:
        return "".join(raised)
    return found[1] + (signs if len(signs) == 1 else f"({signs})")


@cache
def small_signs() -> dict[str, str]:
    """The signs of Unicode that are others lowered or raised, by ``_`` or ``^`` and the other."""
    found: dict[str, str] = {}
    for char in map(chr, range(0x3000)):
        kind, _, other = unicodedata.decomposition(char).partition(" ")
        if kind in ("<sub>", "<super>") and " " not in other and char not in "ªº":
            found.setdefault(("_" if kind == "<sub>" else "^") + chr(int(other, 16)), char)
    return found | {sign + "-": found[sign + "−"] for sign in "_^"}
