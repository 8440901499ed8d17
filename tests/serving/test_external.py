"""Servers of others in config.py: what is taken, and what is refused with what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rolecall.config import Application, load
from rolecall.errors import ConfigError
from tests.applications import CONFIG, make_application, own_modules


def application(directory: Path, servers: str, dotenv: str = "") -> Application:
    config = CONFIG.replace("Config, Role", "Config, ModelAt, Role").replace(
        "    roles=(", f"    servers={servers},\n    roles=("
    )
    make_application(directory, config=config, dotenv=dotenv)
    with own_modules():
        return load(directory)


def test_one_server_or_several_with_keys_of_the_environment(tmp_path: Path) -> None:
    several = "(ModelAt('http://y/v1', key='${K}'), ModelAt('http://z/v1', 8))"
    servers = f"{{'a@served': ModelAt('http://x/v1/'), 'b@served': {several}}}"
    loaded = application(tmp_path, servers, "K=secret\n").servers
    assert [place.url for place in loaded["a@served"]] == ["http://x/v1"]
    assert [(place.key, place.slots) for place in loaded["b@served"]] == [("secret", 4), ("", 8)]
    assert "secret" not in repr(loaded)
    assert len({place.candidate(name).id for name, places in loaded.items() for place in places}) == 3


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ('{"a@openai": ModelAt("http://x/v1")}', "servers of a@openai: expected name@served with one or more ModelAt"),
        ('{"a@served": ()}', "servers of a@served: expected name@served with one or more ModelAt"),
        ('{"a@served": ModelAt("x:1234")}', "url is invalid: expected an address such as"),
        ('{"a@served": ModelAt("http://me:secret@x/v1")}', "url is invalid: expected an address such as"),
        ('{"a@served": ModelAt("http://x/v1", slots=0)}', "slots=0, weight=1: expected slots of at least 1"),
        ('{"a@served": ModelAt("http://x/v1", weight=0)}', "slots=4, weight=0: expected slots"),
        ('{"a@served": ModelAt("http://x/v1", key="${NOPE}")}', "needs NOPE: set it in the environment or in .env"),
        ('{"a@served": "http://x/v1"}', "servers: "),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, servers: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        application(tmp_path, servers)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
