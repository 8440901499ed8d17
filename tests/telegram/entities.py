"""What Telegram does with a text and its entities before it takes them: refuse, clean, trim."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

Entity = dict[str, Any]

LIMITS = {"message": 4096, "message caption": 1024}
"""UTF-16 units, counted when all is cleaned and trimmed."""
SHOWN_ENTITIES = 100
ENTITIES_SIZE = 9500
"""Bytes that all entities of a message may take together (tdlib/telegram-bot-api #165)."""

SPLITTABLE = ("bold", "italic", "underline", "strikethrough", "spoiler")
QUOTES = ("blockquote", "expandable_blockquote")
CODE = ("code", "pre")
TYPES = {
    *SPLITTABLE, *QUOTES, *CODE, "text_link", "text_mention", "custom_emoji", "date_time",
    "mention", "hashtag", "cashtag", "bot_command", "url", "email", "phone_number",
}  # fmt: skip

REMOVED = re.compile("[\r\u2028-\u202e\u030a\u0333\u033f]")
SPACED = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f]")
INVISIBLE = re.compile(
    "[ \\n\u00a0\u1680\u180e\u2000-\u200f\u202e\u202f\u205f\u2800\u3000\ufeff\ufffc\U000e0000-\U000e007f]*"
)


class Refused(Exception):
    """Telegram answers ``code`` with ``description`` (and ``parameters``, as retry_after)."""

    def __init__(self, code: int, description: str, **parameters: Any) -> None:
        super().__init__(description)
        self.code, self.description, self.parameters = code, description, parameters

    def as_json(self) -> dict[str, Any]:
        more = {"parameters": self.parameters} if self.parameters else {}
        return {"ok": False, "error_code": self.code, "description": self.description} | more


def bad(reason: str) -> Refused:
    return Refused(400, f"Bad Request: {reason}")


def utf16(text: str) -> int:
    """The length that Telegram counts."""
    return len(text) + sum(char > "\uffff" for char in text)


def accepted(
    text: str, entities: Iterable[Mapping[str, Any]] = (), what: str = "message"
) -> tuple[str, tuple[Entity, ...]]:
    """The text and the entities as Telegram keeps them: control characters are spaces, some are gone, both ends
    trimmed; entities sorted, without what lies in white space alone.

    Raises Refused as Telegram does, and for one thing that Telegram takes and then drops without a word: entities that
    overlap, or stand within each other where they must not. A test wants to know.
    """
    given = [_known(entity) for entity in entities]
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise bad("strings must be encoded in UTF-8")
    spans = _spans(text, given)
    _check_nesting(given)
    clean, spans = _cleaned(text, spans)
    spans = [(last - len(clean[first:last].lstrip(" \n")), last) for first, last in spans]
    start, end = len(clean) - len(clean.lstrip(" \n")), len(clean.rstrip(" \n"))
    start = min([start, *(first for first, last in spans if last > first)])
    clean, spans = clean[start:end], [(max(0, a - start), min(b, end) - start) for a, b in spans]
    if INVISIBLE.fullmatch(clean):
        raise bad("message text is empty")
    if utf16(clean) > LIMITS[what]:
        raise bad(f"{what} is too long")
    kept = _kept(clean, given, spans)
    if sum(map(size, kept)) > ENTITIES_SIZE:
        raise bad("ENTITIES_TOO_LONG")
    return clean, tuple(kept)


def size(entity: Mapping[str, Any]) -> int:
    """About the bytes that one entity takes on the wire."""
    return 16 + len((entity.get("url") or "").encode()) + len((entity.get("language") or "").encode())


def _known(entity: Mapping[str, Any]) -> Entity:
    if entity.get("type") not in TYPES:
        raise bad("can't parse entities: unsupported type specified")
    for name in ("offset", "length"):
        if not isinstance(entity.get(name), int):
            raise bad(f"can't parse entities: can't find field \"{name}\"")
        if not 0 <= entity[name] <= 1_000_000:
            raise bad(f"receive an entity with incorrect {name} {entity[name]}")
    if entity["type"] == "text_link":
        check_link(entity.get("url") or "")
    return dict(entity)


def check_link(url: str) -> None:
    """Raise Refused unless Telegram makes a link of ``url``: http, https or tg, and a host that has a dot."""
    if re.match(r"(tg|ton|tonsite)://", url, re.IGNORECASE):
        return
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise bad(f"entity URL '{url}' is invalid: {error}") from None
    if parts.scheme not in ("http", "https") or ("." not in host and ":" not in host) or re.search(r"\s", host):
        raise bad(f"entity URL '{url}' is invalid: wrong HTTP URL")


def _spans(text: str, entities: list[Entity]) -> list[tuple[int, int]]:
    """Where each entity stands, counted in characters. Raises Refused where it stands nowhere."""
    if not entities:
        return []
    index = {0: 0}
    unit = 0
    for position, char in enumerate(text, 1):
        unit += 2 if char > "\uffff" else 1
        index[unit] = position
    found = []
    for entity in entities:
        first, last = entity["offset"], entity["offset"] + entity["length"]
        if first > unit:
            raise bad(f"entity begins after the end of the text at UTF-16 offset {first}")
        if last > unit:
            raise bad(f"entity beginning at UTF-16 offset {first} ends after the end of the text at offset {last}")
        if first not in index:
            raise bad(f"entity begins in a middle of a UTF-16 symbol at UTF-16 offset {first}")
        if last not in index:
            raise bad(f"entity beginning at UTF-16 offset {first} ends in a middle of a UTF-16 symbol at offset {last}")
        found.append((index[first], index[last]))
    return found


def _check_nesting(entities: list[Entity]) -> None:
    open_: list[Entity] = []
    for entity in sorted(entities, key=lambda one: (one["offset"], -one["length"], one["type"] not in QUOTES)):
        end = entity["offset"] + entity["length"]
        open_ = [one for one in open_ if one["offset"] + one["length"] > entity["offset"]]
        for outer in open_:
            if end > outer["offset"] + outer["length"]:
                raise bad(f"can't parse entities: {entity['type']} at {entity['offset']} overlaps {outer['type']}")
            if not _may_hold(outer["type"], entity["type"]):
                raise bad(f"can't parse entities: {entity['type']} at {entity['offset']} within {outer['type']}")
        if entity["length"]:
            open_.append(entity)


def _may_hold(outer: str, inner: str) -> bool:
    if outer in CODE or outer == inner:
        return False
    if outer in QUOTES:
        return inner not in QUOTES
    return inner not in CODE and (outer in SPLITTABLE or inner in SPLITTABLE)


def _cleaned(text: str, spans: list[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    gone = [match.start() for match in REMOVED.finditer(text)]
    if gone:
        spans = [tuple(place - sum(at < place for at in gone) for place in span) for span in spans]  # type: ignore[misc]
    return SPACED.sub(" ", REMOVED.sub("", text)), spans


def _kept(text: str, entities: list[Entity], spans: list[tuple[int, int]]) -> list[Entity]:
    """The entities in order; those around nothing are gone, as are those beyond the hundredth."""
    kept = []
    for entity, (first, last) in zip(entities, spans, strict=True):
        if first < last:
            kept.append({**entity, "offset": utf16(text[:first]), "length": utf16(text[first:last])})
    return sorted(kept, key=lambda one: (one["offset"], -one["length"], one["type"]))[:SHOWN_ENTITIES]


FOUND = re.compile(r"(?P<bot_command>(?<![\w/])/\w{1,64}(?:@\w{3,32})?)|(?P<mention>(?<![\w@])@\w{3,32})", re.ASCII)


def found(text: str) -> tuple[Entity, ...]:
    """The commands and mentions that Telegram marks by itself in what people write."""
    return tuple(
        {"type": match.lastgroup, "offset": utf16(text[: match.start()]), "length": utf16(match.group())}
        for match in FOUND.finditer(text)
    )
