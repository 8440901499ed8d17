"""Markdown as models write it, rendered as Telegram's text and entities."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.cells import cell_len

from rolecall.frontends.telegram.markdown.entities import QUOTES, TEXT_LIMIT, Mark, TextPart, parts_of
from rolecall.frontends.telegram.markdown.syntax import parse, parser

if TYPE_CHECKING:
    from markdown_it.token import Token
    from telegram import MessageEntity

FENCE = re.compile(r"^[ >]*(`{3,}|~{3,})", re.MULTILINE)
GROWING_LINK = re.compile(r"!?\[([^\[\]\n]*)(?:\](?:\([^\[)\s]*)?)?$")
"""Half a link at the end. No bracket opens within it: each one would be tried up to the end otherwise."""
LANGUAGE = re.compile(r"\{?\.?([\w+#-][\w+#.-]{0,31})")
TASK = re.compile(r"\[([ xX])\] ")
DROPPED = re.compile("[\u2028-\u202e\u0333\u033f]")
"""What Telegram takes out of a text without a word."""
UNCLEAN = re.compile("[\x00-\x08\x0b-\x1f\u2028-\u202e\u030a\u0333\u033f\ud800-\udfff\ufdd0-\ufdef]")
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\ufdd0-\ufdef]")
LINK_LIMIT = 2048
GRID_LIMIT = 38
"""Columns that a phone shows of code; a wider table becomes a list, which a narrow screen can break."""
SIMPLE = {"em": "italic", "strong": "bold", "s": "strikethrough"}
"""Kinds of entities by markdown-it-py's tags."""


def render(markdown: str, limit: int = TEXT_LIMIT) -> list[TextPart]:
    """The messages of an answer, in order; none if nothing in it can be seen. Each has at most ``limit`` UTF-16 units
    and 100 entities, and is what Telegram will keep, so that sending it again is "not modified". Raises MissingExtra.
    """
    return list(parts_of(*formatted(markdown), limit))


def render_growing(markdown: str, limit: int = TEXT_LIMIT) -> list[TextPart]:
    """The messages of an answer that still grows, at the end of which what is open is closed for now. All but the last
    are full: they stay as they are while the answer grows."""
    return render(_closed(markdown), limit)


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
    page = _Page()
    page.blocks(iter(parse(cleaned(markdown))))
    return page.text, page.marks


def cleaned(text: str) -> str:
    """Without the characters that Telegram drops or replaces; line ends are ``\\n``."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = CONTROLS.sub(" ", DROPPED.sub("", text))
    # Telegram takes this ring from its letter unless the two are one character.
    return re.sub("(.?)\u030a", lambda found: unicodedata.normalize("NFC", found[0]).replace("\u030a", ""), text)


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


class _Page:
    """The text so far and its marks. Markdown's tokens nest, so the marks do too."""

    def __init__(self, *, marked: bool = True) -> None:
        self._marked = marked
        self.marks: list[Mark] = []
        self._pieces: list[str] = []
        self._length = 0
        self._open: list[Mark] = []
        self._items: list[str] = []  # what the lists around here begin their next item with
        self._prefix = ""
        self._line = self._list = self._lists = 0

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def write(self, text: str) -> None:
        text = (cleaned(text) if UNCLEAN.search(text) else text).replace("\t", "    ")
        self._pieces.append(text)
        self._length += len(text)

    def open(self, kind: str, url: str | None = None) -> None:
        """Begin a mark. One within its like, or a link within a link, has no kind: it is not shown."""
        shown = self._marked and all(mark.kind != kind for mark in self._open)
        self._open.append(Mark(kind if shown else "", self._length, self._length, url))

    def close(self) -> None:
        self._end(self._open.pop())

    def code(self, text: str, kind: str = "code", language: str | None = None) -> None:
        """Code holds no mark, and only quotes hold it: what is open is ended before it and goes on behind it."""
        if self._within_link():
            return self.write(text)
        for mark in self._open:
            if mark.kind not in QUOTES:
                self._end(mark)
        start = self._length
        self.write(text)
        self.marks.append(Mark(kind, start, self._length, None, language))
        self._open = [mark if mark.kind in QUOTES else mark._replace(start=self._length) for mark in self._open]

    def _end(self, mark: Mark) -> None:
        if mark.kind and mark.start < self._length:
            self.marks.append(mark._replace(end=self._length))

    # Blocks

    def blocks(self, tokens: Iterator[Token]) -> None:
        """Write all blocks of ``tokens``."""
        for token in tokens:
            match token.type:
                case "inline":
                    self._paragraph(token)
                case "paragraph_open":
                    self._begin(token)
                case "heading_open" | "heading_close":
                    self._heading(token)
                case "hr" | "raw":
                    self._begin(token)
                    self.write(token.content.strip("\n") if token.type == "raw" else "————————")
                case "fence" | "code_block":
                    self._code_block(token)
                case "table_open":
                    self._table(token, tokens)
                case "blockquote_open":
                    self.open("blockquote")
                case "blockquote_close":
                    self.close()
                case _:
                    self._listed(token)

    def _heading(self, token: Token) -> None:
        kinds = ("bold", "underline") if token.tag in ("h1", "h2") else ("bold",)
        if token.type == "heading_open":
            self._begin(token)
        for kind in kinds:
            self.open(kind) if token.type == "heading_open" else self.close()

    def _begin(self, token: Token) -> None:
        """The space before a block: an empty line where the source has one, but none within a list."""
        first, last = token.map or (self._line, self._line)
        if self._length:
            self.write("\n" if first <= self._line or (self._list and self._list == self._lists) else "\n\n")
        self._list = self._lists if self._items else 0
        self._line = last
        self.write(self._prefix)
        self._prefix = ""

    def _listed(self, token: Token) -> None:
        """Lists: their items begin with a bullet or a number, two spaces further in at each level."""
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                self._lists += not self._items
                self._items.append("  " * len(self._items))
            case "bullet_list_close" | "ordered_list_close":
                self._items.pop()
                self._lists += not self._items
            case "list_item_open":
                self._prefix += self._items[-1] * (not self._prefix) + (f"{token.info}. " if token.info else "• ")
            case "list_item_close" if self._prefix:
                self._begin(token)

    def _paragraph(self, token: Token) -> None:
        children = token.children or []
        ticked = TASK.match(children[0].content) if children and self._pieces[-1:] else None
        if ticked and self._pieces[-1].endswith("• "):
            self._pieces[-1] = self._pieces[-1].replace("•", "☐" if ticked[1] == " " else "✅")
            children[0].content = children[0].content[ticked.end() :]
        self.inline(children)

    def _code_block(self, token: Token) -> None:
        content = token.content.rstrip("\n")
        if content.strip():
            self._begin(token)
            found = LANGUAGE.match(token.info)
            self.code(content, "pre", found[1] if found else None)

    def _table(self, table: Token, tokens: Iterator[Token]) -> None:
        """A grid in code; a wide one is a list."""
        rows: list[list[Token]] = []
        aligned: list[str] = []
        more: list[str] = []
        for token in tokens:
            match token.type:
                case "tr_open":
                    rows.append([])
                    more = token.meta["more_cells"]
                case "th_open":
                    aligned.append(str(token.attrs.get("style", "")).removeprefix("text-align:"))
                case "inline":
                    rows[-1].append(token)
                case "tr_close":
                    rows[-1] += [token for cell in more for token in parser().parseInline(cell, {"layout": ()})]
                case "table_close":
                    break
        self._begin(table)
        grid = laid_out([[_cell(token) for token in row] for row in rows], aligned)
        self.code(grid, "pre") if grid else self._table_list(rows)

    def _table_list(self, rows: Sequence[Sequence[Token]]) -> None:
        """Each row as an item: its first cell in bold, then a line for each other cell, with the name of its column."""
        names = [_cell(token) for token in rows[0]] if rows else []
        for number, row in enumerate(rows[1:]):
            self.write("\n\n" if number else "")
            for column, token in enumerate(row):
                self._table_cell(column, names[column] if column < len(names) else "", token)
        if len(rows) == 1:
            self.write(" · ".join(names))

    def _table_cell(self, column: int, name: str, token: Token) -> None:
        if column and not name and not _cell(token):
            return
        self.write("\n  " if column else "• ")
        self.write(f"{' '.join(name.split())}: " if name else "")
        if column:
            return self.inline(token.children or ()) if _cell(token) else self.write("–")
        self.open("bold")
        self.inline(token.children or ())
        self.close()

    # Within a paragraph

    def inline(self, tokens: Iterable[Token]) -> None:
        """Write all inline tokens. A link that Telegram would refuse is its text with the address behind it."""
        links: list[tuple[str, int]] = []
        for token in tokens:
            match token.type:
                case "softbreak" | "hardbreak":
                    self.write("\n")
                case "code_inline" | "formula":
                    self.code(token.content, token.meta.get("kind", "code"))
                case "em_open" | "strong_open" | "s_open" | "mark_open":
                    self.open(token.meta.get("kind") or SIMPLE[token.tag])
                case "em_close" | "strong_close" | "s_close" | "mark_close":
                    self.close()
                case "link_open":
                    links.append(self._link(str(token.attrs["href"])))
                case "link_close":
                    self._linked(*links.pop())
                case "image":
                    self.write("🖼 ")
                    url, start = self._link(str(token.attrs["src"]))
                    self.inline(token.children or ())
                    self._linked(url, start)
                case _:
                    self.write(token.content)

    def _link(self, url: str) -> tuple[str, int]:
        self.open("text_link" if linkable(url) else "", url)
        return url, len(self._pieces)

    def _linked(self, url: str, start: int) -> None:
        said = "".join(self._pieces[start:]).strip()
        refused = not self._within_link() and url.removeprefix("mailto:") not in said
        if not said:
            self.write(url)
        self.close()
        if said and refused:
            self.write(f" ({url})")

    def _within_link(self) -> bool:
        return any(mark.kind == "text_link" for mark in self._open)


def _cell(token: Token) -> str:
    """A cell's text; links have their address behind them."""
    page = _Page(marked=False)
    page.inline(token.children or ())
    return page.text.strip()


def laid_out(rows: Sequence[Sequence[str]], aligned: Sequence[str]) -> str:
    """The table as a grid; empty if it is too wide for that. ``rows[0]`` is the heading; ``aligned`` says left, right,
    center or nothing for each column. Lines within a cell end in ``\\n``."""
    cells = [[cell.split("\n") for cell in row] for row in rows]
    columns = list(zip_longest(*cells, fillvalue=[""]))
    widths = [max(cell_len(line) for cell in column for line in cell) for column in columns]
    if sum(widths) + 3 * (len(widths) - 1) > GRID_LIMIT:
        return ""
    lines = [line for row in cells for line in _lines(row, widths, aligned)]
    lines.insert(max(len(cell) for cell in cells[0]), "─┼─".join("─" * width for width in widths))
    return "\n".join(lines)


def _lines(row: Sequence[Sequence[str]], widths: Sequence[int], aligned: Sequence[str]) -> list[str]:
    full = [*row, *([[""]] * (len(widths) - len(row)))]
    sides = [*aligned, *([""] * (len(widths) - len(aligned)))]
    return [
        " │ ".join(_padded(line, width, side) for line, width, side in zip(line, widths, sides, strict=True)).rstrip()
        for line in zip_longest(*full, fillvalue="")
    ]


def _padded(text: str, width: int, side: str) -> str:
    spare = width - cell_len(text)
    left = {"right": spare, "center": spare // 2}.get(side, 0)
    return " " * left + text + " " * (spare - left)
