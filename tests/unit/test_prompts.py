"""Prompts as files: what they may say, how what is wrong is refused, and how agents come by them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from rolecall import Agent, Context, Envelope, Role
from rolecall.agent.prompts import PLACE, Prompts, load_prompts
from rolecall.cli.new import fill
from rolecall.config import load
from rolecall.errors import ConfigError
from rolecall.testing import FakeModel, run_turn
from rolecall.worker.reload import reload_on_change
from tests.applications import CONFIG, make_application, own_modules, run_rolecall
from tests.deployment import deployed
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PERSONA = "{# variables: name #}\nYou are {{ name }}."
AGENTS = '''\
from rolecall import Agent, Context, Envelope


class ManagerAgent(Agent):
    """Says what a model would be told."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(ctx.prompt("greeting", name=envelope.text))
'''
ALONE = CONFIG.replace(', Role(SampleLLMAgent, instances=2, models=("echo@test",))', ",").replace(", SampleLLM", "#")


class ManagerAgent(Agent):
    """Says what a model would be told."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(ctx.prompt("greeting", name=envelope.text))


def refusal(texts: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        Prompts(texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def failure(text: str, name: str = "one", **variables: object) -> str:
    prompts = Prompts({"one.md": text, "two.md": ""})
    with pytest.raises(ConfigError) as caught:
        prompts.render(name, variables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_prompt(directory: Path, text: str) -> Path:
    place = directory / PLACE
    place.mkdir(parents=True, exist_ok=True)
    (place / "greeting.md").write_text(text)
    return directory


# ── what a prompt may say ───────────────────────────────────────────────────────────────────────


def test_a_prompt_is_its_text_with_what_it_includes_and_its_variables() -> None:
    one = '{# variables: name, language #}\n{% include "who.md" %}\n\nAnswer in {{ language }}.\n'
    prompts = Prompts({"one.md": one, "who.md": PERSONA})
    said = prompts.render("one", {"name": "Ada", "language": "German"})
    assert said == "You are Ada.\n\nAnswer in German."


def test_values_are_put_in_as_they_are_and_never_read_as_a_prompt() -> None:
    assert Prompts({"who.md": PERSONA}).render("who", {"name": "<b>{{ 7 * 7 }}"}) == "You are <b>{{ 7 * 7 }}."


def test_what_a_prompt_sets_itself_is_there_for_what_it_includes() -> None:
    prompts = Prompts({"one.md": '{% set name = "Ada" %}{% include "who.md" %}', "who.md": PERSONA})
    assert prompts.render("one", {}) == "You are Ada."


def test_a_variable_that_is_declared_need_not_be_used() -> None:
    assert Prompts({"one.md": "{# variables: language #}\nHello."}).render("one", {"language": "German"}) == "Hello."


def test_what_is_included_in_two_places_is_no_circle() -> None:
    twice = '{% include "who.md" %}{% include "two.md" %}'
    prompts = Prompts({"one.md": twice, "two.md": '{% include "who.md" %}', "who.md": "I am. "})
    assert prompts.render("one", {}) == "I am. I am."


# ── what is refused at the start ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{# variables: a #}\n\n{{ a }} {{ b }}", "line 3: 'b' is not declared; declared: a."),
        ("{{ b }}", "start the file with {# variables: b #}"),
        ("{% include 'who.md' %}", "line 1: 'name', which who.md uses, is not declared; none is declared."),
        ("\n{# variables: b #}{{ b }}", "line 2: 'b' is not declared"),
        ("{# variables: a b #}", "line 1: 'a b' is not a variable name: expected {# variables: language, name #}"),
        ("Hello\n{% if %}", "line 2: Expected an expression"),
        ("Hello\n\n{{ 'x' | nosuch }}", "line 3: No filter named 'nosuch'"),
        ("Hello\n{% include 'no.md' %}", "line 2: there is no 'no.md' to include; there are one.md, who.md"),
        ("{% include '../config.py' %}", "there is no '../config.py' to include"),
        ("{# variables: x #}{% include x %}", "line 1: include expects one file name in quotes"),
        ("{% extends 'who.md' %}", "line 1: only include may refer to other files"),
        ("{% include 'one.md' %}", "line 1: 'one.md' includes itself: one.md → one.md"),
    ],
)
def test_what_is_wrong_is_refused_with_its_file_its_line_and_what_is_allowed(text: str, said: str) -> None:
    told = refusal({"one.md": text, "who.md": PERSONA})
    assert told.startswith("agents/prompts/one.md, line ")
    assert said in told


def test_a_circle_of_includes_is_named_whole() -> None:
    texts = {"a.md": "{% include 'b.md' %}", "b.md": "{% include 'c.md' %}", "c.md": "\n{% include 'a.md' %}"}
    assert "c.md, line 2: 'a.md' includes itself: a.md → b.md → c.md → a.md" in refusal(texts)


# ── what is refused when it is asked for ────────────────────────────────────────────────────────


def test_a_missing_an_unknown_and_a_misspelt_variable_are_each_named() -> None:
    text = "{# variables: language, name #}\n{{ language }}{{ name }}"
    assert failure(text, language="x") == "prompt one: the variable 'name' is missing; it needs language, name"
    misspelt = "prompt one: there is no variable 'nam' (did you mean name?); declared: language, name"
    assert failure(text, language="x", nam="y") == misspelt
    assert failure("Hello", x=1) == "prompt one: there is no variable 'x'; none is declared"


def test_an_unknown_prompt_says_which_there_are() -> None:
    assert failure("", "on") == "there is no prompt 'on'; there are one, two"
    with pytest.raises(ConfigError, match=r"there is no prompt 'one'; write it as agents/prompts/one\.md"):
        Prompts().render("one", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ x.nosuch }}", "has no attribute 'nosuch'"),
        ("{{ x.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ x.__init__.__globals__ }}", "unsafe"),
        ("{{ x / 0 }}", "unsupported operand"),
        ("{% for n in range(999999999) %}{% endfor %}", "Range too big"),
    ],
)
def test_what_a_prompt_may_not_do_with_a_value_is_refused_with_file_and_line(text: str, said: str) -> None:
    told = failure(f"{{# variables: x #}}\n\n{text}", x="abc")
    assert told.startswith("agents/prompts/one.md, line 3: ")
    assert said in told


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_each_markdown_file_is_a_prompt_but_hidden_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / ".draft.md").write_text("{% broken")
    (tmp_path / "notes.txt").write_text("{% broken")
    (tmp_path / "one.md").write_text('\N{BYTE ORDER MARK}{% include "parts/who.md" %}', encoding="utf-8")
    (tmp_path / "parts/who.md").write_text("Grüß dich", encoding="utf-8")
    prompts = load_prompts(tmp_path)
    assert (prompts.names, prompts.render("one", {})) == (("one", "parts/who"), "Grüß dich")


def test_without_a_directory_there_are_none_and_nothing_is_wrong(tmp_path: Path) -> None:
    assert load_prompts(tmp_path / "none").names == ()


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"agents/prompts/one\.md is not UTF-8 text"):
        load_prompts(tmp_path)


def test_the_prompts_of_this_application_are_those_of_a_new_one(tmp_path: Path) -> None:
    fill(tmp_path)
    own = {path.name: path.read_text() for path in (ROOT / PLACE).glob("*.md")}
    new = {path.name: path.read_text() for path in (tmp_path / PLACE).glob("*.md")}
    assert own == new
    assert load_prompts(ROOT / PLACE).names == (
        "calculator", "persona", "remind", "research_join", "research_split", "samplellm", "security", "translation",
    )  # fmt: skip


# ── agents ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_wrong_variable_becomes_a_clear_refusal_of_the_turn() -> None:
    turn = await run_turn([Role(ManagerAgent)], "Ada", prompts=Prompts({"greeting.md": "Hello"}))
    assert turn.kind == "error"
    assert "Sorry, this did not work: prompt greeting: there is no variable 'name'; none is declared." in turn.text


async def test_a_test_finds_the_prompts_of_the_application_its_roles_are_from() -> None:
    turn = await run_turn([Role(ManagerAgent)], "Ada")
    assert "there is no prompt 'greeting'; there are calculator, persona, remind, research_join" in turn.text


async def test_a_test_may_bring_its_own_prompts() -> None:
    turn = await run_turn([Role(ManagerAgent)], "Ada", prompts=Prompts({"greeting.md": PERSONA}), model=FakeModel())
    assert turn.text == "You are Ada."


async def test_a_changed_prompt_is_taken_up_and_a_broken_one_leaves_the_running_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rolecall.worker.reload")
    with_prompt(make_application(tmp_path, config=ALONE, agents=AGENTS), PERSONA)
    with own_modules():
        async with deployed(tmp_path, load(tmp_path).roles) as app:
            reloading = asyncio.create_task(reload_on_change(app.runtime), name="reload")
            assert (await app.ask("test:1", "Ada")).text == "You are Ada."
            with_prompt(tmp_path, f"{PERSONA} Be kind.")
            await wait_until(lambda: "agents reloaded" in caplog.text)
            assert (await app.ask("test:1", "Ada")).text == "You are Ada. Be kind."
            with_prompt(tmp_path, "{{ nobody }}")
            await wait_until(lambda: "'nobody' is not declared" in caplog.text)
            assert (await app.ask("test:1", "Ada")).text == "You are Ada. Be kind."
            reloading.cancel()
            with suppress(asyncio.CancelledError):
                await reloading


def test_with_a_wrong_prompt_nothing_starts_and_check_says_why(tmp_path: Path) -> None:
    with_prompt(make_application(tmp_path), "Hello\n{{ name }}")
    said = "agents/prompts/greeting.md, line 2: 'name' is not declared; none is declared."
    for verb in (("up", "--no-chat"), ("worker",)):
        done = run_rolecall(*verb, "--app", tmp_path)
        assert done.returncode != 0
        assert said in done.stderr.splitlines()[-1] and "scribe" not in done.stderr
    done = run_rolecall("check", "--app", tmp_path)
    assert done.returncode == 1
    assert said in done.stdout


def test_check_lists_the_prompts_or_says_that_there_are_none(tmp_path: Path) -> None:
    assert "no file in agents/prompts" in run_rolecall("check", "--app", make_application(tmp_path)).stdout
    with_prompt(tmp_path, PERSONA)
    assert "1 in agents/prompts: greeting" in run_rolecall("check", "--app", tmp_path).stdout
