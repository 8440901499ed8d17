"""Answers the commands in rolecall.COMMANDS. The table at the end maps each command to its function."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from agents.languages import OFFERED, chosen_code, language_name
from agents.texts import Speaker, speaker
from rolecall import COMMANDS, Agent, Context, Envelope, known_zone, parse_command
from rolecall.errors import BadSchedule
from rolecall.frontends.texts import help_line

INNER = frozenset(("manager", "command", "lang"))  # not offered by /role


class Call(NamedTuple):
    """A command's argument, its context, and who says the answer."""

    argument: str
    ctx: Context
    speaker: Speaker


Answer = Callable[[Call], Awaitable[str]]


class CommandAgent(Agent):
    """Answers commands such as /help and /lang."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Reply without adding to the history; /stats is forwarded to the role stats."""
        word, argument = parse_command(envelope.text.strip()) or ("help", "")
        if word == "stats" and "stats" in ctx.roles:
            return envelope.via("stats")
        call = Call(argument, ctx, await speaker(envelope, ctx))
        if word in ANSWERS:
            return envelope.reply(await ANSWERS[word](call), remember=False, plain=True)
        key = "add_question" if word in ctx.roles else "unknown_command"
        return envelope.reply(call.speaker.say(key, word=word), remember=False, plain=True)


async def show_help(call: Call) -> str:
    own = [f"{role.match} – {role.description}" for role in call.ctx.roles.values() if role.match]
    known = [help_line(call.speaker.language, one.name, one.usage) for one in COMMANDS]
    return "\n".join([*known, *own])


async def forget(call: Call) -> str:
    call.ctx.memory.forget()
    await call.ctx.forget_files()
    return call.speaker.say("cleared")


async def files(call: Call) -> str:
    names, say = await call.ctx.files(), call.speaker.say
    if call.argument == "clear" and names:
        await call.ctx.forget_files()
        return say("files_forgotten", names=", ".join(names))
    if not names:
        return say("files_none")
    return "\n".join([say("files_list"), *names, "", say("files_how")])


async def whoami(call: Call) -> str:
    chosen = await call.ctx.memory.preferences()
    preferences = ", ".join(f"/{name} {chosen.get(name, 'auto')}" for name in ("lang", "model", "role"))
    return call.speaker.say("whoami", conversation=call.ctx.memory.conversation, preferences=preferences)


def choice(name: str, choices: Callable[[Context], Iterable[str]]) -> Answer:
    """Show the preference ``name``, or set it to one of ``choices``; ``auto`` removes it."""

    async def chosen(call: Call) -> str:
        allowed, say = ["auto", *sorted(choices(call.ctx))], call.speaker.say
        if not call.argument:
            now = (await call.ctx.memory.preferences()).get(name, "auto")
            return say("setting_now", name=name, value=now, choices=", ".join(allowed))
        value = next((value for value in allowed if value.lower() == call.argument.lower()), None)
        if value is None:
            return say("setting_invalid", name=name, value=call.argument, choices=", ".join(allowed))
        call.ctx.memory.prefer(**{name: "" if value == "auto" else value})
        return say("setting_changed", name=name, value=value)

    return chosen


async def language(call: Call) -> str:
    """Show the languages by number, or choose one; the answer to a choice is in the new language."""
    if call.argument.lower() == "auto":
        call.ctx.memory.prefer(lang="")
        return call.speaker.say("language_auto")
    if code := chosen_code(call.argument):
        call.ctx.memory.prefer(lang=code)
        return OFFERED[code].confirmation
    say, now = call.speaker.say, (await call.ctx.memory.preferences()).get("lang", "")
    asked = say("language_choose", language=language_name(now) if now else say("automatic"))
    rows = [f"{number}. {offered.name}" for number, offered in enumerate(OFFERED.values(), 1)]
    unknown = [say("language_unknown", value=call.argument)] if call.argument else []
    return "\n".join([*unknown, asked, *rows, say("language_how")])


async def time_zone(call: Call) -> str:
    say = call.speaker.say
    if not call.argument:
        return say("timezone_now", value=(await call.ctx.memory.preferences()).get("timezone", "auto"))
    try:
        name = "" if call.argument.lower() == "auto" else known_zone(call.argument)
    except BadSchedule:
        return say("timezone_unknown", value=call.argument)
    call.ctx.memory.prefer(timezone=name)
    return say("setting_changed", name="timezone", value=name or "auto")


def fixed(key: str) -> Answer:
    async def said(call: Call) -> str:
        return call.speaker.say(key)

    return said


ANSWERS: Mapping[str, Answer] = MappingProxyType(
    {
        "help": show_help,
        "start": fixed("hello"),
        "stop": fixed("nothing_running"),
        "clear": forget,
        "reset": forget,
        "lang": language,
        "model": choice("model", lambda ctx: {name for role in ctx.roles.values() for name in role.models}),
        "role": choice("role", lambda ctx: ctx.roles.keys() - INNER),
        "reminders": fixed("reminders_elsewhere"),
        "timezone": time_zone,
        "files": files,
        "stats": fixed("no_stats"),
        "whoami": whoami,
    }
)
