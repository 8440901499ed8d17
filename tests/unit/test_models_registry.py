"""From names to models, and what is said about names that cannot be."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from rolecall import version
from rolecall.errors import ConfigError, MissingExtra
from rolecall.models.fallback import Fallback
from rolecall.models.providers.echo import EchoModel
from rolecall.models.providers.local import LocalModel
from rolecall.models.providers.openai import OpenAIModel
from rolecall.models.registry import all_providers, open_model, provider_problems, warm
from rolecall.settings import Settings

HERE = Path()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt-5-mini@openai", "OPENAI_API_KEY"),
        ("claude-haiku-5-5@anthropic", "ANTHROPIC_API_KEY"),
        ("gemini-3-flash@gemini", "GEMINI_API_KEY or GOOGLE_API_KEY"),
        ("x@nowhere", "@openai, @anthropic, @gemini, @ollama, @local, @served, @test"),
        ("no-provider", "name@provider"),
        ("@test", "name@provider"),
        ("unknown@local", "smollm2@local"),
        ("qwen3@served", "config.py does not say where it is"),
        ("/no/such/file.gguf@local", "of a file that exists"),
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
        ({"openai_api_key": SecretStr("k"), "proxy": "nonsense"}, "PROXY is invalid: expected SYSTEM, NO or"),
        ({"openai_api_key": SecretStr("k"), "proxy": "host:port"}, "PROXY is invalid: expected SYSTEM, NO or"),
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


class AcmeModel(EchoModel):
    """A provider of the application's own."""


def test_an_application_adds_a_provider_as_a_class_or_by_its_import_path() -> None:
    own = {"acme": AcmeModel, "path": "tests.unit.test_models_registry:AcmeModel"}
    providers = all_providers(own)
    assert isinstance(open_model("m@acme", Settings(), HERE, providers=providers), AcmeModel)
    assert open_model("m@path", Settings(), HERE, providers=providers).name.startswith("m@")
    assert "openai" in providers


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"openai": AcmeModel}, "provider 'openai' of config.py is invalid: expected a new name"),
        ({"Acme!": AcmeModel}, "provider 'Acme!' of config.py is invalid: expected a new name"),
        ({"acme": 7}, "provider 'acme' is invalid: expected a class with a classmethod open"),
        ({"acme": "nothing"}, "provider 'acme' is invalid: expected a class"),
    ],
)
def test_a_wrong_provider_is_one_clear_line(own: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        all_providers(own)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_provider_that_cannot_be_imported_is_named_when_its_model_is_opened() -> None:
    with pytest.raises(ConfigError, match="provider 'acme' cannot be loaded: ModuleNotFoundError"):
        open_model("m@acme", Settings(), HERE, providers=all_providers({"acme": "not_there:Model"}))


def test_a_package_with_a_broken_entry_point_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("acme", "not_there:Model", "rolecall.providers")
    monkeypatch.setattr(version, "_installed", lambda path: EntryPoints([broken]))
    with pytest.raises(ConfigError, match=r"^provider 'acme' of package not_there cannot be loaded: ModuleNotFound"):
        all_providers({})


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
    await warm(Fallback([open_model(name, Settings(), HERE) for name in ("a@test", "b@test")]))
