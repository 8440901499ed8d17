"""Reads the bytes that a provider sends as JSON objects, whatever shape the stream has.

The one place that knows server-sent events, lines of JSON, and a single JSON document or array in place of a stream.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

MAX_CHARS = 16 * 1024 * 1024
"""Longest document. What is longer is not an answer."""
LINE_END = re.compile(r"\r\n|\r|\n")
FIELD = re.compile(r"(data|event|id|retry)?:")
LAST = ("[DONE]", '"[DONE]"', "DONE")
THINKING_PARTS = ("thinking", "reasoning", "redacted_thinking", "reasoning_content", "thought", "summary_text")
SURROGATE = re.compile("[\ud800-\udfff]")


class NotTheProtocol(ValueError):
    """Raised for bytes that are no answer; its text says what they are, without quoting them."""


class Documents:
    """The JSON objects in a body that comes in pieces. ``ended`` is set by the marker ``[DONE]``."""

    def __init__(self) -> None:
        self.ended = False
        self.any = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._after_return = False
        self._data = ""
        self._raw = ""

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The objects that ``piece`` completes. Raises NotTheProtocol."""
        yield from self._lines(self._decoder.decode(piece))
        if len(self._text) + len(self._data) + len(self._raw) > MAX_CHARS:
            raise NotTheProtocol(f"a document of more than {MAX_CHARS // 1024**2} MB")

    def finish(self) -> Iterator[dict[str, Any]]:
        """What the end of the body completes. Raises NotTheProtocol if nothing in it was an answer."""
        yield from self._lines(self._decoder.decode(b"", final=True) + "\n")
        rest = (self._raw + self._data).strip(" \t\r\n,[]")
        if self._data and not self.any:
            raise NotTheProtocol(_described(self._data))
        if rest and not self.any:
            raise NotTheProtocol(_described(rest))

    def _lines(self, more: str) -> Iterator[dict[str, Any]]:
        if self._after_return and more:
            more, self._after_return = more.removeprefix("\n"), False
        self._text = (self._text + more) if self._text else more
        *lines, rest = LINE_END.split(self._text)
        self._after_return = self._text.endswith("\r")
        self._text = rest
        for line in lines:
            yield from self._line(line if self.any or self._raw else line.removeprefix("\ufeff"))

    def _line(self, line: str) -> Iterator[dict[str, Any]]:
        if self._raw or not (field := FIELD.match(line)):
            yield from self._plain(line)
        elif field[1] == "data":
            value = line[field.end() :].strip()
            if value in LAST:
                self.ended = self.any = True
                return
            self._data = f"{self._data}\n{value}" if self._data else value
            # At once, not at the empty line: some servers send none between two events.
            if (found := _parsed(self._data)) is not None:
                self._data = ""
                yield from self._objects(found)

    def _plain(self, line: str) -> Iterator[dict[str, Any]]:
        """A line that is no field of an event: empty, or of JSON."""
        line = line.strip()
        if not line:
            if self._data:
                raise NotTheProtocol(_described(self._data))
            return
        self._raw = f"{self._raw}\n{line}" if self._raw else line.lstrip("[,]")
        self._raw = self._raw.lstrip()
        if self._raw.startswith("<"):
            raise NotTheProtocol(_described(self._raw))
        if line.endswith(("}", "]", ",")) and (found := _parsed(self._raw.rstrip(",] \t"))) is not None:
            self._raw = ""
            yield from self._objects(found)
        elif self._raw and not self._raw.startswith("{"):
            raise NotTheProtocol(_described(self._raw))

    def _objects(self, found: object) -> Iterator[dict[str, Any]]:
        for one in found if isinstance(found, list) else [found]:
            if not isinstance(one, dict):
                raise NotTheProtocol(f"JSON that is no object but {type(one).__name__}")
            self.any = True
            yield one


async def objects_in(pieces: AsyncIterator[bytes], reader: Documents) -> AsyncGenerator[dict[str, Any] | None]:
    """The objects in a streamed body, and None before those of each piece, as a sign of life. Raises NotTheProtocol."""
    async for piece in pieces:
        yield None
        for document in reader.feed(piece):
            yield document
        if reader.ended:
            return
    for document in reader.finish():
        yield document


def _parsed(text: str) -> object:
    """The JSON in ``text``; None if it is none, or null."""
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _described(text: str) -> str:
    return "a web page (HTML) instead of JSON; check the address" if _is_html(text) else "no JSON"


def _is_html(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n").startswith("<")


def in_words(text: str) -> str:
    """``text`` of an error body, with a web page only named."""
    return "a web page (HTML) instead of JSON" if _is_html(text) else text


def member(value: object, *path: str) -> Any:
    """What is at ``path`` in nested objects; None where something is missing or no object."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def object_of(value: object) -> Mapping[str, Any]:
    """An object where one belongs; empty for null, the first of a list. Raises NotTheProtocol for anything else."""
    if value is None or value == []:
        return {}
    if isinstance(value, list):
        value = value[0]
    if isinstance(value, Mapping):
        return value
    raise NotTheProtocol(f"{type(value).__name__} where an object belongs")


def objects_of(value: object) -> list[Mapping[str, Any]]:
    """The objects in a list, or the single one; empty for anything else."""
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, Mapping)]


def text_of(value: object) -> str:
    """The text in a field: a string, or the text parts of a list; what a model thinks is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(text_of(part) for part in value[:10_000] if not isinstance(part, list))
    if isinstance(value, Mapping):
        if str(value.get("type", "")).lower() in THINKING_PARTS or value.get("thought") is True:
            return ""
        text = value.get("text")
        return text_of(text if isinstance(text, str) else member(text, "value"))
    return ""


def word_of(value: object) -> str:
    """A field that is one word, such as a finish reason; empty for anything else."""
    return value if isinstance(value, str) else ""


def count_of(*values: object) -> int:
    """The sum of ``values`` that are counts of tokens; others, null among them, are left out."""
    return sum(_count(value) for value in values)


def _count(value: object) -> int:
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return min(max(0, int(value)), 2**40)


def whole_text(text: str) -> str:
    """``text`` with the halves of its surrogate pairs joined, and a replacement for one that has no other half."""
    if not SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
