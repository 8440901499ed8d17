"""Messages with a button for each choice; pressing one changes a preference of the conversation, and the message."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from rolecall.bus.bus import Bus
from rolecall.bus.conversation import preferences_of
from rolecall.config import Application
from rolecall.frontends.texts import say

PICKERS = ("model", "role", "queue")
"""What is picked, as the command and the preference are named."""
MODES = ("queue", "collect", "interrupt")
INNER = frozenset(("manager", "command", "lang"))
"""Roles that answer nobody."""
MOST = 60
CHECK = "✓ "


@dataclass(frozen=True, slots=True)
class Told:
    """An answer at once: plain text, and buttons below it if there are any."""

    text: str
    keyboard: InlineKeyboardMarkup | None = None


@dataclass(frozen=True)
class Choices:
    """What users may choose between, as this deployment is configured; ``prefixes`` are those of roles that are asked
    by them, with what they do."""

    models: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, application: Application) -> Choices:
        """The models, the answering roles and the prefixes of ``application``."""
        roles = [role.name for role in application.roles if role.name not in INNER]
        own = [
            (role.match, (role.agent.__doc__ or "").strip().split("\n")[0]) for role in application.roles if role.match
        ]
        return cls(tuple(application.model_names), tuple(sorted(roles)), tuple(own))

    def of_picker(self, picker: str) -> tuple[str, ...]:
        """The values that ``picker`` offers; an empty one leaves the choice to the deployment."""
        if picker == "queue":
            return MODES
        own = self.models if picker == "model" else self.roles
        return ("", *own[:MOST]) if own else ()

    def picked(self, picker: str, mark: str) -> str | None:
        """The value whose button has this ``mark``; None when it is not offered (any more)."""
        return next((value for value in self.of_picker(picker) if _mark(value) == mark), None)


async def menu(bus: Bus, conversation: str, picker: str, choices: Choices, language: str | None) -> Told:
    """The question with its buttons, what holds now marked."""
    values = choices.of_picker(picker)
    if not values:
        return Told(say(language, "nothing_to_choose"))
    stored = await preferences_of(bus, conversation)
    otherwise = bus.settings.while_busy if picker == "queue" else ""
    return Told(say(language, f"choose_{picker}"), _keyboard(picker, values, stored.get(picker, otherwise), language))


def picked(picker: str, value: str, choices: Choices, language: str | None) -> Told:
    """How the message reads once ``value`` is chosen; another can be chosen yet."""
    keyboard = _keyboard(picker, choices.of_picker(picker), value, language)
    return Told(say(language, "chosen", choice=_label(picker, value, language)), keyboard)


def _keyboard(picker: str, values: Sequence[str], chosen: str, language: str | None) -> InlineKeyboardMarkup:
    rows = []
    for value in values:
        label = (CHECK if value == chosen else "") + _label(picker, value, language)
        rows.append([InlineKeyboardButton(label, callback_data=f"{picker}:{_mark(value)}")])
    return InlineKeyboardMarkup(rows)


def _label(picker: str, value: str, language: str | None) -> str:
    if picker == "queue":
        return say(language, f"queue_{value}")
    return value or say(language, "automatic")


def _mark(value: str) -> str:
    """Short enough for a button, whatever the value."""
    return hashlib.sha256(value.encode()).hexdigest()[:12]
