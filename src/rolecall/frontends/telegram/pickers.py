"""Pickers: messages with a button per choice. A press changes a preference of the conversation and the message."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from rolecall.bus.admission import MODES
from rolecall.bus.bus import Bus
from rolecall.bus.commands import Language
from rolecall.bus.conversation import preferences_of
from rolecall.bus.schedule.schedules import Schedule
from rolecall.config import Application
from rolecall.frontends.reminders import reminders_text, shortened
from rolecall.frontends.texts import say

PICKERS = ("lang", "model", "role", "queue")
"""The preferences that have a picker; commands have the same names."""
INNER = frozenset(("manager", "command", "lang"))
"""Roles that do not answer users."""
MAX_CHOICES = 60
COLUMNS = {"lang": 3}
"""Buttons a row, where their labels are short."""
CHECK = "✓ "


@dataclass(frozen=True, slots=True)
class CommandReply:
    """An immediate answer: plain text, with or without buttons."""

    text: str
    keyboard: InlineKeyboardMarkup | None = None


@dataclass(frozen=True)
class Choices:
    """What users may choose from in this deployment. ``prefixes`` are those that select a role, with the role's
    description; ``languages`` are those that an agent names, by code."""

    models: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()
    languages: Mapping[str, Language] = field(default_factory=dict)

    @classmethod
    def of(cls, application: Application) -> Choices:
        """The models, the answering roles, the prefixes and the languages of ``application``."""
        roles = [role.name for role in application.roles if role.name not in INNER]
        own = [(role.match, role.description) for role in application.roles if role.match]
        languages = {code: one for role in application.roles for code, one in role.agent.languages.items()}
        return cls(tuple(application.model_names), tuple(sorted(roles)), tuple(own), languages)

    def of_picker(self, picker: str) -> tuple[str, ...]:
        """The values that ``picker`` offers; the empty one stands for automatic."""
        if picker == "queue":
            return MODES
        own = {"lang": tuple(self.languages), "model": self.models, "role": self.roles}[picker]
        return ("", *own[:MAX_CHOICES]) if own else ()

    def value_of(self, picker: str, mark: str) -> str | None:
        """The value of the button with this ``mark``; None if it is not (or no longer) offered."""
        return next((value for value in self.of_picker(picker) if _mark(value) == mark), None)


async def picker_message(
    bus: Bus, conversation: str, picker: str, choices: Choices, language: str | None
) -> CommandReply:
    """The question with its buttons; the current value is marked."""
    values = choices.of_picker(picker)
    if not values:
        return CommandReply(say(language, "nothing_to_choose"))
    stored = await preferences_of(bus, conversation)
    otherwise = bus.settings.while_busy if picker == "queue" else ""
    return CommandReply(
        say(language, f"choose_{picker}"), _keyboard(picker, choices, stored.get(picker, otherwise), language)
    )


def chosen_message(picker: str, value: str, choices: Choices, language: str | None) -> CommandReply:
    """The message after ``value`` was chosen; the buttons stay. A language is confirmed in that language."""
    keyboard = _keyboard(picker, choices, value, language)
    if picker == "lang":
        return CommandReply(choices.languages[value].confirmation if value else say(language, "chosen_lang"), keyboard)
    return CommandReply(say(language, "chosen", choice=_label(picker, choices, value, language)), keyboard)


def reminders_message(found: Sequence[Schedule], language: str | None) -> CommandReply:
    """The list of reminders, with a button that deletes each."""
    rows = [
        [InlineKeyboardButton(f"✕ {number}. {shortened(one.text)}", callback_data=f"unremind:{one.id}")]
        for number, one in enumerate(found[:MAX_CHOICES], 1)
    ]
    return CommandReply(reminders_text(found, language), InlineKeyboardMarkup(rows) if rows else None)


def _keyboard(picker: str, choices: Choices, chosen: str, language: str | None) -> InlineKeyboardMarkup:
    buttons = []
    for value in choices.of_picker(picker):
        label = (CHECK if value == chosen else "") + _label(picker, choices, value, language)
        buttons.append(InlineKeyboardButton(label, callback_data=f"{picker}:{_mark(value)}"))
    columns = COLUMNS.get(picker, 1)
    return InlineKeyboardMarkup([buttons[at : at + columns] for at in range(0, len(buttons), columns)])


def _label(picker: str, choices: Choices, value: str, language: str | None) -> str:
    if picker == "queue":
        return say(language, f"queue_{value}")
    if picker == "lang" and value:
        return choices.languages[value].name
    return value or say(language, "automatic")


def _mark(value: str) -> str:
    """A digest of the value: button data is limited to 64 bytes."""
    return hashlib.sha256(value.encode()).hexdigest()[:12]
