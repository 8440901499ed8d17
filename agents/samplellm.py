"""Answers with a language model."""

from agents.languages import LANGUAGES
from rolecall import Agent, Context, Envelope
from rolecall.errors import ImagesRefused

SMALL = ("smollm2@local",)
"""Models that the security preamble costs the thread of their answers, and that would not keep to it anyway."""
NO_PICTURES = "I cannot look at pictures here: the model takes text alone. Tell me in words what it is about."
NO_ANSWER = "The model had nothing to say to that. Ask in other words, or choose another with /model."


class SampleLLMAgent(Agent):
    """Answers with its model, streaming as it goes."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Answers ``translated`` if there is one, else the text, in the language ``answer_lang``, with the pictures,
        documents and the quote that came with it."""
        question = str(envelope.payload.get("translated") or envelope.text)
        question, images = await ctx.question(envelope, question), await ctx.images(envelope)
        language = LANGUAGES.get(str(envelope.payload.get("answer_lang", "en")), "English")
        system = ctx.prompt("samplellm", language=language, small=ctx.model.name in SMALL)
        try:
            answer = await ctx.stream(ctx.model, await ctx.memory.history(), question, images=images, system=system)
        except ImagesRefused:
            return envelope.reply(NO_PICTURES, remember=False)
        return envelope.reply(answer) if answer.text.strip() else envelope.reply(NO_ANSWER, remember=False)
