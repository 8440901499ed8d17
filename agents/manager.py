"""Decides which role answers a turn, by the table of rules at the end."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agents.calculator import sum_in
from agents.remind import asks_to_remind
from agents.texts import speaker
from rolecall import COMMANDS, Agent, Context, Envelope, RoleInfo, parse_command

ANSWERING = "samplellm"
Decision = tuple[str, str]  # a role, and the text it gets


class Asked(NamedTuple):
    """The input of the rules; ``said`` has the name of who speaks in a group before ``text``; ``word`` and ``rest`` are
    the parts of ``/word rest``."""

    said: str
    text: str
    word: str
    rest: str
    payload: Mapping[str, Any]
    preferences: Mapping[str, str]
    roles: Mapping[str, RoleInfo]


class ManagerAgent(Agent):
    """Decides who answers."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Route by the first rule that matches; to the answering role through ``lang``."""
        said, preferences = envelope.text.strip(), await ctx.memory.preferences()
        verbatim = bool(envelope.payload.get("verbatim"))  # an API client's prompt, where /etc is no command
        roles = {name: info for name, info in ctx.roles.items() if name != self.role}
        words = ("", "") if verbatim else parse_command(said) or ("", "")
        asked = Asked(said, envelope.words.strip(), *words, envelope.payload, preferences, roles)
        rules = RULES[RULES.index(role_asked_for) :] if verbatim else RULES
        role, text = next(filter(None, (rule(asked) for rule in rules)))
        if role not in roles:
            say = (await speaker(envelope, ctx)).say
            known = say("unknown_role", role=role, roles=", ".join(sorted(roles)))
            hint = f" {say('reset_role')}" if role == preferences.get("role") else ""
            return envelope.reply(known + hint, remember=False)
        route = ("lang", role) if role == ANSWERING and "lang" in roles else (role,)
        if "voice" in roles and role != "voice" and spoken(envelope.payload):
            route = ("voice", *route)
        model = envelope.payload.get("model") or preferences.get("model", "")
        return envelope.via(*route, text=text, model=model)


def spoken(payload: Mapping[str, Any]) -> bool:
    """Whether audio or video is attached."""
    types = (str(one.get("type", "")) for one in payload.get("files") or () if isinstance(one, dict))
    return any(kind.startswith(("audio/", "video/")) for kind in types)


def scheduled(asked: Asked) -> Decision | None:
    """Whatever the text of a reminder looks like, it is no command."""
    role = str(asked.payload.get("role") or "")
    return (role, asked.text) if asked.payload.get("scheduled") and role in asked.roles else None


def command(asked: Asked) -> Decision | None:
    return ("command", asked.text) if any(asked.word == known.name for known in COMMANDS) else None


def matched_prefix(asked: Asked) -> Decision | None:
    for role in asked.roles.values():
        rest = asked.text[len(role.match or "") :]
        if role.match and asked.text.lower().startswith(role.match.lower()) and not rest[:1].strip():
            return role.name, rest.strip()
    return None


def role_named_once(asked: Asked) -> Decision | None:
    return (asked.word, asked.rest) if asked.rest and asked.word in asked.roles else None


def unknown_command(asked: Asked) -> Decision | None:
    return ("command", asked.text) if asked.word.replace("_", "").replace("-", "").isalnum() else None


def role_asked_for(asked: Asked) -> Decision | None:
    role = asked.payload.get("role") or asked.preferences.get("role")
    return (str(role), asked.said) if role else None


def picture(asked: Asked) -> Decision | None:
    return ("vision", asked.said) if asked.payload.get("images") and "vision" in asked.roles else None


def arithmetic(asked: Asked) -> Decision | None:
    """Models are bad at arithmetic, and tiny ones hopeless."""
    if "calculator" not in asked.roles or asked.payload.get("files") or asked.payload.get("images"):
        return None
    expression = sum_in(asked.text)
    return ("calculator", expression) if expression else None


def reminder(asked: Asked) -> Decision | None:
    return ("remind", asked.text) if "remind" in asked.roles and asks_to_remind(asked.text) else None


RULES: tuple[Callable[[Asked], Decision | None], ...] = (
    scheduled,        # the text of a schedule that names a role     that role
    command,          # /help, /lang de, …                           command
    matched_prefix,   # Role(WeatherAgent, match="/weather")         that role, without the prefix
    role_named_once,  # /samplellm What is …                         that role, without its name
    unknown_command,  # /anything                                    command, which lists the commands
    role_asked_for,   # payload["role"], else what /role was told    that role
    picture,          # payload["images"]                            vision, where there is one
    reminder,         # Remind me tomorrow at 9 to call Ann          remind, where there is one
    arithmetic,       # What is 17 times 23?                         calculator, where there is one
    lambda asked: (ANSWERING, asked.said),
)  # fmt: skip
