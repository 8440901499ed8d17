"""This deployment: which agents run, how many instances of each, on which models.

It runs without an API key: ``auto`` is then a tiny model on this machine. A key in ``.env`` is enough to be answered by
its provider; ``rolecall setup`` asks for one. To choose models yourself, name them in fallback order::

    MODELS = ("gpt-5-mini@openai", "smollm2@local")

``.env.example`` lists every setting, and ``rolecall check`` shows each value in force and where it came from.
"""

from agents.calculator import CalculatorAgent
from agents.command import CommandAgent
from agents.embedding import EmbeddingAgent
from agents.lang import LangAgent
from agents.manager import ManagerAgent
from agents.remind import RemindAgent
from agents.research import ResearchAgent
from agents.samplellm import SampleLLMAgent
from agents.stats import StatsAgent
from agents.tools import calculate, now
from agents.translation import TranslationAgent
from agents.voice import VoiceAgent
from rolecall import Config, Role

MODELS = ("auto",)

config = Config(
    roles=(
        Role(ManagerAgent),
        Role(CommandAgent),
        Role(LangAgent),
        Role(VoiceAgent),
        Role(EmbeddingAgent, instances=2),
        Role(TranslationAgent, models=MODELS),
        Role(SampleLLMAgent, instances=2, models=MODELS),
        Role(CalculatorAgent, models=MODELS, match="/calc"),
        Role(RemindAgent, models=MODELS, match="/remind"),
        Role(ResearchAgent, models=MODELS, match="/research"),
        Role(StatsAgent),
    ),
    tools=(calculate, now),
)
