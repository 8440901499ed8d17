"""The frozen message that travels, its encoding and its limits."""

from __future__ import annotations

import hashlib
import re
import time
import unicodedata
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from rolecall.bus.foreign_text import context_of
from rolecall.errors import DecodeError, EnvelopeTooLarge, NewerVersion, RolecallError, UnknownRole

VERSION = 1
MAX_BYTES = 256 * 1024
MAX_TEXT_BYTES = 64 * 1024
MAX_DEPTH = 32
LISTS = ("images", "files")
"""What a payload may list besides its text; see blobs.py."""
UNREAD = "unread"
"""In the payload: the files that could not be read, each a name or {name, from}."""
JOINED = (*LISTS, UNREAD)
"""The lists of a message that joins another turn, which are added to those of the turn."""
SCHEDULED = "scheduled"
"""In the payload: which schedule began the turn, and how late."""
SAID = "said"
"""In ``meta``: the text before a role changed it."""
UNWRITABLE = (UnicodeEncodeError, TypeError, RecursionError)
"""What the encoder raises for a value that is no JSON."""
CUT_MARK = " … [cut]"
ROLE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
DESTINATION = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}(@[^\s@]{1,120})?")


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The message of a turn as it travels. Immutable: each hop makes a new one.

    ``turn`` and ``hops`` travel outside the JSON; the bus sets them when it delivers the envelope. ``meta`` is for
    Rolecall itself, such as the language of the front end; every version passes it on unchanged, as it does ``others``:
    the fields of the JSON that it does not know.
    """

    conversation: str
    payload: dict[str, Any]
    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    turn: str = ""
    role: str = "manager"
    route: tuple[str, ...] = ()
    reply_to: str = ""
    priority: int = 50
    attempt: int = 0
    hops: int = 0
    created: int = msgspec.field(default_factory=lambda: time.time_ns() // 1_000_000)
    meta: dict[str, Any] = {}
    v: int = VERSION
    others: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The user's words, or the answer's."""
        text = self.payload.get("text", "")
        return text if isinstance(text, str) else ""

    @property
    def words(self) -> str:
        """The text without the name of its sender, which stands before it in a group: ``sender`` in the payload."""
        sender = self.payload.get("sender")
        return self.text.removeprefix(f"{sender.get('name')}: ") if isinstance(sender, dict) else self.text

    @property
    def said(self) -> str:
        """The user's own words, also where a role has made another text of them."""
        return str(self.meta.get(SAID) or self.text)

    @property
    def answered(self) -> bool:
        """Whether ``reply`` made this envelope, so that nothing is left to route."""
        return self.role == ""

    def via(self, *roles: str, **changes: Any) -> Envelope:
        """Route to ``roles`` in order instead of the rest of the route, with ``changes`` merged into the payload.

        ``role@process`` addresses one process. Raises UnknownRole for an invalid name.
        """
        if not roles:
            raise UnknownRole("via() needs at least one role")
        for role in roles:
            if not isinstance(role, str) or not DESTINATION.fullmatch(role):
                raise UnknownRole(f"{role!r} is not a role name: expected up to 40 characters of a-z 0-9 _ -")
        return self._next(role=roles[0], route=roles[1:], payload={**self.payload, **changes})

    def forward(self, **changes: Any) -> Envelope:
        """Send on to the next role of the route, with ``changes`` merged into the payload."""
        if not self.route:
            raise UnknownRole(f"{self.role} cannot forward: the route has no further role")
        return self._next(role=self.route[0], route=self.route[1:], payload={**self.payload, **changes})

    def reply(self, answer: Any, **extra: Any) -> Envelope:
        """End the turn with ``answer``: a text, or an Answer with its model and token counts. Texts are Markdown;
        ``plain=True`` says that this one is not, such as one that repeats what the user wrote. A text over 64 kB of
        UTF-8 is cut, and its ``finish`` is ``length``. Raises TypeError for any other answer."""
        payload = {"text": answer} if isinstance(answer, str) else _answer_fields(answer)
        for name in ("calls", "logprobs", "shortened"):
            if not payload.get(name):
                payload.pop(name, None)
        payload |= extra
        if not isinstance(payload["text"], str):
            raise TypeError(f"reply(text={payload['text']!r}) is invalid: expected a text")
        whole = payload["text"]
        payload["text"] = cut(whole)
        if len(payload["text"]) < len(whole):
            payload["finish"] = "length"
        return self._next(role="", route=(), payload=payload)

    def _next(self, **changes: Any) -> Envelope:
        text, first = changes["payload"].get("text"), self.text.strip()
        if changes["role"] and first and SAID not in self.meta and isinstance(text, str) and text.strip() != first:
            changes["meta"] = {**self.meta, SAID: first}
        return msgspec.structs.replace(self, hops=self.hops + 1, attempt=0, **changes)


def _answer_fields(answer: object) -> dict[str, Any]:
    """Those of an Answer, or of what is like one. Raises TypeError."""
    try:
        fields = msgspec.to_builtins(answer)
    except TypeError:
        fields = None
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise TypeError(f"reply() got a value of type {type(answer).__name__}: expected a text or a model's Answer")
    return fields


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a message adds to the turn that it joined."""

    text: str = ""
    images: list[Any] = []
    files: list[Any] = []
    unread: list[Any] = []


_encoder = msgspec.json.Encoder()


_decoder = msgspec.json.Decoder(Envelope)


_parts_decoder = msgspec.json.Decoder(list[str | Part])


_any_decoder = msgspec.json.Decoder(dict[str, Any])


def encode(envelope: Envelope) -> bytes:
    """JSON of ``envelope``. Raises EnvelopeTooLarge over 256 kB, and for text over 64 kB of UTF-8; RolecallError for a
    payload that is no JSON or nested deeper than MAX_DEPTH."""
    try:
        raw = _encoder.encode(_flat(envelope) if envelope.others else envelope)
    except UNWRITABLE as error:
        raise RolecallError(f"this envelope cannot be written as JSON: {_unwritable(envelope)}{error}") from None
    if len(raw) > MAX_BYTES:
        raise EnvelopeTooLarge(f"the envelope has {len(raw):,} bytes; the limit is {MAX_BYTES:,}")
    if len(raw) > MAX_TEXT_BYTES and len(envelope.text.encode()) > MAX_TEXT_BYTES:
        raise EnvelopeTooLarge(f"the text is longer than {MAX_TEXT_BYTES // 1024} kB")
    if _openings(raw) > MAX_DEPTH and depth_of(_any_decoder.decode(raw)["payload"]) > MAX_DEPTH:
        raise RolecallError(f"the payload is nested deeper than {MAX_DEPTH} levels")
    return raw


def _unwritable(envelope: Envelope) -> str:
    """Which field of ``envelope`` cannot be written, as the beginning of a message; empty if it is not known."""
    for of, fields in (("payload", envelope.payload), ("meta", envelope.meta)):
        for name, value in fields.items():
            try:
                _encoder.encode({name: value})
            except UNWRITABLE:
                return f"{of}[{name!r}]: "
    return ""


def encode_part(envelope: Envelope) -> bytes:
    """JSON of what ``envelope`` adds to a turn that it joins: its text with what it refers to, and its lists. It
    contains no newline."""
    lists = {name: found for name in JOINED if (found := listed(envelope.payload, name))}
    text = part_text(envelope.payload)
    return _encoder.encode(Part(text, **lists) if lists else text)


def part_text(payload: Mapping[str, Any]) -> str:
    """The text of a message as a part of another turn, after what it refers to."""
    text = payload.get("text", "")
    return "\n\n".join([*context_of(payload), *([text] if isinstance(text, str) and text else [])])


def decode(raw: bytes, *, turn: str = "", hops: int = 0, parts: bytes = b"") -> Envelope:
    """The envelope in ``raw``. ``parts`` are the messages that joined it, as JSON array items, each a text or a Part:
    texts are joined by line ends, images and files are concatenated. Raises DecodeError."""
    if len(raw) > MAX_BYTES:
        raise DecodeError(f"{len(raw):,} bytes; the limit is {MAX_BYTES:,}", raw)
    try:
        envelope = _read(raw)
        if envelope.v > VERSION:
            raise NewerVersion(f"written by version {envelope.v}, this one reads {VERSION}", raw)
        check_conversation(envelope.conversation)
        payload = _merged(envelope.payload, parts) if parts else envelope.payload
        # Most have fewer brackets than levels are allowed, which is cheap to tell.
        if _openings(raw) + _openings(parts) > MAX_DEPTH and max(map(depth_of, (payload, envelope.others))) > MAX_DEPTH:
            raise DecodeError(f"nested deeper than {MAX_DEPTH}", raw)
    except NewerVersion:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, RolecallError) as error:
        raise _decode_failure(raw, error) from None
    return msgspec.structs.replace(envelope, turn=turn, hops=hops, payload=payload)


def _read(raw: bytes) -> Envelope:
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError:
        found = _any_decoder.decode(raw)
        others = {name: found.pop(name) for name in found.keys() - set(Envelope.__struct_fields__)}
        if not others:
            raise
        return msgspec.structs.replace(msgspec.convert(found, Envelope), others=others)


def _flat(envelope: Envelope) -> dict[str, Any]:
    """The JSON object of an envelope that has fields of another version."""
    known: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(envelope, others={}))
    return {**known, **envelope.others}


def check_conversation(conversation: str) -> str:
    """``conversation`` if it is a valid id: 1 to 200 characters, no control characters. Raises RolecallError."""
    if not isinstance(conversation, str) or not 0 < len(conversation) <= 200:
        raise RolecallError("a conversation id is a text of 1 to 200 characters")
    if not conversation.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in conversation):
        raise RolecallError("a conversation id has no control characters")
    return conversation


def encodable(text: str) -> str:
    """``text`` with a question mark for each half of a surrogate pair, which UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def cut(text: str) -> str:
    """``text``, cut to 64 kB of UTF-8 with a visible mark at the end."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= MAX_TEXT_BYTES:
        return text if text.isascii() else raw.decode()
    return raw[: MAX_TEXT_BYTES - len(CUT_MARK.encode())].decode("utf-8", "ignore") + CUT_MARK


def short_turn_id(conversation: str, turn: str) -> str:
    """The turn ID for users and ``rolecall logs``: six hex digits of the conversation's SHA-256, and the turn."""
    return f"{hashlib.sha256(conversation.encode()).hexdigest()[:6]}-{turn}"


def _merged(payload: dict[str, Any], raw: bytes) -> dict[str, Any]:
    parts = [Part(item) if isinstance(item, str) else item for item in _parts_decoder.decode(b"[" + raw + b"]")]
    first, merged = payload.get("text", ""), dict(payload)
    texts = [first if isinstance(first, str) else "", *(part.text for part in parts)]
    merged["text"] = "\n".join(text for text in texts if text)
    for name in JOINED:
        if found := [*listed(payload, name), *(item for part in parts for item in getattr(part, name))]:
            merged[name] = found
    return merged


def listed(payload: Mapping[str, Any], name: str) -> list[Any]:
    """The list ``name`` of ``payload``; empty if that is no list."""
    found = payload.get(name)
    return found if isinstance(found, list) else []


def _decode_failure(raw: bytes, error: Exception) -> DecodeError:
    try:
        version = _any_decoder.decode(raw).get("v", VERSION)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        version = VERSION
    if isinstance(version, int) and version > VERSION:
        return NewerVersion(f"written by version {version}, this one reads {VERSION}", raw)
    return DecodeError(f"no envelope: {error}", raw)


def _openings(raw: bytes) -> int:
    return raw.count(b"{") + raw.count(b"[")


def depth_of(value: Any) -> int:
    """How deep dicts and lists are nested in ``value``; counting ends beyond MAX_DEPTH."""
    deepest, level = 0, [value]
    while level and deepest <= MAX_DEPTH:
        deepest += 1
        level = [child for item in level for child in _children(item)]
    return deepest


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []
