"""Answers with a language model."""

from agents.languages import LANGUAGES
from agents.remind import reminder_tool, speaks_of_reminders
from agents.texts import speaker
from rolecall import Agent, Context, Envelope
from rolecall.errors import ImagesRefused

SMALL = ("smollm2@local",)
"""Models whose answers the security preamble derails, and that would not follow it anyway."""
RECENT = 6
"""Messages that a small model remembers: with more of them it copies its earlier answers, and its context overflows."""


class SampleLLMAgent(Agent):
    """Answers with its model, streaming."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Answer ``translated`` if set, else the text, in the language ``answer_lang``, with the attached images,
        documents and quote."""
        question = str(envelope.payload.get("translated") or envelope.text)
        small = ctx.model.name in SMALL
        question, images = await ctx.question(envelope, question, earlier=not small), await ctx.images(envelope)
        language = LANGUAGES.get(str(envelope.payload.get("answer_lang", "en")), "English")
        system = ctx.prompt("samplellm", language=language, small=small)
        history = (await ctx.memory.history())[-RECENT if small else 0 :]
        tools = (reminder_tool(ctx),) if not small and offers_reminders(envelope, ctx) else ()
        try:
            answer = await ctx.stream(ctx.model, history, question, images=images, system=system, tools=tools)
        except ImagesRefused:
            return envelope.reply((await speaker(envelope, ctx)).say("no_pictures"), remember=False)
        if answer.text.strip():
            return envelope.reply(answer)
        return envelope.reply((await speaker(envelope, ctx)).say("no_answer"), remember=False)


def offers_reminders(envelope: Envelope, ctx: Context) -> bool:
    """Whether the model may set a reminder. Only who speaks of one pays for the tool; an API client has its own."""
    return "remind" in ctx.roles and not envelope.payload.get("verbatim") and speaks_of_reminders(envelope.text)
