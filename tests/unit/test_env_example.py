"""``.env.example`` lists exactly the settings, each with its description and default.

After a change of the settings:  python -m tests.unit.test_env_example > .env.example
"""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

from dotenv import dotenv_values

from config import config
from reference.settings import SECTIONS, described, shown
from rolecall.settings import Settings

FILE = Path(__file__).parents[2] / ".env.example"
HEAD = (
    "Copy this file to .env and uncomment the lines you change. Environment variables take precedence over .env. "
    "For a secret NAME you can set NAME_FILE to the path of a file that contains it."
)
COMPOSE = (
    ("ROLECALL_UID", "1000", "ID of the user the containers run as, who must own the directory log (`id -u`)"),
    ("ROLECALL_GID", "1000", "ID of that user's group (`id -g`)"),
    ("ROLECALL_VERSION", "latest", "tag of the images"),
    ("COMPOSE_PROFILES", "", "local also starts the small local model, which needs no key"),
    ("VALKEY_WORKER_PASSWORD", "", "server password of the agents; generated if unset, like those below"),
    ("VALKEY_FRONT_PASSWORD", "", "server password of the HTTP server"),
    ("VALKEY_TELEGRAM_PASSWORD", "", "server password of the Telegram front end"),
    ("VALKEY_OPERATOR_PASSWORD", "", "server password of `docker compose run --rm rolecall`"),
)
INSTANCES = (
    "instances of a role in each worker process, <ROLE>_INSTANCES: 0 to 1024, or auto to follow its model servers"
)


def rendered() -> str:
    lines = [*comment(HEAD)]
    for title, settings in SECTIONS:
        lines += ["", f"# --- {title} ---", ""]
        for name, field in settings.model_fields.items():
            lines += [*comment(described(field)), f"#{name.upper()}={shown(field.default)}"]
    lines += ["", "# --- Instances ---", "", *comment(INSTANCES)]
    lines += [f"#{role.name.upper()}_INSTANCES={role.instances}" for role in config.roles]
    lines += ["", "# --- Docker Compose only (docs/deploy.md) ---", ""]
    for variable, default, meaning in COMPOSE:
        lines += [*comment(meaning), f"#{variable}={default}"]
    return "\n".join(lines) + "\n"


def comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, 108)]


def test_it_is_up_to_date() -> None:
    assert FILE.read_text() == rendered(), "python -m tests.unit.test_env_example > .env.example"


def test_its_sections_leave_no_setting_out() -> None:
    assert {name for _, section in SECTIONS for name in section.model_fields} == set(Settings.model_fields)


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_with_every_line_in_force_it_is_the_defaults(tmp_path: Path) -> None:
    lines = [line.removeprefix("#") if "=" in line and line[1:2] != " " else line for line in rendered().split("\n")]
    (tmp_path / ".env").write_text("\n".join(lines))
    given = {name.lower(): value for name, value in dotenv_values(tmp_path / ".env").items() if value}
    own = {name: value for name, value in given.items() if name in Settings.model_fields}
    assert Settings.model_validate(own) == Settings()


if __name__ == "__main__":
    print(rendered(), end="")
