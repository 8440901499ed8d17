"""The commands that every front end knows, and the lane of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Lane = Literal["control", "ordered", "front"]


@dataclass(frozen=True)
class Command:
    """A word after a slash. In lane ``control`` the command role answers at once, even while a turn runs; in lane
    ``front`` the front end carries the command out itself; in lane ``ordered`` it is a turn like any other."""

    name: str
    usage: str
    help: str
    lane: Lane = "control"


class Language(NamedTuple):
    """A language that ``/lang`` offers: its own name, and the sentence in it that confirms the choice."""

    name: str
    confirmation: str


COMMANDS = (
    Command("help", "/help", "What I can do"),
    Command("start", "/start", "Say hello"),
    Command("stop", "/stop", "Stop the answer and all waiting messages", "front"),
    Command("clear", "/clear", "Forget this conversation and start a new one", "front"),
    Command("reset", "/reset", "Same as /clear", "front"),
    Command("lang", "/lang [CODE|auto]", "Language of my answers"),
    Command("model", "/model [NAME|auto]", "Model that answers"),
    Command("role", "/role [NAME|auto]", "Role that answers"),
    Command("reminders", "/reminders [delete NUMBER]", "Reminders of this chat", "front"),
    Command("timezone", "/timezone [NAME|auto]", "Time zone of reminders"),
    Command("files", "/files [clear]", "Documents I know here"),
    Command("stats", "/stats", "How the system is doing"),
    Command("whoami", "/whoami", "Your ID and settings"),
)


def parse_command(text: str) -> tuple[str, str] | None:
    """``("lang", "de")`` for ``/lang de``; the bot's name in ``/lang@bot`` is dropped. None for any other text."""
    if not text.startswith("/") or len(text) < 2 or not text[1].isalnum():
        return None
    word, *rest = text[1:].split(maxsplit=1)
    return word.partition("@")[0].lower(), "".join(rest).strip()


def find_command(text: str) -> Command | None:
    """The command that ``text`` calls, if every front end knows it."""
    parsed = parse_command(text)
    return next((command for command in COMMANDS if parsed and command.name == parsed[0]), None)
