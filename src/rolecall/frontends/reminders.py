"""Reminders as front ends show them: the schedules of a conversation, to list and to delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rolecall.bus.bus import Bus
from rolecall.bus.schedule.schedules import Schedule, schedules_of, unschedule
from rolecall.frontends.texts import say

SHOWN_CHARS = 60
DELETING = ("delete", "del", "rm")


async def reminders_reply(bus: Bus, conversation: str, argument: str, *, instance: str, language: str = "en") -> str:
    """What to say to ``/reminders`` and ``/reminders delete NUMBER``, which it does, where there are no buttons."""
    found = await schedules_of(bus, conversation)
    if wanted := to_delete(argument):
        chosen = reminder_of(found, wanted)
        if chosen is None:
            return say(language, "reminder_unknown")
        await unschedule(bus, conversation, chosen.id, instance=instance)
        return say(language, "reminder_deleted", text=shortened(chosen.text))
    text = reminders_text(found, language)
    return f"{text}\n{say(language, 'reminders_how')}" if found else text


def to_delete(argument: str) -> str:
    """The number or id in ``delete NUMBER``; empty for anything else."""
    word, _, number = argument.partition(" ")
    return number.strip().lower() if word.lower() in DELETING else ""


def reminder_of(found: Sequence[Schedule], wanted: str) -> Schedule | None:
    """The reminder with that number in the list, or with that id."""
    return next((one for place, one in enumerate(found, 1) if wanted in (str(place), one.id)), None)


def reminders_text(found: Sequence[Schedule], language: str | None) -> str:
    """The list that ``/reminders`` shows."""
    if not found:
        return say(language, "reminders_none")
    rows = [f"{number}. {one.when} ({one.zone_name}): {shortened(one.text)}" for number, one in enumerate(found, 1)]
    return "\n".join([say(language, "reminders_list"), *rows])


def late_text(language: str | None, payload: Mapping[str, Any]) -> str | None:
    """What to tell about a turn that comes late, by the ``payload`` of its notice; None for another notice."""
    late = payload.get("late")
    if not isinstance(late, Mapping):
        return None
    key = "reminder_missed" if late.get("missed") else "reminder_late"
    return say(str(late.get("language") or language or ""), key, due=late.get("due", ""), missed=late.get("missed", 0))


def shortened(text: str) -> str:
    """``text`` in one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[: SHOWN_CHARS - 1]}…"
