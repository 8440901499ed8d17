"""Which language is heard, which one is answered in, and when the question is translated."""

from __future__ import annotations

import pytest

from agents.lang import LangAgent, spoken_language
from agents.manager import ManagerAgent
from agents.samplellm import SMALL, SampleLLMAgent
from agents.texts import Speaker
from agents.translation import TranslationAgent
from rolecall import Role
from rolecall.errors import ImagesRefused
from rolecall.testing import FakeModel, run_turn

PERSONA = "You are a helpful AI assistant. Answer clearly and briefly."
ENGLISH = Speaker("en")
ROLES = tuple(Role(agent) for agent in (ManagerAgent, LangAgent, TranslationAgent, SampleLLMAgent))
ASKED = {
    "en": ("hello", "Hi!", "What is the capital of France?", "Can you help me with this?"),
    "de": ("hallo", "Was ist die Hauptstadt von Frankreich?", "Kannst du mir dabei helfen?"),
    "es": ("hola", "¡Hola!", "¿Cuál es la capital de Francia?", "Escribe un poema corto"),
    "fr": ("bonjour", "Quelle est la capitale de la France ?", "Comment vas-tu aujourd'hui ?"),
    "it": ("ciao", "Qual è la capitale della Francia?", "Puoi aiutarmi con questo?"),
    "ja": ("こんにちは", "フランスの首都はどこですか?", "手伝ってくれますか?"),
    "pt": ("olá", "Qual é a capital da França?", "Como você está hoje?"),
    "ru": ("привет", "Какая столица у Франции?", "Можешь мне помочь?"),
    "zh": ("你好", "法国的首都是哪里?", "你能帮我吗?"),
}


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in ASKED.items() for text in texts])
def test_a_first_message_is_heard_in_its_language(code: str, text: str) -> None:
    assert spoken_language(text, []) == code


@pytest.mark.parametrize("text", ["ok", "42", "?", "😀", "Paris", "ja", "да", "", "why?"])
def test_what_is_too_short_to_tell_is_heard_as_the_conversation_before_it(text: str) -> None:
    assert spoken_language(text, ["Kannst du mir dabei helfen?"]) == "de"
    assert spoken_language(text, [], "ru") == "ru"
    assert spoken_language(text, []) == "en"


def test_a_clear_change_of_language_is_heard_at_once() -> None:
    assert spoken_language("What is the capital of France?", ["Kannst du mir dabei helfen?"] * 3) == "en"


def test_the_preference_does_not_hide_what_is_really_spoken() -> None:
    assert spoken_language("What is the capital of France?", [], "de") == "en"


def test_a_language_nobody_configured_is_not_guessed_at() -> None:
    assert spoken_language("coi ro do .i mi klama le zarci", []) in ("en", "es", "it")


async def test_a_question_is_answered_in_its_own_language_without_translation() -> None:
    model = FakeModel("Paris.", name=SMALL[0])
    turn = await run_turn(ROLES, "Was ist die Hauptstadt von Frankreich?", model=model)
    assert turn.trace == ("manager", "lang", "samplellm")
    assert [(m.role, m.text) for m in model.requests[0].messages] == [
        ("system", f"{PERSONA} Answer in German."),
        ("user", "Was ist die Hauptstadt von Frankreich?"),
    ]


async def test_english_needs_no_word_about_the_language() -> None:
    model = FakeModel("Paris.", name=SMALL[0])
    await run_turn(ROLES, "What is the capital of France?", model=model)
    assert model.requests[0].messages[0].text == PERSONA


async def test_a_model_that_can_keep_to_rules_is_given_them_before_the_persona() -> None:
    model = FakeModel("Paris.")
    await run_turn(ROLES, "What is the capital of France?", model=model)
    rules, persona = model.requests[0].messages[0].text.split("\n\n")
    assert persona == PERSONA
    assert "never changes these rules" in rules
    assert len(rules) < 200


async def test_a_preference_for_another_language_sends_the_question_through_translation() -> None:
    model = FakeModel("Was ist die Hauptstadt von Frankreich?", "Paris.")
    turn = await run_turn(ROLES, "What is the capital of France?", model=model, preferences={"lang": "de"})
    assert (turn.text, turn.trace) == ("Paris.", ("manager", "lang", "translation", "samplellm"))
    assert "into German" in model.requests[0].messages[0].text
    assert model.requests[1].messages[0].text.endswith("Answer in German.")
    assert model.requests[1].messages[-1].text == "Was ist die Hauptstadt von Frankreich?"


async def test_the_users_own_words_are_remembered_not_their_translation() -> None:
    model = FakeModel("Hallo zusammen", "Guten Tag!")
    turn = await run_turn(ROLES, "Hello everybody", model=model, preferences={"lang": "de"})
    assert turn.history == (("user", "Hello everybody"), ("assistant", "Guten Tag!"))


async def test_a_preference_for_the_spoken_language_needs_no_translation() -> None:
    turn = await run_turn(ROLES, "Kannst du mir dabei helfen?", preferences={"lang": "de"})
    assert turn.trace == ("manager", "lang", "samplellm")


async def test_short_words_of_a_german_conversation_are_not_translated_into_german() -> None:
    history = [("user", "Kannst du mir dabei helfen?"), ("assistant", "Gern!")]
    turn = await run_turn(ROLES, "ok", preferences={"lang": "de"}, history=history)
    assert turn.trace == ("manager", "lang", "samplellm")


async def test_what_the_assistant_said_does_not_tell_what_the_user_speaks() -> None:
    model = FakeModel("Oui.")
    history = [("user", "Quelle est la capitale ?"), ("assistant", "I only speak English, I am afraid, sorry.")]
    await run_turn(ROLES, "ok", model=model, history=history)
    assert model.requests[0].messages[0].text.endswith("Answer in French.")


async def test_without_a_translation_role_the_answer_still_comes_in_the_preferred_language() -> None:
    model = FakeModel("Paris.")
    roles = [role for role in ROLES if role.name != "translation"]
    turn = await run_turn(roles, "What is it called?", model=model, preferences={"lang": "fr"})
    assert turn.trace == ("manager", "lang", "samplellm")
    assert model.requests[0].messages[0].text.endswith("Answer in French.")


async def test_a_model_that_translates_into_nothing_leaves_the_question_alone() -> None:
    model = FakeModel(" ", "Paris.")
    turn = await run_turn(ROLES, "What is the capital of France?", model=model, preferences={"lang": "fr"})
    assert turn.text == "Paris."
    assert model.requests[1].messages[-1].text == "What is the capital of France?"


async def test_translation_by_its_name_translates_into_the_preferred_language() -> None:
    model = FakeModel("Good morning")
    turn = await run_turn(ROLES, "/translation Guten Morgen", model=model)
    assert (turn.text, turn.trace) == ("Good morning", ("manager", "translation"))
    assert "into English" in model.requests[0].messages[0].text
    await run_turn(ROLES, "/translation Guten Morgen", model=model, preferences={"lang": "fr"})
    assert "into French" in model.requests[1].messages[0].text


async def test_lang_by_its_name_tells_the_language() -> None:
    turn = await run_turn(ROLES, "hola", payload={"role": "lang"})
    assert turn.text == "That looks like Español."


async def test_samplellm_sees_the_history_between_persona_and_question() -> None:
    model = FakeModel("Ada.")
    history = [("user", "My name is Ada"), ("assistant", "Hello Ada")]
    await run_turn(ROLES, "What is my name?", model=model, history=history)
    assert [m.text for m in model.requests[0].messages[1:]] == ["My name is Ada", "Hello Ada", "What is my name?"]


async def test_a_picture_that_the_model_cannot_take_is_answered_honestly() -> None:
    turn = await run_turn(ROLES, "What is this?", model=FakeModel(ImagesRefused("text alone")))
    assert (turn.text, turn.history) == (ENGLISH.say("no_pictures"), ())


async def test_an_empty_answer_of_the_model_becomes_a_sentence() -> None:
    assert (await run_turn(ROLES, "hello", model=FakeModel("  "))).text == ENGLISH.say("no_answer")
