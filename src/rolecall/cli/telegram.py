"""`rolecall telegram` and `rolecall invite`, and the Telegram front end as a part of `rolecall up`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rolecall.bus.process.processes import process_name
from rolecall.cli.runner import load_quietly, stop_requested, until_stopped
from rolecall.cli.stderr_log import log_to_stderr
from rolecall.config import load
from rolecall.errors import ConfigError, MissingExtra
from rolecall.frontends.front import registered
from rolecall.session import Session, open_session
from rolecall.settings import Settings

if TYPE_CHECKING:
    from starlette.routing import Route

    from rolecall.frontends.telegram.bot import QuietBot

logger = logging.getLogger(__name__)
Tell = Callable[[str], None]
UNSERVED = "Telegram is not served, everything else is: {}"
NO_TOKEN = "no TELEGRAM_BOT_TOKEN is set: get one from @BotFather and put it into .env"


class Beside:
    """The front end as a part of something larger: its ``routes`` for the HTTP server, and the ``problem`` for which it
    does not serve; empty while it does, or where there is no token."""

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self.problem = ""

    def fail(self, error: ConfigError) -> None:
        """Say in the log, and from now on in the registry, why it does not serve."""
        self.problem = UNSERVED.format(error)
        logger.error("%s", self.problem)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Log what ended a front end whose company goes on."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ConfigError):
            self.fail(error)
        elif error is not None:
            logger.error("the Telegram front end broke off", exc_info=error)


async def telegram(app_dir: Path | None, console: Console, *, idle: bool, name: str) -> int:
    """Serve the bot until SIGTERM. Raises ConfigError without a token, unless ``idle``: then it only waits; and for a
    token that Telegram does not know."""
    application = load(app_dir)
    log_to_stderr(application.settings)
    async with stop_requested(application.settings.drain_seconds) as wanted:
        if idle and application.settings.telegram_bot_token is None:
            say(console, f"Telegram: {NO_TOKEN}; this process is idle until you set it")
            await wanted.wait()
            return 0
        bot = open_bot(application.settings)
        async with (
            open_session(application, process_name(), start=True) as session,
            registered(session, "telegram"),
            at_work(session, bot, lambda line: say(console, line), name) as (serving, _),
        ):
            await until_stopped(serving, wanted, cancel=False)
            return 0 if wanted.is_set() else 1


async def invite(app_dir: Path | None, console: Console, *, admin: bool, days: float, name: str) -> int:
    """Print a link that lets in the first user who opens it; what to send the bot, when Telegram cannot be asked for
    its name. Raises ConfigError for a token that Telegram does not know."""
    application = load_quietly(app_dir)
    bot = open_bot(application.settings)
    from rolecall.frontends.telegram.access import Access

    bot_name = await _name(bot)
    async with open_session(application, process_name(), start=True) as session:
        code = await Access(session.bus, name).invite("admin" if admin else "user", days)
    say(console, f"https://t.me/{bot_name}?start={code}" if bot_name else f"/start {code}")
    who, lasting = "an admin" if admin else "a user", f"{days:g} day{'' if days == 1 else 's'}"
    does = "open this link" if bot_name else "send this to the bot"
    say(Console(stderr=True), f"The first person to {does} gets access as {who}; valid for {lasting}.")
    return 0


@asynccontextmanager
async def at_work(
    session: Session, bot: QuietBot, tell: Tell, name: str = "telegram"
) -> AsyncIterator[tuple[asyncio.Task[None], Route]]:
    """The front end at work in this process: its task, which ends by itself only when it cannot serve, and its webhook
    as a route. On leaving it receives no more updates, and delivers what is ready."""
    from rolecall.frontends.telegram.telegram_front import TelegramFront

    async with session.listening() as wakeups:
        front = TelegramFront(bot, session, wakeups, tell, name=name)
        task = asyncio.create_task(front.run(), name="rolecall telegram front")
        try:
            yield task, front.route()
        finally:
            await front.drain()
            task.cancel()
            await asyncio.wait([task])


@asynccontextmanager
async def beside(session: Session, tell: Tell) -> AsyncIterator[Beside]:
    """The front end at work as a part of something larger, if it has a token."""
    found = Beside()
    if session.application.settings.telegram_bot_token is None:
        yield found
        return
    try:
        bot = open_bot(session.application.settings)
    except ConfigError as error:
        found.fail(error)
        yield found
        return
    async with at_work(session, bot, tell) as (serving, route):
        serving.add_done_callback(found.ended)
        found.routes.append(route)
        yield found


def open_bot(settings: Settings) -> QuietBot:
    """The configured bot. Raises ConfigError when there is no token or it cannot be one, MissingExtra."""
    if settings.telegram_bot_token is None:
        raise ConfigError(NO_TOKEN)
    try:
        from rolecall.frontends.telegram import bot
    except ImportError as error:
        raise MissingExtra("telegram", "the Telegram front end") from error
    return bot.open_bot(settings)


def say(console: Console, line: str) -> None:
    """Print one line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


async def _name(bot: QuietBot) -> str:
    """The bot's name; empty when Telegram cannot be asked. Raises ConfigError for a token that Telegram rejects."""
    from telegram.error import InvalidToken, TelegramError

    from rolecall.frontends.telegram.bot import explain

    try:
        await bot.initialize()
        return str(bot.username)
    except InvalidToken as error:
        raise ConfigError(explain(error)) from error
    except TelegramError:
        return ""
    finally:
        await bot.shutdown()
