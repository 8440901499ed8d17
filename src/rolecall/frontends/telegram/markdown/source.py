"""Markdown made ready for the converter: what it would lose or misread is marked."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

Event = tuple[Any, dict[str, int]]
LESS, BRACKET, TABLE, DOLLAR, BACKSLASH, NOTHING = "\x01", "\x02", "\x03", "\x04", "\x05", "\x06"
DROPPED = re.compile("[\u2028-\u202e\u0333\u033f]")
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\ufdd0-\ufdef]")
OPENING = re.compile(r"(\\[\\<]|<(?:[A-Za-z][A-Za-z0-9+.-]{1,31}:[^\s<>]*|[\w.+-]+@[\w.-]+)>)|<")
BAR = re.compile(r"\|(?=\|)")
SPOILER_OR_BAR = re.compile(r"(?<!\|)\|\|[^\s|](?:[^\n|]*[^\s|])?\|\|(?!\|)|\|(?=\|)")
ROW = re.compile(r"[ >\t]*\|(?!\|)")
FORMULA = re.compile(rb"\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
MATHS = re.compile(r"\\[A-Za-z]|[\^_=]")
DEFINING = re.compile(rb"\[(?=[^\]]*\]:)")
TAGGED = re.compile(
    LESS + r"(b|i|u|s|em|strong|code|kbd|sub|sup|mark|small|span)>([^\n]*?)" + LESS + r"/\1>", re.IGNORECASE
)
COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}(?:\{[lcr|]*\})?|\\[A-Za-z]+|\\.")
BREAK = re.compile(f" *{LESS}br\\s*/?> *", re.IGNORECASE)
LINK_LIMIT = 2048


@dataclass(frozen=True)
class Table:
    """A table of the source: its rows as they are to be shown, and how its columns are aligned."""

    rows: list[list[str]]
    aligned: Sequence[str]


def prepared(markdown: str) -> tuple[str, list[Table]]:
    """The source to convert, and its tables. The n-th one's first cell begins with ``TABLE n TABLE``."""
    text = OPENING.sub(lambda found: found[0] if found[1] else LESS, _clean(markdown))
    if "||" in text:
        text = "\n".join(_without_bars(line) for line in text.split("\n"))
    data = text.encode()
    if b"]:" in data or b"[](" in data:
        data = _without_definitions(_named_links(data))
    if b"$" in data or FORMULA.search(data):
        data = _dollars(_formulas(data))
    tables: list[Table] = []
    if b"|" in data and b"-" in data:
        data, tables = _tables(data)
    return data.decode(), tables


def shown(text: str) -> str:
    """The text with all that was hidden brought back."""
    text = text.translate({1: "<", 2: "[", 4: "$", 5: "\\", 6: None})
    return re.sub(f"{TABLE}\\d+{TABLE}", "", text)


def linkable(url: str) -> bool:
    """Whether Telegram takes it as a link; it refuses the whole message otherwise."""
    if re.fullmatch(r"tg://[\w?=&%./-]+", url):
        return True
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    whole = len(url.encode()) <= LINK_LIMIT and not re.search(r"[\s<>\"]", url)
    return whole and parts.scheme in ("http", "https") and bool(re.fullmatch(r"[\w-]+(\.[\w-]+)+", host))


def _clean(markdown: str) -> str:
    """Without what Telegram drops, and without the characters that stand for something here."""
    text = markdown.replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = CONTROLS.sub(" ", DROPPED.sub("", text))
    # Telegram takes this ring from its letter unless the two are one character.
    return re.sub("(.?)\u030a", lambda found: unicodedata.normalize("NFC", found[0]).replace("\u030a", ""), text)


def _without_bars(line: str) -> str:
    """Bars that hide nothing, as in ``a || b``, kept apart; ``||this||`` is a spoiler where no table row begins."""
    bars = BAR if ROW.match(line) else SPOILER_OR_BAR
    return bars.sub(lambda found: found[0] if len(found[0]) > 1 else f"|{NOTHING}", line)


def _events(data: bytes) -> list[Event]:
    import pyromark
    from telegramify_markdown.converter import STANDARD_OPTIONS

    events: Any = pyromark.events_with_range(data.decode(), options=STANDARD_OPTIONS)
    return list(events)


def _tag(event: Any) -> dict[str, Any]:
    """A link's or an image's own data where one begins, else nothing."""
    start = event.get("Start") if isinstance(event, dict) else None
    found = start.get("Link") or start.get("Image") if isinstance(start, dict) else None
    return found if isinstance(found, dict) else {}


# Definitions


def _named_links(data: bytes) -> bytes:
    """Links by name as links by address, for their definitions become text; links around nothing show theirs."""
    events = _events(data)
    edits = []
    for (event, place), (after, _) in pairwise(events):
        tag = _tag(event)
        if tag and linkable(tag["dest_url"]):
            edits += _named_link(data, tag, place["start"], place["end"], isinstance(after, dict) and "End" in after)
    for at, end, new in sorted(edits, reverse=True):
        data = data[:at] + new + data[end:]
    return data


def _named_link(data: bytes, tag: dict[str, Any], start: int, end: int, empty: bool) -> list[tuple[int, int, bytes]]:
    url = tag["dest_url"].encode()
    inside = start + (2 if data[start : start + 1] == b"!" else 1)
    edits = [(inside, inside, url)] if empty else []
    name = {"Shortcut": end, "Collapsed": end - 2, "Reference": data.rfind(b"[", start, end)}.get(tag["link_type"])
    if name is not None and not tag["id"].startswith("^"):
        edits.append((name, end, b"(<" + url + b">)"))
    return edits


def _without_definitions(data: bytes) -> bytes:
    """Definitions and footnotes as text."""
    import pyromark
    from telegramify_markdown.converter import STANDARD_OPTIONS

    for _ in range(3):
        found = pyromark.reference_definitions(data.decode(), options=STANDARD_OPTIONS)
        if not found:
            return data
        for definition in found.values():
            at = data.find(b"[", definition["span"]["start"])
            data = data[:at] + BRACKET.encode() + data[at + 1 :]
    return DEFINING.sub(BRACKET.encode(), data)


# Formulas


def converted(formula: str) -> str:
    """A formula in Unicode, or itself where converting it would lose something."""
    from telegramify_markdown.latex_escape.helper import LatexToUnicodeHelper

    if "\\" not in formula:
        return formula
    helper: Any = LatexToUnicodeHelper()
    text = str(helper.convert(formula)).strip()
    words = iter(unicodedata.normalize("NFKC", text))
    said = unicodedata.normalize("NFKC", COMMAND.sub("", formula))
    return text if text and all(char in words for char in said if char.isalnum()) else formula


def _formulas(data: bytes) -> bytes:
    """``\\(x\\)`` and ``\\[x\\]`` outside code as ``$x$`` and ``$$x$$``, where they are formulas."""
    code = sorted((place["start"], place["end"]) for event, place in _events(data) if _is_code(event))

    def dollars(found: re.Match[bytes]) -> bytes:
        at = bisect_right(code, (found.end(), 0)) - 1
        formula = (found[1] or found[2]).decode().strip()
        if (at >= 0 and found.start() < code[at][1]) or not MATHS.search(formula) or re.search(r"\$|\n\s*\n", formula):
            return found[0]
        if converted(formula) == formula:
            return _raw(found[0])
        return (f"${formula}$" if found[1] else f"$${formula}$$").encode()

    return FORMULA.sub(dollars, data)


def _dollars(data: bytes) -> bytes:
    """Formulas that would lose something left as they are written; without those the signs may pair anew."""
    for _ in range(4):
        spared = _spared(data)
        if spared == data:
            return data
        data = spared
    return data.replace(b"$", DOLLAR.encode())


def _spared(data: bytes) -> bytes:
    for event, place in _events(data):
        formula = isinstance(event, dict) and (event.get("InlineMath") or event.get("DisplayMath"))
        start, end = place["start"], place["end"]
        if formula and data[end : end + 1].isdigit():  # two prices
            data = data[:start] + data[start:end].replace(b"$", DOLLAR.encode()) + data[end:]
        elif formula and "\\" in formula and converted(formula) == formula:
            data = data[:start] + _raw(data[start:end]) + data[end:]
    return data


def _raw(formula: bytes) -> bytes:
    """As it is written, out of the parser's reach."""
    return formula.translate(bytes.maketrans(b"$\\<", (DOLLAR + BACKSLASH + LESS).encode()))


def _is_code(event: Any) -> bool:
    start = event.get("Start") if isinstance(event, dict) else None
    return isinstance(event, dict) and ("Code" in event or (isinstance(start, dict) and "CodeBlock" in start))


# Tables


def _tables(data: bytes) -> tuple[bytes, list[Table]]:
    events = _events(data)
    tables, marks = [], []
    for number, (event, _) in enumerate(events):
        start = event.get("Start") if isinstance(event, dict) else None
        if isinstance(start, dict) and "Table" in start:
            marks.append(events[number + 2][1]["start"])
            tables.append(Table(list(_rows(data, events[number + 1 :])), start["Table"]))
    for number, at in reversed(list(enumerate(marks))):
        data = data[:at] + f"{TABLE}{number}{TABLE}".encode() + data[at:]
    return data, tables


def _rows(data: bytes, events: Iterable[Event]) -> Iterator[list[str]]:
    """The rows up to the table's end."""
    row: list[Event] = []
    for event, place in events:
        row.append((event, place))
        match event:
            case {"Start": "TableHead" | "TableRow"}:
                row = []
            case {"End": "TableHead" | "TableRow"}:
                yield _row(data, row, place)
            case {"End": "Table"}:
                return


def _row(data: bytes, events: Iterable[Event], place: dict[str, int]) -> list[str]:
    """The texts of its cells, with those that it has beyond the heading."""
    cells: list[str] = []
    cell: list[Any] = []
    last = place["start"]
    for event, where in events:
        match event:
            case {"Start": "TableCell"}:
                cell = []
            case {"End": "TableCell"}:
                cells.append(_shown_cell(_cell(cell)))
                last = where["end"]
            case _:
                cell.append(event)
    more = data[last : place["end"]].decode().strip("| \t\n>")
    return [*cells, *map(_shown_cell, more.split("|"))] if more else cells


def _cell(events: Iterable[Any]) -> str:
    """A cell's text; links have their address behind them."""
    text = ""
    links: list[tuple[str, int]] = []
    for event in events:
        match event:
            case {"Start": {"Link": tag} | {"Image": tag}}:
                links.append((tag["dest_url"], len(text)))
            case {"End": "Link" | "Image"}:
                url, since = links.pop()
                text += "" if url in text[since:] else f" ({url})"
            case {"Text": more} | {"Code": more}:
                text += more
            case {"InlineMath": formula} | {"DisplayMath": formula}:
                text += converted(formula)
    return text


def _shown_cell(text: str) -> str:
    return shown(BREAK.sub("\n", TAGGED.sub(r"\2", text)).replace("\t", " ")).strip()
