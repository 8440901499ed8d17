"""Where in Telegram a conversation is: a chat, or a topic of one."""

from __future__ import annotations

import re
from dataclasses import dataclass

CONVERSATION = re.compile(r"([a-z0-9_-]+):(-?\d{1,19})(?::(\d{1,19}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """A chat, and a topic of it when it has such. ``front`` is the name of the front end, one per bot."""

    chat: int
    topic: int | None = None
    front: str = "telegram"

    @property
    def conversation(self) -> str:
        """The conversation that is held here: ``telegram:42``, in a topic ``telegram:42:7``."""
        return f"{self.front}:{self.chat}" + (f":{self.topic}" if self.topic else "")

    @property
    def private(self) -> bool:
        """Whether it is a chat with one person alone."""
        return self.chat > 0

    @classmethod
    def of(cls, conversation: str) -> Address | None:
        """The address of a conversation, None for one that is not in Telegram by its form."""
        match = CONVERSATION.fullmatch(conversation)
        if match is None:
            return None
        return cls(int(match[2]), int(match[3]) if match[3] else None, match[1])
