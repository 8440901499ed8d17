"""Translates questions into the language of the answer."""

from agents.languages import LANGUAGES
from rolecall import Agent, Context, Envelope


class TranslationAgent(Agent):
    """Translates a question into the preferred language."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Add ``translated``; ``text`` keeps the user's own words, which belong in the history."""
        code = envelope.payload.get("answer_lang") or (await ctx.memory.preferences()).get("lang", "en")
        system = ctx.prompt("translation", language=LANGUAGES.get(code, code))
        answer = await ctx.ask(ctx.model, (), envelope.text, system=system)
        translated = answer.text.strip()
        if not envelope.route:
            return envelope.reply(translated or envelope.text)
        ctx.log(f"translated into {code}" if translated else f"the model gave no translation into {code}")
        return envelope.forward(translated=translated) if translated else envelope.forward()
