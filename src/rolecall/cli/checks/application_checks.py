"""Whether the application and its Telegram bot are set up."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rolecall.agent.prompts import PLACE
from rolecall.agent.role import Role
from rolecall.cli.checks.finding import Finding
from rolecall.config import Application, misspelt
from rolecall.environment import SECRETS
from rolecall.errors import ConfigError
from rolecall.settings import Settings

if TYPE_CHECKING:
    from telegram import WebhookInfo

BLOCK = 64 * 1024
LITTLE = 50_000_000
"""Bytes of free space that a directory should have."""


def look_at_application(application: Application) -> list[Finding]:
    """Its roles, prompts, directories, ``.env`` and time zone."""
    names = ", ".join(role.name for role in application.roles)
    return [
        Finding("passed", "config.py", f"{len(application.roles)} roles: {names}"),
        *_matches(application.roles),
        _prompts(application),
        _writable("log directory", application.log_dir, "LOG_DIR"),
        _writable("state directory", application.state_dir, "--app"),
        _private(application),
        *_misspelt(application),
        _time_zone(application),
    ]


def _matches(roles: tuple[Role, ...]) -> list[Finding]:
    words = [role.match.lower() for role in roles if role.match]
    remedy = "give each role a match of its own in config.py"
    return [
        Finding(
            "failed", f"role {role.name}", f"match={role.match!r} is another role's too: the first of them gets it all",
            remedy,
        )
        for role in roles if role.match and words.count(role.match.lower()) > 1
    ]  # fmt: skip


def _prompts(application: Application) -> Finding:
    try:
        names = application.prompts.names
    except ConfigError as error:
        return Finding("failed", "prompts", str(error), "put this right: until then nothing starts")
    if not names:
        return Finding("not set up", "prompts", f"no file in {PLACE}; an agent that asks for one is refused")
    return Finding("passed", "prompts", f"{len(names)} in {PLACE}: {', '.join(names)}")


def _writable(name: str, directory: Path, setting: str) -> Finding:
    """Tried with a block in a file in it, or where it would be made."""
    place = directory
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(BLOCK))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(place).free
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = f"give this user the right to write there, or choose another place with {setting}"
        remedy = f"free space there, or choose another place with {setting}" if full else remedy
        return Finding("failed", name, f"{place}: {error.strerror}", remedy)
    if free < LITTLE:
        text = f"{place} has {free / 1_000_000:.0f} MB left"
        return Finding("failed", name, text, f"free space there, or choose another place with {setting}")
    return Finding("passed", name, f"{directory} can be written" + ("" if place == directory else ", not made yet"))


def _private(application: Application) -> Finding:
    path = application.directory / ".env"
    if not path.exists():
        return Finding("not set up", ".env", "there is none: keys come from the environment alone")
    mode = path.stat().st_mode
    open_to = [who for who, bits in (("the group", stat.S_IRWXG), ("others", stat.S_IRWXO)) if mode & bits]
    if open_to and any(application.sources.get(name.upper()) == ".env" for name in SECRETS):
        text = f"holds keys, and {' and '.join(open_to)} may use it (mode {stat.S_IMODE(mode):o})"
        return Finding("failed", ".env", text, f"chmod 600 {quote(str(path))}")
    return Finding("passed", ".env", f"mode {stat.S_IMODE(mode):o}{'' if open_to else ', this user alone'}")


def _misspelt(application: Application) -> list[Finding]:
    """Another program may read such a name, so this is no failure."""
    return [
        Finding("not set up", ".env", f"{name} is not a setting of Rolecall", f"did you mean {close}?")
        for name, close in misspelt(application).items()
    ]


def _time_zone(application: Application) -> Finding:
    try:
        zone = application.tz
    except ConfigError as error:
        return Finding("failed", "time zone", str(error), "set TZ to such a name, or leave it out for the system's")
    return Finding("passed", "time zone", f"transcripts use {zone or 'that of this machine'}")


async def look_at_telegram(settings: Settings) -> list[Finding]:
    """What Telegram says of the bot of TELEGRAM_BOT_TOKEN. Nothing is changed there."""
    if settings.telegram_bot_token is None:
        remedy = "get a token from @BotFather and put TELEGRAM_BOT_TOKEN=… into .env"
        return [Finding("not set up", "bot", "no TELEGRAM_BOT_TOKEN", remedy)]
    try:
        return await _ask(settings)
    except ImportError:
        return [Finding("failed", "bot", "its libraries are not there", "pip install 'rolecall[telegram]'")]
    except ConfigError as error:
        return [Finding("failed", "bot", str(error))]


async def _ask(settings: Settings) -> list[Finding]:
    from telegram.error import TelegramError

    from rolecall.frontends.telegram.bot import explain, open_bot

    bot = open_bot(settings)
    try:
        await bot.initialize()
        hook = await bot.get_webhook_info()
        whole = bool(bot.bot.can_read_all_group_messages)
    except TelegramError as error:
        remedy = "see the token, and that this machine reaches Telegram (PROXY, TELEGRAM_API_URL)"
        return [Finding("failed", "bot", explain(error), remedy)]
    finally:
        await bot.shutdown()
    return [
        Finding("passed", "bot", f"Telegram knows it as @{bot.username}"),
        _updates(settings, hook),
        _groups(whole),
    ]


def _updates(settings: Settings, hook: WebhookInfo) -> Finding:
    if settings.telegram_webhook_url and hook.pending_update_count and hook.last_error_message:
        text = f"{hook.pending_update_count} wait, Telegram cannot bring them: {hook.last_error_message}"
        return Finding("failed", "updates", text, "see TELEGRAM_WEBHOOK_URL and the proxy behind it")
    if settings.telegram_webhook_url:
        return Finding("passed", "updates", "by webhook, which is set at each start")
    if hook.url:
        text = "a webhook is set for this bot, though it is to be polled"
        return Finding("not set up", "updates", text, "nothing: it is deleted when the front end starts")
    return Finding("passed", "updates", "by polling")


def _groups(whole: bool) -> Finding:
    if whole:
        return Finding("passed", "groups", "it sees all messages of its groups")
    text = "privacy mode: in groups it sees commands, mentions and replies to it alone"
    return Finding("passed", "groups", text, "for TELEGRAM_KEYWORDS turn it off at @BotFather: /setprivacy")
