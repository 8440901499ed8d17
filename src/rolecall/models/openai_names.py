"""What the names of OpenAI's models tell about how to ask them."""

from __future__ import annotations

from fnmatch import fnmatchcase

RESPONSES = "responses:"
"""Before a model's name: it is asked by the Responses API, whatever the tables below say."""

NEED_RESPONSES = (
    "*-pro", "*-pro-[0-9]*",            # o1-pro, o3-pro, gpt-5-pro, gpt-5.5-pro-2026-04-23
    "*codex*",                          # gpt-5-codex, gpt-5.1-codex-max, codex-mini-latest
    "*-deep-research", "*-deep-research-*",
    "computer-use-*",
    "gpt-daybreak-*", "gpt-*-cyber", "gpt-rosalind-*", "gpt-*-rosalind", "gpt-*-law",
)  # fmt: skip
"""OpenAI answers for these by the Responses API alone."""

SEARCH = ("*-deep-research", "*-deep-research-*")
"""These refuse every request that gives them nowhere to search."""

REASON = ("o[1-9]", "o[1-9]-*", "gpt-[5-9]", "gpt-[5-9][.-]*", "codex-*")
"""These think before they speak: no temperature, another name for the limit, ``developer`` for ``system``."""

DO_NOT_REASON = ("gpt-*-chat", "gpt-*-chat-*")

NOT_FOR_TEXT = (
    "*embedding*", "*moderation*", "*whisper*", "*tts*", "*transcribe*", "*translate*", "*realtime*", "*audio*",
    "*-live-*", "dall-e*", "*image*", "sora*", "babbage*", "davinci*", "*-instruct", "*-instruct-*",
)  # fmt: skip
"""What OpenAI offers beside models one can chat with."""


def wire_name(model: str) -> str:
    """``model`` as its server knows it."""
    return model.removeprefix(RESPONSES)


def needs_responses(model: str) -> bool:
    """True if OpenAI's own server answers for ``model`` by the Responses API only."""
    return _one_of(model, NEED_RESPONSES)


def must_search(model: str) -> bool:
    """True if ``model`` needs a tool to search the web."""
    return _one_of(model, SEARCH)


def reasons(model: str) -> bool:
    """True for a reasoning model, also behind another's server, which may write ``openai/gpt-5``."""
    return _one_of(model, REASON) and not _one_of(model, DO_NOT_REASON)


def chats(model: str) -> bool:
    """True if ``model`` of OpenAI's answers in text."""
    return not _one_of(model, NOT_FOR_TEXT)


def _one_of(model: str, patterns: tuple[str, ...]) -> bool:
    plain = wire_name(model).rpartition("/")[2]
    return any(fnmatchcase(plain, pattern) for pattern in patterns)
