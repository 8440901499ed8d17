"""Transcribes voice messages."""

from rolecall import Agent, Context, Envelope

NO_WORDS = "I couldn't make out any words. Please say it again or type it."


class VoiceAgent(Agent):
    """Transcribes voice messages."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Add the transcription to the text and continue the turn."""
        heard = await ctx.transcribe(envelope)
        if not heard:
            # A program asked for the words, of which there are none.
            return envelope.reply("" if envelope.payload.get("verbatim") else NO_WORDS, remember=False)
        ctx.log(f"transcribed {len(heard)} characters")
        text = "\n".join(filter(None, (envelope.text, heard)))
        return envelope.forward(text=text) if envelope.route else envelope.reply(text)
