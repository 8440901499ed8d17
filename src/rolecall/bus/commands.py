"""The commands every front end knows, and the lane each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Lane = Literal["control", "ordered", "front"]


@dataclass(frozen=True)
class Command:
    """A word after a slash. Lane ``control`` is answered at once beside a running turn, by the command role;
    ``front`` is carried out by the front end on the bus itself; ``ordered`` is a turn like any other."""

    name: str
    usage: str
    help: str
    lane: Lane = "control"


COMMANDS = (
    Command("help", "/help", "what I can do"),
    Command("start", "/start", "say hello"),
    Command("stop", "/stop", "stop the answer and everything that waits", "front"),
    Command("clear", "/clear", "forget this conversation and begin anew", "front"),
    Command("reset", "/reset", "the same as /clear", "front"),
    Command("lang", "/lang [CODE|auto]", "the language I answer in"),
    Command("model", "/model [NAME|auto]", "the model that answers"),
    Command("role", "/role [NAME|auto]", "the role that answers; /NAME TEXT asks one just once"),
    Command("stats", "/stats", "how the system is doing"),
    Command("whoami", "/whoami", "who you are to me"),
)


def parse_command(text: str) -> tuple[str, str] | None:
    """``("lang", "de")`` of ``/lang de``; the bot's name in ``/lang@bot`` is dropped; None for other text."""
    if not text.startswith("/") or len(text) < 2 or not text[1].isalnum():
        return None
    word, *rest = text[1:].split(maxsplit=1)
    return word.partition("@")[0].lower(), "".join(rest).strip()


def find_command(text: str) -> Command | None:
    """The command that ``text`` calls, if it is one every front end knows."""
    parsed = parse_command(text)
    return next((command for command in COMMANDS if parsed and command.name == parsed[0]), None)
