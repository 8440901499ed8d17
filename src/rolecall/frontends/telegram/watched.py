"""A turn in the making, and how its message should read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from rolecall.frontends.front import Received
from rolecall.frontends.telegram.address import Address
from rolecall.frontends.telegram.buttons import working
from rolecall.frontends.telegram.chats import Keyboard
from rolecall.frontends.telegram.words import say
from rolecall.frontends.telegram_text import Part, partial
from rolecall.frontends.terminal_text import Shown as Growing


@dataclass
class Watched:
    """A turn in the making: what is known of it, and what of that its user was shown."""

    received: Received
    address: Address
    message_id: int
    language: str | None
    place: int = 0
    growing: Growing = field(default_factory=Growing)
    over: bool = False
    message: int = 0
    draft: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> tuple[str, str]:
        return self.received.conversation, self.received.turn

    @property
    def state(self) -> tuple[int, int]:
        """What its look depends on."""
        return self.place, len(self.growing.text)

    @property
    def look(self) -> Part:
        """How the message should read now."""
        if self.growing.text and (part := partial(self.growing.text)).text:
            return part
        if self.place:
            return Part(say(self.language, "place", place=self.place))
        return Part(say(self.language, "thinking"))

    @property
    def keyboard(self) -> Keyboard:
        return working(self.received.turn, self.language)
