"""Whether Telegram knows the bot, and lets it have its updates."""

from __future__ import annotations

from rolecall.cli.finding import Finding
from rolecall.config import Application
from rolecall.errors import ConfigError
from rolecall.settings import Settings


async def look_at_telegram(application: Application) -> list[Finding]:
    """What Telegram says of the bot of TELEGRAM_BOT_TOKEN. Nothing is changed there."""
    settings = application.settings
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
        hooked = (await bot.get_webhook_info()).url
        whole = bool(bot.bot.can_read_all_group_messages)
    except TelegramError as error:
        remedy = "see the token, and that this machine reaches Telegram (PROXY, TELEGRAM_API_URL)"
        return [Finding("failed", "bot", explain(error), remedy)]
    finally:
        await bot.shutdown()
    return [
        Finding("passed", "bot", f"Telegram knows it as @{bot.username}"),
        _updates(settings, hooked),
        _groups(whole),
    ]


def _updates(settings: Settings, hooked: str) -> Finding:
    if settings.telegram_webhook_url:
        return Finding("passed", "updates", "by webhook, which is set at each start")
    if hooked:
        text = "a webhook is set for this bot, though it is to be polled"
        return Finding("not set up", "updates", text, "nothing: it is deleted when the front end starts")
    return Finding("passed", "updates", "by polling")


def _groups(whole: bool) -> Finding:
    if whole:
        return Finding("passed", "groups", "it sees all messages of its groups")
    text = "privacy mode: in groups it sees commands, mentions and replies to it alone"
    return Finding("passed", "groups", text, "for TELEGRAM_KEYWORDS turn it off at @BotFather: /setprivacy")
