"""The generated pages of the documentation name everything that is there, and nothing that is not."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
import yaml
from dotenv import dotenv_values

import rolecall
from reference import command_line, http_api, settings
from reference.events import EVENTS, RECORDS
from reference.keys import of_a_shard, whole_bus
from reference.markdown import summary
from reference.metrics import found
from reference.pages import pages
from reference.python_api import MORE, written_out
from rolecall.bus.events import Kind
from rolecall.config import load
from rolecall.settings import Settings
from rolecall.transcripts.words import WORDS
from tests.cases import cases, named_tests
from tests.unit.test_env_example import COMPOSE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (*DOCS.rglob("*.md"), ROOT / "README.md")
}
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.*?)(?: \{#[\w-]+\})?$", re.MULTILINE)


class Navigation(yaml.SafeLoader):
    """mkdocs.yml without what its own tags stand for."""


Navigation.add_multi_constructor("", lambda loader, suffix, node: None)


@pytest.fixture(scope="module")
def generated() -> Mapping[str, str]:
    return pages()


@pytest.fixture(scope="module")
def everything(generated: Mapping[str, str]) -> Mapping[str, str]:
    return {**PAGES, **{f"docs/{name}": text for name, text in generated.items()}}


def test_the_reference_has_every_verb_setting_route_and_name(generated: Mapping[str, str]) -> None:
    told = {name: generated[f"reference/{name}.md"] for name in ("command-line", "settings", "http", "python")}
    assert [name for name, _ in command_line.commands() if f"## rolecall {name}\n" not in told["command-line"]] == []
    assert [name for name in Settings.model_fields if f"| `{name.upper()}` |" not in told["settings"]] == []
    routes = [f"### {method.upper()} {path}\n" for path, method, _ in http_api.operations(http_api.document())]
    assert len(routes) > 30 and [route for route in routes if route not in told["http"]] == []
    assert [name for name in rolecall.__all__ if f"::: rolecall.{name}\n" not in told["python"]] == []


def test_the_command_line_shows_which_arguments_may_be_left_out_or_repeated(generated: Mapping[str, str]) -> None:
    for call in ("logs [OPTIONS] [ID]", "dead replay [OPTIONS] [ID]...", "ask [OPTIONS] TEXT"):
        assert f"rolecall {call}\n" in generated["reference/command-line.md"]


def test_language_models_read_signatures_and_docstrings_in_place_of_directives(generated: Mapping[str, str]) -> None:
    told = written_out(generated["reference/python.md"])
    assert ":::" not in told
    assert "- `handle(self, envelope: 'Envelope', ctx: 'Context') -> 'Envelope'`: Handle `envelope`" in told
    assert "- `tokens_in: int`" in told and "### rolecall.connect\n" in told


@pytest.mark.parametrize(
    ("markdown", "said"),
    [
        ("# Title\n\nA turn is\none message. More.", "A turn is one message."),
        ("# Title\n\nRead [Models](models.md#a): it helps.", "Read Models: it helps."),
        ("# Title\n\nGive each a prefix:\n\n```\nx\n```", "Give each a prefix"),
        ("# Title\n\n```\npip install rolecall\n```", ""),
        ("# Title\n\n| a | b |\n|---|---|", ""),
        ("# Title", ""),
    ],
)
def test_the_summary_of_a_page_is_its_first_sentence(markdown: str, said: str) -> None:
    assert summary(markdown) == said


def test_every_event_word_key_and_metric_is_explained() -> None:
    assert set(EVENTS) == set(get_args(Kind))
    assert set(RECORDS) == set(WORDS)
    assert [key for key, text in (*whole_bus(), *of_a_shard()) if not text] == []


async def test_operations_tell_of_every_metric() -> None:
    told = PAGES["docs/operators.md"]
    metrics = [name.removeprefix("rolecall_") for name, _, _, _ in await found()]
    assert len(metrics) > 20 and [name for name in metrics if f"`{name}`" not in told] == []


def test_the_names_of_the_python_reference_exist() -> None:
    for _, _, names in MORE:
        for name in names:
            module, _, attribute = name.rpartition(".")
            assert hasattr(__import__(module, fromlist=[attribute]), attribute), name


def test_the_data_model_has_every_key_of_the_code() -> None:
    told = PAGES["docs/data-model.md"]
    parts = {
        re.sub(r"<.*", "", key.removeprefix("P:").removeprefix("{bus:0}:")) for key, _ in (*whole_bus(), *of_a_shard())
    }
    assert [part for part in sorted(parts) if f"P:{part}" not in told and f"{{bus:0}}:{part}" not in told] == []


def test_commands_in_the_documentation_exist_with_their_options() -> None:
    verbs = {name: {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
             for name, command in command_line.commands()}  # fmt: skip
    wrong = []
    for page, text in PAGES.items():
        shown = re.findall(r"^\s*(?:\$ )?(rolecall [a-z].*)$", "\n".join(code_of(text)), re.MULTILINE)
        for line in (*shown, *re.findall(r"`(rolecall [a-z][^`]*)`", text)):
            words = re.split(r"\s#|&&| \|", line)[0].split()[1:]
            verb = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in verbs), "")
            group = words[0].split("|")[0] in {name.split()[0] for name in verbs}
            options = {
                re.sub(r"[=\]|,].*", "", word.strip("[]()")) for word in words if re.match(r"[\[(]?--[a-z]", word)
            }
            if not group or (verb and not options <= verbs[verb]):
                wrong.append(f"{page}: {line}")
    assert wrong == []


def test_settings_in_the_documentation_exist() -> None:
    known = {name.upper() for name in Settings.model_fields} | {name for name, _, _ in COMPOSE}
    known |= {f"{role.name.upper()}_INSTANCES" for role in load(ROOT).roles} | set(dotenv_values(ROOT / ".env.example"))
    wrong = []
    for page, text in PAGES.items():
        for block in re.findall(r"```ini[^\n]*\n(.*?)```", text, re.DOTALL):
            for name in re.findall(r"^([A-Z_]+)=", block, re.MULTILINE):
                if name.removesuffix("_FILE") not in known:
                    wrong.append(f"{page}: {name}")
    assert wrong == []


def test_links_between_the_pages_lead_somewhere(everything: Mapping[str, str]) -> None:
    wrong = []
    for page, text in everything.items():
        for link in LINK.findall("".join(re.split(r"^```.*?^```$", text, flags=re.MULTILINE | re.DOTALL))):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = str((ROOT / page).parent.joinpath(path).resolve().relative_to(ROOT)) if path else page
            there = target in everything or (ROOT / target).exists()
            if not there or (anchor and target in everything and anchor not in anchors(everything[target])):
                wrong.append(f"{page}: {link}")
    assert wrong == []


def test_the_pages_of_faults_and_of_telegram_name_tests_that_exist() -> None:
    assert len(cases()) >= 25 and all(case.tests for case in cases())
    assert len(named_tests(PAGES["docs/faults.md"])) > 100
    assert len(named_tests(PAGES["docs/telegram.md"])) > 35


def test_the_navigation_names_pages_that_exist_once(everything: Mapping[str, str]) -> None:
    names = list(leaves(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Navigation)["nav"]))
    assert len(names) == len(set(names))
    assert [name for name in names if f"docs/{name}" not in everything] == []


@pytest.mark.parametrize("concept", sorted((DOCS / "concepts").glob("*.md")), ids=lambda path: path.stem)
def test_a_concept_has_one_picture(concept: Path) -> None:
    assert concept.read_text(encoding="utf-8").count("```mermaid") == 1


def test_defaults_told_in_the_comparison_are_those_in_force() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert wanted == ">=3.11"
    fields = Settings.model_fields
    assert (fields["lease_seconds"].default, fields["heartbeat_seconds"].default) == (15, 4)
    assert settings.shown(fields["handling_seconds"].default) == "900"


def code_of(text: str) -> list[str]:
    return re.findall(r"^```(?!python|yaml|json|ini|mermaid|html)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The ids of headings, as the site makes them."""
    plain = (
        re.sub(r"[^\w\s-]", "", re.sub(r"`|\[([^\]]*)\]\([^)]*\)", r"\1", title)) for title in HEADING.findall(text)
    )
    return {re.sub(r"[-\s]+", "-", title.strip().lower()) for title in plain}


def leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else []
    return [name for child in children for name in leaves(child)]
