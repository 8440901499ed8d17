"""Answers with a language model."""

from agents.languages import LANGUAGES
from rolecall import Agent, Context, Envelope

PERSONA = "You are a helpful AI assistant. Answer clearly and briefly."
NO_PICTURES = "I cannot look at pictures here. Tell me in words what it is about."
NO_ANSWER = "The model had nothing to say to that. Ask in other words, or choose another with /model."


class SampleLLMAgent(Agent):
    """Answers with its model, streaming as it goes."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Answers ``translated`` if there is one, else the text, in the language ``answer_lang``."""
        question = str(envelope.payload.get("translated") or envelope.text)
        if envelope.payload.get("images") and not question.strip():
            return envelope.reply(NO_PICTURES, remember=False)
        history = await ctx.memory.history()
        answer = await ctx.stream(ctx.model, history, question, system=system(envelope))
        return envelope.reply(answer) if answer.text.strip() else envelope.reply(NO_ANSWER, remember=False)


def system(envelope: Envelope) -> str:
    """The persona, and the language to answer in unless that is English, which models take by themselves."""
    language = LANGUAGES.get(str(envelope.payload.get("answer_lang", "en")), "English")
    return PERSONA if language == "English" else f"{PERSONA} Answer in {language}."
