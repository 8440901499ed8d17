"""Writes down what is said in voice messages."""

from rolecall import Agent, Context, Envelope

NO_WORDS = "I couldn't make out any words. Please say it again or type it."


class VoiceAgent(Agent):
    """Writes down what is said in voice messages."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Adds what it hears to the text, with which the turn goes on."""
        heard = await ctx.transcribe(envelope)
        if not heard:
            return envelope.reply(NO_WORDS, remember=False)
        ctx.log(f"heard {len(heard)} characters")
        text = "\n".join(filter(None, (envelope.text, heard)))
        return envelope.forward(text=text) if envelope.route else envelope.reply(text)
