"""The commands that Telegram has beside those of every front end, and the menus that name them all."""

from __future__ import annotations

from dataclasses import dataclass

from telegram import Bot, InlineKeyboardMarkup

from rolecall.bus import Bus
from rolecall.config import Application
from rolecall.frontends.telegram.access import Access, Standing
from rolecall.frontends.telegram.incoming import Incoming

TELEGRAM_COMMANDS = frozenset({"start", "help", "whoami", "model", "role", "queue", "invite", "users", "allow", "deny",
                               "broadcast"})  # fmt: skip
"""Answered here; in groups they need no name of the bot behind them."""


@dataclass(frozen=True, slots=True)
class Told:
    """An answer at once: plain text, and buttons below it if there are any."""

    text: str
    keyboard: InlineKeyboardMarkup | None = None


@dataclass(frozen=True)
class Choices:
    """What users may choose between, as this deployment is configured."""

    models: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    @classmethod
    def of(cls, application: Application) -> Choices:
        """The models and the answering roles of ``application``."""
        raise NotImplementedError


class Commands:
    """Answers Telegram's own commands. No model is asked and no envelope written."""

    def __init__(self, bot: Bot, bus: Bus, access: Access, choices: Choices, *, front: str = "telegram") -> None: ...

    async def answer(self, incoming: Incoming, standing: Standing) -> Told | None:
        """The answer to ``incoming`` if it is one of Telegram's own commands, else None: it goes to the bus.

        To be asked for ``/start`` of strangers too (a code lets them in), and for nothing else of theirs.
        """
        raise NotImplementedError

    async def set_menus(self) -> None:
        """Tell Telegram the commands, for private chats, groups and each admin, in all languages of words.toml.
        What Telegram refuses is logged; nothing is raised but CancelledError."""
        raise NotImplementedError
