"""From names to models, and what is said about names that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from rolecall.errors import ConfigError, MissingExtra
from rolecall.models.fallback import Fallback
from rolecall.models.providers.local import LocalModel
from rolecall.models.providers.openai import OpenAIModel
from rolecall.models.registry import open_model, open_models, provider_problems, warm
from rolecall.settings import Settings

HERE = Path()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt-5-mini@openai", "OPENAI_API_KEY"),
        ("gemini-3-flash@gemini", "GEMINI_API_KEY or GOOGLE_API_KEY"),
        ("x@nowhere", "@openai, @gemini, @ollama, @local, @served, @test"),
        ("no-provider", "name@provider"),
        ("@test", "name@provider"),
        ("unknown@local", "smollm2@local"),
        ("qwen3@served", "config.py does not say where it is"),
        ("/no/such/file.gguf@local", "the file being there"),
    ],
)
def test_a_name_that_cannot_work_is_refused_with_what_can(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_model(name, Settings(), HERE)
    assert said in (provider_problems(name, Settings()) or "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"openai_base_url": "localhost:8080"}, "OPENAI_BASE_URL=localhost:8080"),
        ({"openai_api_key": SecretStr("k"), "proxy": "nonsense"}, "PROXY: SYSTEM, NO or host:port"),
        ({"openai_api_key": SecretStr("k"), "proxy": "host:port"}, "PROXY: SYSTEM, NO or host:port"),
    ],
)
def test_a_bad_address_is_refused_before_any_call(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_model("m@openai", Settings(**settings), HERE)


@pytest.mark.parametrize(
    "settings",
    [
        {"openai_api_key": SecretStr("k")},
        {"openai_base_url": "http://127.0.0.1:1/v1"},
        {"openai_api_key": SecretStr("k"), "proxy": "no"},
        {"openai_api_key": SecretStr("k"), "proxy": "proxy.example:3128"},
    ],
)
def test_a_name_that_can_work_has_no_problem(settings: dict[str, Any]) -> None:
    assert provider_problems("m@openai", Settings(**settings)) is None


def test_a_name_may_hold_signs_that_providers_use() -> None:
    model = open_model("org/model:8b@v2@test", Settings(), HERE)
    assert model.name == "org/model:8b@v2@test"


def test_several_names_are_one_model_in_that_order() -> None:
    model = open_models(("a@test", "b@test"), Settings(), HERE)
    assert isinstance(model, Fallback)
    assert [part.name for part in model.models] == ["a@test", "b@test"]
    assert open_models(("a@test",), Settings(), HERE).name == "a@test"


def test_no_name_is_a_problem_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="GEN_MODEL"):
        open_models((), Settings(), HERE)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "openai", raising=False)
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    with pytest.raises(MissingExtra, match=r"rolecall\[openai\]"):
        OpenAIModel.open("m", Settings(openai_api_key=SecretStr("k")), HERE)
    with pytest.raises(ConfigError, match=r"rolecall\[local\].*OPENAI_BASE_URL"):
        LocalModel.open("smollm2", Settings(), HERE)


async def test_warming_a_model_that_lives_elsewhere_is_nothing() -> None:
    await warm(open_models(("a@test", "b@test"), Settings(), HERE))
