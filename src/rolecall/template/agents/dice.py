"""Rolls dice."""

import random
import re

from rolecall import Agent, Context, Envelope

DICE = re.compile(r"([1-9]\d?)?d([1-9]\d{0,3})", re.IGNORECASE)
USAGE = "Tell me how many dice with how many sides: /roll 2d6."


class DiceAgent(Agent):
    """Rolls dice, such as 2d6."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        asked = DICE.fullmatch(envelope.text.strip() or "1d6")
        if asked is None:
            return envelope.reply(USAGE, remember=False)
        count, sides = int(asked[1] or 1), int(asked[2])
        # Seeded by the envelope: if this instance dies, the next one rolls the same.
        dice = random.Random(envelope.id)
        rolls = [dice.randint(1, sides) for _ in range(count)]
        return envelope.reply(f"{' + '.join(map(str, rolls))} = {sum(rolls)}")
