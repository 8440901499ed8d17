"""`rolecall setup`: four questions, each answer tested, and what they come to in ``.env``."""

from __future__ import annotations

import asyncio
import getpass
import importlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dotenv import set_key
from rich.console import Console

from rolecall.cli.checks.application_checks import look_at_telegram
from rolecall.cli.output import print_lines
from rolecall.cli.runner import load_quietly
from rolecall.config import Application
from rolecall.errors import ConfigError, RolecallError
from rolecall.models.registry import AUTO, PROVIDERS, TINY, models_by_key, open_model, probe
from rolecall.redis.server import RedisServer
from rolecall.settings import LISTED, Settings
from rolecall.transport.http_client import address

T = TypeVar("T")
Values = dict[str, str]
"""Lines of ``.env`` by name; an empty one takes a setting back."""
PLAIN = re.compile(r"[\w.:/@,+=*%?&~-]*")
"""Values that need no quotes in ``.env``."""
BY_KEY = {provider.title: provider for provider in PROVIDERS.values() if provider.model}
OLLAMA = "Ollama, on a server of yours"
COMPATIBLE = "another server with OpenAI's API: LM Studio, vLLM, llama.cpp, a gateway"
NO_KEY = "no key: a tiny model on this machine, which chats and is often wrong"
FIRST = "the first person to open the link, who becomes the admin and can invite others"
THESE, EVERYONE = "these users", "everyone"
HERE, NETWORK = "on this machine, for this machine", "on this machine, open to the network with a key"
HOSTS = "on a Redis or Valkey server of yours, which several hosts can share"


class Dialogue:
    """Asks at the terminal, or reads the answers from stdin, one a line. Raises EOFError where they end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, style: str = "") -> None:
        print_lines(self._console, [text], style=style)

    def text(self, label: str, otherwise: str = "", *, secret: bool = False) -> str:
        """A line, or ``otherwise`` for an empty one. A ``secret`` is not shown as it is typed."""
        shown = f"{label} [{otherwise}]: " if otherwise else f"{label}: "
        if secret and sys.stdin.isatty():
            return getpass.getpass(shown).strip() or otherwise
        return input(shown).strip() or otherwise

    def choice(self, options: Sequence[str]) -> str:
        """One of ``options``, by its number; the first for an empty line."""
        for number, option in enumerate(options, 1):
            self.say(f"  {number}  {option}")
        while True:
            given = self.text("number", "1")
            if given.isdecimal() and 1 <= int(given) <= len(options):
                return options[int(given) - 1]
            self.say(f"{given!r} is invalid: expected a number from 1 to {len(options)}", "yellow")

    def tested(self, ask: Callable[[], T], test: Callable[[T], str], *, strict: bool = False) -> T:
        """What ``ask`` returns, once ``test`` returns what it found instead of raising, or the user keeps it anyway,
        which ``strict`` does not offer."""
        while True:
            answer = ask()
            try:
                if found := test(answer):
                    self.say(f"  ✓ {found}", "green")
                return answer
            except RolecallError as error:
                self.say(f"  ✗ {error}", "yellow")
                if not strict and self.text("keep it anyway? y or n", "n").lower().startswith("y"):
                    return answer


def setup(app_dir: Path | None, console: Console) -> int:
    """Ask, test, and write ``.env``; nothing is written when the user leaves before the end. Exit status 1 then."""
    application = load_quietly(app_dir)
    dialogue, values = Dialogue(console), Values()
    try:
        for number, (title, question) in enumerate(QUESTIONS.items(), 1):
            dialogue.say(f"\n{number} of {len(QUESTIONS)}  {title}", "bold")
            values |= question(dialogue, _with(application.settings, values))
    except (EOFError, KeyboardInterrupt):
        dialogue.say("\nLeft before the end: nothing was written.")
        return 1
    path = application.directory / ".env"
    write_env(path, values)
    dialogue.say(f"\n{_written(path, values)} Start it with `rolecall up`.", "bold")
    for note in _notes(application, values):
        dialogue.say(note, "yellow")
    return 0


def ask_model(dialogue: Dialogue, settings: Settings) -> Values:
    """The provider, its key or address, and its model; the model is asked for one word."""
    provider = dialogue.choice([*BY_KEY, OLLAMA, COMPATIBLE, NO_KEY])
    if provider == NO_KEY:
        return _choosing(TINY, settings, {})
    if chosen := BY_KEY.get(provider):
        name, model = chosen.keys[0].upper(), chosen.model
        asking = f"{name}, or nothing to choose again"
        key = dialogue.tested(
            lambda: dialogue.text(asking, secret=True),
            lambda given: _probed(model, _with(settings, {name: given})) if given else "",
        )
        return _choosing(model, settings, {name: key}) if key else ask_model(dialogue, settings)
    values = _server(dialogue, settings, provider)
    suffix = "ollama" if provider == OLLAMA else "openai"
    names = _listed(dialogue, suffix, _with(settings, values))
    ask = (lambda: dialogue.choice(names)) if names else (lambda: f"{dialogue.text('model')}@{suffix}")
    return _choosing(dialogue.tested(ask, lambda name: _probed(name, _with(settings, values))), settings, values)


def _server(dialogue: Dialogue, settings: Settings, provider: str) -> Values:
    if provider == OLLAMA:
        name, usual = "OLLAMA_URL", settings.ollama_address or "http://127.0.0.1:11434"
    else:
        name, usual = "OPENAI_BASE_URL", settings.openai_base_url or "http://127.0.0.1:1234/v1"
    values = {name: dialogue.tested(lambda: dialogue.text(name, usual), lambda url: _address(name, url), strict=True)}
    if provider == COMPATIBLE and (key := dialogue.text("OPENAI_API_KEY, if it asks for one", secret=True)):
        values["OPENAI_API_KEY"] = key
    return values


def _address(name: str, url: str) -> str:
    address(name, url)
    return ""


def _listed(dialogue: Dialogue, provider: str, settings: Settings) -> list[str]:
    """The models that the provider's server offers; none, with the reason said, where it does not tell."""
    try:
        names: list[str] = asyncio.run(importlib.import_module(PROVIDERS[provider].module).list_models(settings))
    except RolecallError as error:
        dialogue.say(f"  ✗ {error}", "yellow")
        return []
    return names


def _probed(model: str, settings: Settings) -> str:
    async def work() -> str:
        opened = open_model(model, settings, Path())
        try:
            return await probe(opened)
        finally:
            await opened.aclose()

    return asyncio.run(work())


def _choosing(model: str, settings: Settings, values: Values) -> Values:
    """``values``, and GEN_MODEL where they would not choose ``model`` by themselves."""
    automatic, _ = models_by_key(_with(settings, {**values, "GEN_MODEL": ""}))
    if automatic[:1] != [model]:
        return {**values, "GEN_MODEL": model}
    return {**values, "GEN_MODEL": ""} if settings.gen_model else values


def ask_telegram(dialogue: Dialogue, settings: Settings) -> Values:
    """The bot's token, which Telegram is asked about."""
    name = "TELEGRAM_BOT_TOKEN"
    otherwise = "the one that is set stays" if settings.telegram_bot_token else "no bot"

    def test(token: str) -> str:
        if not token:
            return ""
        finding = asyncio.run(look_at_telegram(_with(settings, {name: token})))[0]
        if finding.state == "failed":
            raise ConfigError(f"{finding.text}{f'; {finding.remedy}' if finding.remedy else ''}")
        return finding.text

    dialogue.say(f"In Telegram, @BotFather gives you a token: send it /newbot. An empty line means: {otherwise}.")
    token = dialogue.tested(lambda: dialogue.text(name, secret=True), test)
    return {name: token} if token else {}


def ask_users(dialogue: Dialogue, settings: Settings) -> Values:
    """Who may use the bot; without a bot there is nothing to ask."""
    if not settings.telegram_bot_token:
        dialogue.say(
            "Without a bot, only this machine has access, and anyone you give a key (`rolecall key new NAME`)."
        )
        return {}
    who = dialogue.choice([FIRST, THESE, EVERYONE])
    if who == FIRST:
        return {"TELEGRAM_ALLOWED": ""} if settings.telegram_allowed else {}
    if who == EVERYONE:
        return {"TELEGRAM_ALLOWED": "*"}
    asking = "their Telegram IDs, comma-separated (@userinfobot tells you yours)"
    return {"TELEGRAM_ALLOWED": dialogue.tested(lambda: dialogue.text(asking), _ids, strict=True)}


def _ids(given: str) -> str:
    if not given or given == "*" or not re.fullmatch(LISTED, given):
        raise ConfigError(f"{given!r} is invalid: expected IDs such as 11223344,55667788")
    return f"{len(given.strip(', ').split(','))} allowed; the first to open the link becomes the admin"


def ask_place(dialogue: Dialogue, settings: Settings) -> Values:
    """Where the bus is and who reaches the web page; a server is asked for its version."""
    place = dialogue.choice([HERE, NETWORK, HOSTS])
    if place == HERE:
        return {}
    if place == NETWORK:
        values = {"HTTP_HOST": "0.0.0.0"}
        return values if settings.http_key else {**values, "HTTP_KEY": secrets.token_urlsafe(24)}
    usual = "redis://127.0.0.1:6379/0"
    return {"REDIS_URL": dialogue.tested(lambda: dialogue.text("REDIS_URL", usual), _server_version)}


def _server_version(url: str) -> str:
    async def work() -> str:
        server = RedisServer(url)
        try:
            return f"{await server.check()} answers"
        finally:
            await server.aclose()

    return asyncio.run(work())


Question = Callable[[Dialogue, Settings], Values]
QUESTIONS: Mapping[str, Question] = {
    "Which model should answer?": ask_model,
    "Should it answer in Telegram?": ask_telegram,
    "Who may use it?": ask_users,
    "Where does it run?": ask_place,
}


def write_env(path: Path, values: Values) -> None:
    """Set ``values`` in the file at ``path`` and leave its other lines as they are. Only its owner may read it, from
    before the first secret is in it. Raises ConfigError."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.chmod(0o600)
        for name, value in values.items():
            quotes = "never" if PLAIN.fullmatch(value) else "always"
            set_key(path, name, value, quote_mode=quotes, follow_symlinks=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None


def _with(settings: Settings, values: Values) -> Settings:
    changes = {name.lower(): value or None for name, value in values.items()}
    kept = {name: getattr(settings, name) for name in settings.model_fields_set}
    given = {name: value for name, value in {**kept, **changes}.items() if value is not None}
    return Settings.model_validate(given)


def _written(path: Path, values: Values) -> str:
    names = ", ".join(name for name, value in values.items() if value)
    return f"{path} has {names} now, and only you may read it." if names else f"{path} needs nothing: the defaults do."


def _notes(application: Application, values: Values) -> list[str]:
    """Why an answer may have no effect."""
    shadowed = [name for name in values if application.sources.get(name) == "environment"]
    notes = [f"{name} is also set in the environment, which takes precedence over .env" for name in shadowed]
    named = [role.name for role in application.roles if application.sources.get(f"{role.name} models") == "config.py"]
    if named and values.keys() & {*(one.keys[0].upper() for one in BY_KEY.values()), "GEN_MODEL"}:
        notes.append(f"config.py names the models of {', '.join(named)}: models=({AUTO!r},) there follows .env")
    if key := values.get("HTTP_KEY"):
        notes.append(f"the key for the web page and the API, also in .env as HTTP_KEY: {key}")
    return notes
