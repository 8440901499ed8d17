"""Text of others (documents, quotes, forwarded messages, names) as a model may see it: marked as data, and defused."""

from __future__ import annotations

import re

TAGS = ("document", "quoted", "forwarded")
DELIMITER = re.compile(rf"<(\s*/?\s*)(?=(?:{'|'.join(TAGS)})\b)", re.IGNORECASE)
ATTRIBUTE = str.maketrans({"'": "’", '"': "”", "<": "‹", ">": "›"})
ATTRIBUTE_CHARS = 200


def as_data(tag: str, text: str, **attributes: str) -> str:
    """``text`` between ``<tag>`` and ``</tag>``, one of TAGS. Neither the text nor an attribute can close it or open
    another one."""
    named = "".join(f" {name}='{_attribute(value)}'" for name, value in attributes.items())
    return f"<{tag}{named}>\n{defused(text)}\n</{tag}>"


def defused(text: str) -> str:
    """``text`` in which no tag of TAGS opens or closes, for text that is marked as data by other means, such as the
    result of a tool."""
    return DELIMITER.sub(r"‹\1", text)


def _attribute(value: str) -> str:
    """``value`` on one line, without quotes and angle brackets."""
    shown = "".join(char if char.isprintable() else " " for char in value.translate(ATTRIBUTE))
    return " ".join(shown.split())[:ATTRIBUTE_CHARS]
