"""Answers the commands of rolecall.COMMANDS. The table at the end says which function answers which."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType

from agents.languages import LANGUAGES
from rolecall import COMMANDS, Agent, Context, Envelope, parse_command

Answer = Callable[[str, Context], Awaitable[str]]
INNER = frozenset(("manager", "command", "lang"))  # nobody chooses these as the role that answers


class CommandAgent(Agent):
    """Answers commands such as /help and /lang."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Replies at once, outside the history; /stats goes on to the role stats."""
        word, argument = parse_command(envelope.text.strip()) or ("help", "")
        if word == "stats" and "stats" in ctx.roles:
            return envelope.via("stats")
        if word in ANSWERS:
            return envelope.reply(await ANSWERS[word](argument, ctx), remember=False)
        hint = f"Put your question behind it: /{word} TEXT." if word in ctx.roles else "/help lists them."
        return envelope.reply(f"There is no command /{word}. {hint}", remember=False)


async def show_help(argument: str, ctx: Context) -> str:
    own = [f"{role.match} – {role.description}" for role in ctx.roles.values() if role.match]
    return "\n".join([*(f"{command.usage} – {command.help}" for command in COMMANDS), *own])


async def forget(argument: str, ctx: Context) -> str:
    ctx.memory.forget()
    return "Forgotten. We begin anew."


async def whoami(argument: str, ctx: Context) -> str:
    chosen = await ctx.memory.preferences()
    preferences = ", ".join(f"/{name} {chosen.get(name, 'auto')}" for name in ("lang", "model", "role"))
    return f"You are {ctx.memory.conversation} to me, with {preferences}."


def choice(name: str, choices: Callable[[Context], Iterable[str]]) -> Answer:
    """Shows the preference ``name``, or sets it to one of ``choices``; ``auto`` takes it back."""

    async def chosen(argument: str, ctx: Context) -> str:
        allowed = ["auto", *sorted(choices(ctx))]
        if not argument:
            now = (await ctx.memory.preferences()).get(name, "auto")
            return f"/{name} is {now}. It can be {', '.join(allowed)}."
        value = next((value for value in allowed if value.lower() == argument.lower()), None)
        if value is None:
            return f"/{name} cannot be {argument!r}. It can be {', '.join(allowed)}."
        ctx.memory.prefer(**{name: "" if value == "auto" else value})
        return f"/{name} is {value} from now on."

    return chosen


def say(text: str) -> Answer:
    async def said(argument: str, ctx: Context) -> str:
        return text

    return said


ANSWERS: Mapping[str, Answer] = MappingProxyType(
    {
        "help": show_help,
        "start": say("Hello! Ask me anything. /help tells what else I can do."),
        "stop": say("Nothing else is running in this conversation."),
        "clear": forget,
        "reset": forget,
        "lang": choice("lang", lambda ctx: LANGUAGES),
        "model": choice("model", lambda ctx: {name for role in ctx.roles.values() for name in role.models}),
        "role": choice("role", lambda ctx: ctx.roles.keys() - INNER),
        "stats": say("There is no role stats here, so there are no figures."),
        "whoami": whoami,
    }
)
