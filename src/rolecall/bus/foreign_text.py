"""Text of others (documents, quotes, forwarded messages, names) as a model may see it: marked as data, and defused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TAGS = ("document", "quoted", "forwarded")
DELIMITER = re.compile(rf"<(\s*/?\s*)(?=(?:{'|'.join(TAGS)})\b)", re.IGNORECASE)
ATTRIBUTE = str.maketrans({"'": "’", '"': "”", "<": "‹", ">": "›"})
ATTRIBUTE_CHARS = 200
IMAGES = "(an image)"


def as_data(tag: str, text: str, **attributes: str) -> str:
    """``text`` between ``<tag>`` and ``</tag>``, one of TAGS. Neither the text nor an attribute can close it or open
    another one."""
    named = "".join(f" {name}='{_attribute(value)}'" for name, value in attributes.items())
    return f"<{tag}{named}>\n{defused(text)}\n</{tag}>"


def defused(text: str) -> str:
    """``text`` in which no tag of TAGS opens or closes, for text that is marked as data by other means, such as the
    result of a tool."""
    return DELIMITER.sub(r"‹\1", text)


REFERENCES = ("quoted", "forwarded")
"""Fields of a payload with what the message refers to."""


def context_of(payload: Mapping[str, Any]) -> list[str]:
    """What a message refers to, as data: the message it replies to (``quoted``, {from, text}), and who sent its images
    first, if somebody else did (``forwarded``)."""
    quoted, origin, found = payload.get("quoted"), payload.get("forwarded"), []
    if origin and payload.get("images"):
        found.append(as_data("forwarded", IMAGES, **{"from": str(origin)}))
    if isinstance(quoted, dict) and quoted.get("text"):
        found.append(as_data("quoted", str(quoted["text"]), **{"from": str(quoted.get("from") or "you")}))
    return found


def _attribute(value: str) -> str:
    """``value`` on one line, without quotes and angle brackets."""
    shown = "".join(char if char.isprintable() else " " for char in value.translate(ATTRIBUTE))
    return " ".join(shown.split())[:ATTRIBUTE_CHARS]
