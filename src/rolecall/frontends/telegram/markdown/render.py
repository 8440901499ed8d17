"""Markdown as models write it, rendered as Telegram's text and entities."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len

from rolecall.errors import MissingExtra
from rolecall.frontends.telegram.markdown.entities import (
    CODE,
    TEXT_LIMIT,
    Edit,
    Mark,
    TextPart,
    edited,
    nested,
    parts_of,
)
from rolecall.frontends.telegram.markdown.source import BREAK, LESS, TABLE, Table, linkable, prepared, shown

if TYPE_CHECKING:
    from telegram import MessageEntity
    from telegramify_markdown import RenderConfig


FENCE = re.compile(r"^[ >]*(`{3,}|~{3,})", re.MULTILINE)
GROWING_LINK = re.compile(r"!?\[([^\]\n]*)(?:\](?:\([^)\s]*)?)?$")
MORE = "…"
KINDS = ("bold", "italic", "underline", "strikethrough", "spoiler", "code", "pre", "text_link", "blockquote")
TAB = "    "
NUMBERED = re.compile(f"\\s*{TABLE}(\\d+){TABLE}")
HIDDEN = re.compile(f"{TABLE}\\d+{TABLE}|[\x01-\x06\t]")
LANGUAGE = re.compile(r"\{?\.?([\w+#-][\w+#.-]{0,31})")
TAG = re.compile(LESS + r"(/?)([a-z]+)(?: [^<>\n\x01]*)?>", re.IGNORECASE)
TAGS = {
    **dict.fromkeys(("b", "strong"), "bold"), **dict.fromkeys(("i", "em"), "italic"),
    **dict.fromkeys(("u", "ins"), "underline"), **dict.fromkeys(("s", "del", "strike"), "strikethrough"),
    **dict.fromkeys(("code", "kbd", "tt"), "code"),
    **dict.fromkeys(("sub", "sup", "mark", "small", "span", "p", "div", "center", "details", "summary"), ""),
}  # fmt: skip
"""HTML for looks: a pair of these becomes a mark or vanishes. All other HTML is shown as it is written."""
GRID_LIMIT = 80
"""Columns on the screen; a wider table becomes a list, which a narrow screen can break."""


def render(markdown: str, limit: int = TEXT_LIMIT) -> list[TextPart]:
    """The messages of an answer, in order; none if nothing in it can be seen. Each has at most ``limit`` UTF-16 units
    and 100 entities, and is what Telegram will keep, so that sending it again is "not modified". Raises MissingExtra.
    """
    return list(parts_of(*formatted(markdown), limit))


def partial(markdown: str, limit: int = TEXT_LIMIT) -> TextPart:
    """One message for an answer that still grows: what is open is closed for now, and ``…`` ends what does not fit.
    Its text is empty while there is nothing to see."""
    text, marks = formatted(_closed(markdown))
    parts = parts_of(text, marks, limit)
    whole = next(parts, TextPart(""))
    if next(parts, None) is None:
        return whole
    first = next(parts_of(text, marks, limit - len(MORE)))
    return TextPart(first.text + MORE, first.entities)


def plain(text: str, limit: int = TEXT_LIMIT) -> list[TextPart]:
    """The same as it is written, without entities, for when Telegram refuses them."""
    clean = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", text.replace("\t", "    ").replace("\r", ""))
    clean = clean.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return list(parts_of(re.sub("[\u2028-\u202e\u030a\u0333\u033f]", "", clean), (), limit))


def message_entities(part: TextPart) -> list[MessageEntity]:
    """A part's entities as python-telegram-bot wants them."""
    from telegram import MessageEntity

    return [MessageEntity(e.kind, e.offset, e.length, url=e.url, language=e.language) for e in part.entities]


def _closed(markdown: str) -> str:
    """A growing answer with its last paragraph's code and bold words ended, and half a link as its text."""
    fences = FENCE.findall(markdown)
    if len(fences) % 2:
        return markdown
    head, gap, last = markdown.rpartition("\n\n")
    if last.count("`") % 2:
        return head + gap + last + "`"
    last = GROWING_LINK.sub(r"\1", last)
    return head + gap + _ended(last, "**")


def _ended(text: str, sign: str) -> str:
    """With an opened ``sign`` closed, or left out where nothing stands behind it yet."""
    if text.count(sign) % 2 == 0:
        return text
    bare = text.rstrip()
    return bare.removesuffix(sign) if bare.endswith(sign) else bare + sign


def formatted(markdown: str) -> tuple[str, list[Mark]]:
    """The whole answer as text, with marks that nest as Telegram wants entities to. Raises MissingExtra."""
    source, tables = prepared(markdown)
    text, marks = _converted(source)
    grids, marks = _laid_out(text, marks, tables)
    tags, tagged = _tagged(text, marks)
    links, marks = _checked(text, [*marks, *tagged])
    hidden = (Edit(*found.span(), TAB if found[0] == "\t" else shown(found[0])) for found in HIDDEN.finditer(text))
    text, marks = edited(text, marks, [*grids, *tags, *links, *hidden])
    text, marks = _closer(text, marks)
    return text, nested(text, marks)


def _converted(source: str) -> tuple[str, list[Mark]]:
    try:
        from telegramify_markdown import convert
    except ImportError as error:
        raise MissingExtra("telegram", "Markdown for Telegram") from error
    text, entities = convert(source, latex_escape=False, config=_config())
    places = _places(text)
    marks = []
    for one in entities:
        if one.type in KINDS:
            start, end = places[one.offset], places[one.offset + one.length]
            marks.append(Mark(one.type, start, end, one.url and shown(one.url), _language(one.language)))
    return text, marks


def _config() -> RenderConfig:
    """No emoji before headings; quotes are not folded."""
    from telegramify_markdown import RenderConfig

    config = RenderConfig.isolated()
    for level in range(1, 7):
        setattr(config.markdown_symbol, f"heading_level_{level}", "")
    config.markdown_symbol.image = "🖼 "
    config.markdown_symbol.unordered_list_item = "•"
    config.markdown_symbol.task_uncompleted = "☐"
    config.cite_expandable = False
    return config


def _places(text: str) -> Sequence[int]:
    """The character that each UTF-16 unit begins or continues, and the end."""
    if text.isascii() or not any(char > "\uffff" for char in text):
        return range(len(text) + 1)
    units = list(accumulate((2 if char > "\uffff" else 1 for char in text), initial=0))
    places = [0] * (units[-1] + 1)
    for place, unit in enumerate(units):
        places[unit] = place
    return places


def _language(given: str | None) -> str | None:
    found = LANGUAGE.match(shown(given or ""))
    return found[1] if found else None


def _laid_out(text: str, marks: Iterable[Mark], tables: Sequence[Table]) -> tuple[list[Edit], list[Mark]]:
    """Tables with columns that stand in line; one too wide for that is a list, and no code."""
    edits, kept = [], []
    for mark in marks:
        number = NUMBERED.match(text[mark.start : mark.end]) if mark.kind == "pre" and tables else None
        if number is None:
            kept.append(mark)
            continue
        new, grid = laid_out(tables[int(number[1])].rows, tables[int(number[1])].aligned)
        edits.append(Edit(mark.start, mark.end, new))
        kept += [mark] if grid else []
    return edits, kept


def _tagged(text: str, marks: Iterable[Mark]) -> tuple[list[Edit], list[Mark]]:
    """Pairs of HTML tags for looks as marks, and line breaks; not in code."""
    if LESS not in text:
        return [], []
    code = [mark for mark in marks if mark.kind in CODE]
    free = [found for found in TAG.finditer(text) if not _within(found.start(), code)]
    edits = [Edit(*found.span(), "\n") for found in BREAK.finditer(text) if not _within(found.start(), code)]
    tagged = []
    for first, last in _pairs(free):
        edits += [Edit(*first.span(), ""), Edit(*last.span(), "")]
        kind = TAGS[first[2].lower()]
        tagged += [Mark(kind, first.end(), last.start())] if kind else []
    return edits, tagged


def _pairs(tags: Iterable[re.Match[str]]) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    open_: dict[str, list[re.Match[str]]] = {name: [] for name in TAGS}
    for tag in tags:
        waiting = open_.get(tag[2].lower())
        if waiting is None:
            continue
        if not tag[1]:
            waiting.append(tag)
        elif waiting:
            yield waiting.pop(), tag


def _closer(text: str, marks: list[Mark]) -> tuple[str, list[Mark]]:
    """One empty line where several would be left, but not in code."""
    code = [mark for mark in marks if mark.kind in CODE]
    gaps = (found for found in re.finditer(r"\n[ \n]*\n(?=\n)", text) if not _within(found.start(), code))
    return edited(text, marks, [Edit(*gap.span(), "\n") for gap in gaps])


def _within(place: int, marks: Iterable[Mark]) -> bool:
    return any(mark.start <= place < mark.end for mark in marks)


def _checked(text: str, marks: Iterable[Mark]) -> tuple[list[Edit], list[Mark]]:
    """Links that Telegram would refuse as their text with the address behind it."""
    edits, kept = [], []
    for mark in marks:
        if mark.kind != "text_link" or linkable(mark.url or ""):
            kept.append(mark)
        elif mark.url and mark.url.removeprefix("mailto:") != shown(text[mark.start : mark.end]):
            edits.append(Edit(mark.end, mark.end, f" ({mark.url})"))
    return edits, kept


def laid_out(rows: Sequence[Sequence[str]], aligned: Sequence[str]) -> tuple[str, bool]:
    """The table's text, and whether it is a grid (and no list). ``rows[0]`` is the heading; ``aligned`` says Left,
    Right, Center or None for each column. Lines within a cell end in ``\\n``."""
    cells = [[cell.split("\n") for cell in row] for row in rows]
    columns = list(zip_longest(*cells, fillvalue=[""]))
    widths = [max(cell_len(line) for cell in column for line in cell) for column in columns]
    if sum(widths) + 3 * (len(widths) - 1) > GRID_LIMIT:
        return _listed(rows), False
    lines = [line for row in cells for line in _lines(row, widths, aligned)]
    lines.insert(max(len(cell) for cell in cells[0]), "─┼─".join("─" * width for width in widths))
    return "\n".join(lines), True


def _lines(row: Sequence[Sequence[str]], widths: Sequence[int], aligned: Sequence[str]) -> list[str]:
    full = [*row, *([[""]] * (len(widths) - len(row)))]
    sides = [*aligned, *(["None"] * (len(widths) - len(aligned)))]
    return [
        " │ ".join(_padded(line, width, side) for line, width, side in zip(line, widths, sides, strict=True)).rstrip()
        for line in zip_longest(*full, fillvalue="")
    ]


def _padded(text: str, width: int, side: str) -> str:
    spare = width - cell_len(text)
    left = {"Right": spare, "Center": spare // 2}.get(side, 0)
    return " " * left + text + " " * (spare - left)


def _listed(rows: Sequence[Sequence[str]]) -> str:
    lines = [" · ".join(cell.replace("\n", " ") for cell in row) for row in rows]
    return "\n".join([lines[0], *(f"• {line}" for line in lines[1:])])
