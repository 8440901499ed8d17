"""Turns texts into vectors."""

from rolecall import Agent, Context, Envelope


class EmbeddingAgent(Agent):
    """Turns texts into vectors, for clients of /v1/embeddings."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Answer with the id of the vectors."""
        return envelope.reply(await ctx.embed_for_client(envelope), remember=False)
