"""What users write, as Markdown: Telegram takes the marks out of the text and sends them as entities."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from telegram import MessageEntity

QUOTES = (MessageEntity.BLOCKQUOTE, MessageEntity.EXPANDABLE_BLOCKQUOTE)
BLOCKS = (MessageEntity.PRE, *QUOTES)


def markdown_source(text: str, entities: Sequence[MessageEntity], without: Collection[MessageEntity] = ()) -> str:
    """``text`` with the marks that say something: code and its language, quotes, what is struck through, and the
    addresses that links hide; and without the pieces ``without``."""
    return _Source(text, without).between(0, len(text.encode("utf-16-le", "replace")) // 2, _outer_first(entities))


class _Source:
    def __init__(self, text: str, without: Collection[MessageEntity]) -> None:
        self.text, self.without = text, without
        self._units = text.encode("utf-16-le", "replace")

    def between(self, start: int, end: int, entities: Sequence[MessageEntity]) -> str:
        """The text from ``start`` to ``end`` (UTF-16 units), which holds ``entities``, outer ones first."""
        written, at = "", start
        for number, entity in enumerate(entities):
            last = min(entity.offset + entity.length, end)
            if entity.offset < at or last <= entity.offset:  # within the one before
                continue
            inner = [one for one in entities[number + 1 :] if entity.offset <= one.offset < last]
            marked = self._marked(entity, self.between(entity.offset, last, inner))
            written += self._plain(at, entity.offset)
            if entity.type in BLOCKS:
                written += "\n" * (written[-1:] not in ("", "\n"))
                marked += "\n" * (self._plain(last, last + 1)[:1] not in ("", "\n"))
            written, at = written + marked, last
        return written + self._plain(at, end)

    def _plain(self, start: int, end: int) -> str:
        return self._units[start * 2 : end * 2].decode("utf-16-le", "replace")

    def _marked(self, entity: MessageEntity, inner: str) -> str:
        if entity in self.without:
            return ""
        if entity.url:
            hidden = entity.url.rpartition("://")[2].rstrip("/") not in self.text
            return f"{inner} ({entity.url})" if hidden else inner
        match entity.type:
            case MessageEntity.PRE:
                fence = _longer_than("```", inner)
                return "\n".join((fence + (entity.language or ""), inner.strip("\n"), fence))
            case MessageEntity.CODE:
                sign, space = _longer_than("`", inner), " " if "`" in inner else ""
                return f"{sign}{space}{inner}{space}{sign}"
            case MessageEntity.STRIKETHROUGH:
                return f"~~{inner}~~"
            case MessageEntity.BLOCKQUOTE | MessageEntity.EXPANDABLE_BLOCKQUOTE:
                return re.sub("^", "> ", inner, flags=re.MULTILINE)
        return inner


def _outer_first(entities: Sequence[MessageEntity]) -> list[MessageEntity]:
    return sorted(entities, key=lambda one: (one.offset, -one.length, one.type not in QUOTES))


def _longer_than(sign: str, text: str) -> str:
    """``sign``, or more backticks than stand together anywhere in ``text``."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return sign if longest < len(sign) else "`" * (longest + 1)
