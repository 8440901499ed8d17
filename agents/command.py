"""Answers the commands in rolecall.COMMANDS. The table at the end maps each command to its function."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType

from agents.languages import LANGUAGES
from rolecall import COMMANDS, Agent, Context, Envelope, known_zone, parse_command
from rolecall.errors import BadSchedule

Answer = Callable[[str, Context], Awaitable[str]]
INNER = frozenset(("manager", "command", "lang"))  # not offered by /role


class CommandAgent(Agent):
    """Answers commands such as /help and /lang."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Reply without adding to the history; /stats is forwarded to the role stats."""
        word, argument = parse_command(envelope.text.strip()) or ("help", "")
        if word == "stats" and "stats" in ctx.roles:
            return envelope.via("stats")
        if word in ANSWERS:
            return envelope.reply(await ANSWERS[word](argument, ctx), remember=False)
        hint = f"Add your question: /{word} TEXT." if word in ctx.roles else "/help lists all commands."
        return envelope.reply(f"Unknown command /{word}. {hint}", remember=False)


async def show_help(argument: str, ctx: Context) -> str:
    own = [f"{role.match} – {role.description}" for role in ctx.roles.values() if role.match]
    return "\n".join([*(f"{command.usage} – {command.help}" for command in COMMANDS), *own])


async def forget(argument: str, ctx: Context) -> str:
    ctx.memory.forget()
    await ctx.forget_files()
    return "Cleared. Starting a new conversation."


async def files(argument: str, ctx: Context) -> str:
    names = await ctx.files()
    if argument == "clear":
        await ctx.forget_files()
        return f"Forgotten: {', '.join(names)}." if names else "There are no documents here."
    if not names:
        return "There are no documents here. Send one, and I know it for a day."
    return "\n".join(["I know these documents, each for a day:", *names, "", "/files clear makes me forget them."])


async def whoami(argument: str, ctx: Context) -> str:
    chosen = await ctx.memory.preferences()
    preferences = ", ".join(f"/{name} {chosen.get(name, 'auto')}" for name in ("lang", "model", "role"))
    return f"You're {ctx.memory.conversation} ({preferences})."


def choice(name: str, choices: Callable[[Context], Iterable[str]]) -> Answer:
    """Show the preference ``name``, or set it to one of ``choices``; ``auto`` removes it."""

    async def chosen(argument: str, ctx: Context) -> str:
        allowed = ["auto", *sorted(choices(ctx))]
        if not argument:
            now = (await ctx.memory.preferences()).get(name, "auto")
            return f"/{name} is {now}. Choices: {', '.join(allowed)}."
        value = next((value for value in allowed if value.lower() == argument.lower()), None)
        if value is None:
            return f"/{name} {argument!r} is invalid. Choices: {', '.join(allowed)}."
        ctx.memory.prefer(**{name: "" if value == "auto" else value})
        return f"/{name} is now {value}."

    return chosen


async def time_zone(argument: str, ctx: Context) -> str:
    if not argument:
        return (
            f"/timezone is {(await ctx.memory.preferences()).get('timezone', 'auto')}. Set it: /timezone Europe/Berlin."
        )
    try:
        name = "" if argument.lower() == "auto" else known_zone(argument)
    except BadSchedule as error:
        return f"{error}."
    ctx.memory.prefer(timezone=name)
    return f"/timezone is now {name or 'auto'}."


def say(text: str) -> Answer:
    async def said(argument: str, ctx: Context) -> str:
        return text

    return said


ANSWERS: Mapping[str, Answer] = MappingProxyType(
    {
        "help": show_help,
        "start": say("Hello! Ask me anything. /help shows what else I can do."),
        "stop": say("Nothing else is running in this conversation."),
        "clear": forget,
        "reset": forget,
        "lang": choice("lang", lambda ctx: LANGUAGES),
        "model": choice("model", lambda ctx: {name for role in ctx.roles.values() for name in role.models}),
        "role": choice("role", lambda ctx: ctx.roles.keys() - INNER),
        "reminders": say("Reminders are listed where you write: in Telegram, over HTTP, on the page, in the terminal."),
        "timezone": time_zone,
        "files": files,
        "stats": say("Statistics are not available: this deployment has no role named stats."),
        "whoami": whoami,
    }
)
