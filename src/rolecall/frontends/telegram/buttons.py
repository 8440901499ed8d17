"""The buttons under messages, and what becomes of it when one is pressed."""

from __future__ import annotations

from telegram import CallbackQuery, InlineKeyboardMarkup


def working(turn: str, language: str | None = None) -> InlineKeyboardMarkup:
    """Under a placeholder: Stop."""
    raise NotImplementedError


def answered(turn: str, language: str | None = None) -> InlineKeyboardMarkup:
    """Under an answer: Regenerate, 👍 and 👎. Not for control turns (``c3``) nor notices."""
    raise NotImplementedError


def edited(turn: str, language: str | None = None) -> InlineKeyboardMarkup:
    """Under the offer to answer an edited message (say(language, "edited")) anew: ``turn`` answered it before, and
    Questions.keep has its new payload."""
    raise NotImplementedError


class Buttons:
    """Carries out what buttons ask. A press that cannot be honoured (old, forged, a stranger's) is answered kindly."""

    async def press(self, query: CallbackQuery) -> None:
        """Return when what was asked is safe in the server; what Telegram shows of it follows by itself, and never
        holds up other updates. Raises ServerUnavailable and redis-py's errors when the server is away: try again,
        nothing is done twice."""
        raise NotImplementedError
