"""Questions that handlers ask people, and their answers."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.turn import TurnBlock, quoted, root_of, turn_block
from rolecall.errors import RolecallError
from rolecall.redis.scripts import script

PACKAGE = "rolecall.bus"
ANSWER = script(
    PACKAGE, "scripts/step/answer", TurnBlock,
    names="active deferred steps asker key hop steps_stem steps_limit result told said instance",
)  # fmt: skip
QUESTION_ID = re.compile(r"(c?\d+(?:\.\d+)*)-(\d+)-([\d:/]{1,100})", re.ASCII)
CONFIRM = ("yes", "no")
"""The options of a question to confirm; front ends have words for them in more languages."""
MOST_OPTIONS = 12
ASKED_CHARS = 200
"""Characters of a question in the record of its answer."""
Answered = Literal["OK", "LATE", "GONE", "FORBIDDEN", "INVALID"]
"""What became of an answer. LATE: another one came first, or its time was over. GONE: there is no such question any
more. FORBIDDEN: the question is for someone else. INVALID: it has no such option. Only OK changed anything."""


class UserQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A question to people, as front ends and followers get it. ``style`` is ``confirm``, whose options are yes and no,
    or ``choose``. Who is named in ``who`` may answer, by default the user of the turn. ``default`` is the number of the
    option that counts when nobody has answered within ``seconds``; -1 is none of them."""

    kind: str = "asked"
    id: str
    text: str
    options: tuple[str, ...]
    style: Literal["confirm", "choose"] = "choose"
    who: tuple[str, ...] = ()
    default: int = -1
    seconds: float = 0.0
    language: str = ""
    """The user's, as far as the front end said it."""


class QuestionPlace(NamedTuple):
    """Where the question of an id stands: the turn whose handler asked, its hop, and the key of the step."""

    turn: str
    hop: int
    key: str

    @classmethod
    def parse(cls, question: str) -> QuestionPlace | None:
        """The place of an id that ``str`` made; None for anything else."""
        found = QUESTION_ID.fullmatch(question)
        return cls(found[1], int(found[2]), found[3]) if found else None

    def __str__(self) -> str:
        return f"{self.turn}-{self.hop}-{self.key}"


async def find_question(bus: Bus, conversation: str, question: str) -> UserQuestion | None:
    """The question with that id while its handler waits for the answer or has just got it; None otherwise."""
    place = QuestionPlace.parse(question)
    if place is None:
        return None
    key = bus.shard(conversation).steps(conversation, place.turn)
    hop, raw = await bus.server.fetch("HMGET", key, "h", place.key)
    if raw is None or int(hop or -1) != place.hop:
        return None
    try:
        return msgspec.convert(msgspec.json.decode(raw).get("v"), UserQuestion)
    except (msgspec.ValidationError, AttributeError):
        return None


async def answer(
    bus: Bus, conversation: str, question: str, choice: int, *, user: str = "", instance: str = "front"
) -> Answered:
    """Answer a question with the option number ``choice``, from 0, for ``user``. Atomic; the first answer counts."""
    place, found = QuestionPlace.parse(question), await find_question(bus, conversation, question)
    if place is None or found is None:
        return "GONE"
    allowed = found.who or await _users_of(bus, conversation, place.turn)
    if allowed and user not in allowed:
        return "FORBIDDEN"
    if not 0 <= choice < len(found.options):
        return "INVALID"
    return await _settle(bus, conversation, place, found, choice, user, instance)


async def expire(bus: Bus, conversation: str, question: str, instance: str) -> Answered:
    """Nobody has answered in time: the default counts, unless an answer came first. Raises RolecallError for an id that
    is none."""
    place, found = QuestionPlace.parse(question), await find_question(bus, conversation, question)
    if place is None or found is None:
        raise RolecallError(f"there is no question {question!r}")
    return await _settle(bus, conversation, place, found, found.default, "", instance, expired=True)


async def _users_of(bus: Bus, conversation: str, turn: str) -> tuple[str, ...]:
    """The user of the turn that the handler works for; empty if it has none, then the front end decides."""
    user = await bus.server.fetch("HGET", bus.shard(conversation).journal(conversation), f"{root_of(turn)}:u")
    return (user.decode(),) if user else ()


async def _settle(
    bus: Bus, conversation: str, place: QuestionPlace, question: UserQuestion, choice: int, user: str, instance: str,
    *, expired: bool = False,
) -> Answered:  # fmt: skip
    shard = bus.shard(conversation)
    said = f"{quoted(question.options[choice]) if choice >= 0 else 'nothing'} to {quoted(question.text[:ASKED_CHARS])}"
    who = f" by {user}" if user else ""
    told: dict[str, Any] = {"id": str(place), "choice": choice, "text": question.options[choice] if choice >= 0 else ""}
    verdict: bytes = await bus.server.run(
        ANSWER, turn_block(bus, shard, conversation, root_of(place.turn)), active=shard.active, deferred=shard.deferred,
        steps=shard.steps(conversation, place.turn), asker=place.turn, key=place.key, hop=place.hop,
        steps_stem=shard.steps(conversation, ""), steps_limit=bus.settings.steps_kb * 1024,
        result=msgspec.json.encode({"choice": choice, "by": user}), told=msgspec.json.encode(told),
        said=f"{said}, as nobody has answered in time" if expired else f"{said}{who}",
        instance=instance,
    )  # fmt: skip
    return verdict.decode()  # type: ignore[return-value]  # the script answers only these words
