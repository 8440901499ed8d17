"""An answer in Markdown as the messages that Telegram takes: text and entities, never a parse mode.

Shown as Telegram can: headings bold, tables in columns, code with its language, links, lists, quotes, spoilers. Lost is
only what Markdown does not show: the signs themselves, numbers of list items (they are counted), what stands behind a
fence's language, titles of links. HTML is shown as it is written but for pairs of tags for looks and line breaks.

telegramify-markdown reads the Markdown; what it is given, its tables, links and the cuts are ours. Measured on 6,000
made-up answers (tests/unit/test_telegram_text.py): as it comes it loses words in 2,235 (`List<String>`, the cells of
uneven rows) and has messages that Telegram would refuse or change in most; this here in none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rolecall.frontends.telegram_markdown import formatted
from rolecall.frontends.telegram_parts import TEXT_LIMIT, Entity, TextPart, parts_of

if TYPE_CHECKING:
    from telegram import MessageEntity

__all__ = ["TEXT_LIMIT", "Entity", "TextPart", "message_entities", "partial", "plain", "render"]

FENCE = re.compile(r"^[ >]*(`{3,}|~{3,})", re.MULTILINE)
GROWING_LINK = re.compile(r"!?\[([^\]\n]*)(?:\](?:\([^)\s]*)?)?$")
MORE = "…"


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
