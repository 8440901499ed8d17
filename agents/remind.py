"""Reminds: sets a reminder when it is told to, and says it when its time has come."""

import re
from typing import Annotated

from pydantic import Field

from agents.texts import ENGLISH, Speaker, speaker
from rolecall import Agent, Context, Envelope, Schedule, Tool, ToolError, split_when
from rolecall.errors import BadSchedule

BELL = "⏰"
ASKING = re.compile(
    r"((please |bitte )?(remind me|wake me|set a reminder|erinnere? mich|напомни(те)?( мне)?|rappelle[- ]moi"
    r"|rappelez[- ]moi|recu[eé]rdame|av[ií]same|me lembr[ea]|lembr[ea][- ]me|ricordami|нагадай(те)?( мені)?"
    r"|(bana )?hatırlat|ذكّ?رني)\b|(请|請)?提醒我|リマインド(して)?)[\s,:]*",
    re.IGNORECASE,
)
"""How people ask for a reminder, in the languages of the bot."""
SPEAKING = re.compile(
    r"remind|erinner|напомн|rappel|recu[eé]rd|av[ií]sa|lembr|ricord|нагад|hatırlat|تذكير|ذكّ?رني|提醒|リマインド|思い出させ",
    re.IGNORECASE,
)
LINKING = re.compile(
    r"(me\s+)?(to|that|of|about|for|daran|an|dass|zu|de|que|di|che|о|об|что|чтобы|про|щоб|أن)\s+|me\s+|d['’]",
    re.IGNORECASE,
)
THIS = frozenset(("", "this", "it", "that"))
"""What stands for the message that is replied to."""
QUOTED_CHARS = 500
CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"
DAY = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
When = Annotated[
    str,
    Field(
        pattern=rf"^(in [1-9][0-9]{{0,2}} (minutes|hours|days|weeks)|every [1-9][0-9]{{0,2}} (minutes|hours|days)"
        rf"|(today|tomorrow|{DAY}|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}) at {CLOCK}|every (day|weekday|{DAY}) at {CLOCK})$",
        description="such as: in 10 minutes, tomorrow at 09:00, 2026-12-24 at 18:00, every monday at 08:30",
    ),
]
"""The pattern guides small models: it becomes a grammar that allows nothing else."""

REASONS = ("past", "far", "often", "cron", "long", "full")
"""Why a reminder is refused, as far as there is a text for it."""


class RemindAgent(Agent):
    """Sets a reminder: /remind tomorrow at 9 call Ann"""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Say a reminder whose time has come. Otherwise set the one that the text asks for; what cannot be read
        directly is for the model, which must call the tool."""
        if envelope.payload.get("scheduled"):
            return envelope.reply(f"{BELL} {envelope.text}", plain=True)
        asked = ASKING.sub("", envelope.words.strip(), count=1)
        when, text = split_when(LINKING.sub("", asked, count=1) if LINKING.match(asked) else asked)
        text = (LINKING.sub("", text, count=1) if LINKING.match(text) else text).strip()
        if when and text.lower().strip(" .!") in THIS:
            text = replied_to(envelope) or text
        if when and text:
            try:
                return envelope.reply(confirmed(await ctx.schedule(text, when=when, role=self.role)), plain=True)
            except BadSchedule as error:
                return envelope.reply(refused(error, await speaker(envelope, ctx)), remember=False, plain=True)
        if asked:
            return await self._ask_model(envelope, ctx, asked)
        return envelope.reply((await speaker(envelope, ctx)).say("remind_how"), remember=False)

    async def _ask_model(self, envelope: Envelope, ctx: Context, asked: str) -> Envelope:
        made = list[str]()
        tool = reminder_tool(ctx, made)
        answer = await ctx.ask(ctx.model, (), asked, system=ctx.prompt("remind"), tools=[tool], must_call=True)
        text = "\n".join(made) or (await speaker(envelope, ctx)).say("remind_how")
        return envelope.reply(answer, text=text, plain=True)


def replied_to(envelope: Envelope) -> str:
    """The beginning of the message that this one replies to; empty if it replies to none."""
    quoted = envelope.payload.get("quoted")
    text = str(quoted.get("text", "")) if isinstance(quoted, dict) else ""
    return text if len(text) <= QUOTED_CHARS else f"{text[:QUOTED_CHARS]} …"


def reminder_tool(ctx: Context, made: list[str] | None = None) -> Tool:
    """The tool that sets a reminder in the conversation of ``ctx``; ``made`` gets what users are told of each."""

    async def remind(text: Annotated[str, Field(description="what to remind of")], when: When) -> str:
        """Remind the user of something at a later time, once or again and again."""
        try:
            found = await ctx.schedule(text, when=when, role=RemindAgent.role)
        except BadSchedule as error:
            raise ToolError(str(error)) from None
        if made is not None:
            made.append(confirmed(found))
        return confirmed(found)

    return Tool.of(remind)


def confirmed(schedule: Schedule) -> str:
    """A schedule for users of every language: the time, its zone, the text, and the command that lists all."""
    return f"{BELL} {schedule.when} ({schedule.zone_name}): {schedule.text}\n/reminders"


def refused(error: BadSchedule, speaker: Speaker) -> str:
    """Why a reminder is not set. Only in English is there an exact reason for everything."""
    if speaker.language == ENGLISH:
        return f"{error}."
    return speaker.say(f"remind_{error.kind}" if error.kind in REASONS else "remind_invalid")


def asks_to_remind(text: str) -> bool:
    """Whether ``text`` begins as a request for a reminder."""
    return bool(ASKING.match(text))


def speaks_of_reminders(text: str) -> bool:
    """Whether a model may need the tool to answer ``text``."""
    return bool(SPEAKING.search(text))
