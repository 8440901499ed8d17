"""Transcribes voice messages."""

from agents.texts import speaker
from rolecall import Agent, Context, Envelope


class VoiceAgent(Agent):
    """Transcribes voice messages."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Add the transcription to the text and continue the turn."""
        heard = await ctx.transcribe(envelope)
        if not heard:
            # A program asked for the words, of which there are none.
            text = "" if envelope.payload.get("verbatim") else (await speaker(envelope, ctx)).say("no_words")
            return envelope.reply(text, remember=False)
        ctx.log(f"transcribed {len(heard)} characters")
        sender = envelope.payload.get("sender")
        if isinstance(sender, dict) and not envelope.text:  # in a group, a text begins with who speaks
            heard = f"{sender.get('name')}: {heard}"
        text = "\n".join(filter(None, (envelope.text, heard)))
        return envelope.forward(text=text) if envelope.route else envelope.reply(text)
