"""What a user sent, read out of Telegram's update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from telegram import Update, User

from rolecall.frontends.telegram.address import Address

Kind = Literal["image", "voice", "document", "unknown"]


@dataclass(frozen=True, slots=True)
class Attached:
    """A file that came with a message and is still at Telegram. ``size`` is in bytes, 0 when it is not known."""

    kind: Kind
    file_id: str
    name: str
    media_type: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message of a user, new or edited. ``text`` is what is asked, without the bot's name and, in groups, with the
    speaker's in front; ``command`` is such a message's ``/word`` and ``argument`` the rest of it.

    ``version`` is 0 for a new message and rises with each edit. ``album`` names what came in one go. ``quoted`` is what
    the message replies to, ``(who, text)``. ``long`` says that its client may have cut it from a longer one.
    """

    address: Address
    user: int
    name: str
    language: str | None
    message_id: int
    text: str
    idempotency: str
    version: int = 0
    date: float = 0.0
    files: tuple[Attached, ...] = ()
    album: str = ""
    long: bool = False
    quoted: tuple[str, str] | None = None
    reply_to: int | None = None
    command: str = ""
    argument: str = ""

    @property
    def principal(self) -> str:
        """Whom limits and budgets count."""
        return f"telegram:user:{self.user}"


def incoming_of(update: Update, me: User, *, front: str = "telegram", keywords: Sequence[str] = ()) -> Incoming | None:
    """What ``update`` asks of the bot ``me``, None when it is not for it: in groups a message is when it mentions the
    bot, replies to it, is a command for it, or has one of ``keywords`` (words, whatever their case)."""
    raise NotImplementedError
