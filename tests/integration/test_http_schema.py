"""The OpenAPI document: it is whole, and nothing that can be sent by it is answered with a server error.

``ROLECALL_SCHEMA_EXAMPLES=50`` sends that much to each operation of the whole server, and all that the document's
limits suggest.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from rolecall.agent.role import Role
from rolecall.bus.dead_letters import dead_letters
from tests.deployment import Deployment, deployed
from tests.http.server import serving
from tests.http.stage import ManagerAgent, SampleLLMAgent, TellAgent

EXAMPLES = int(os.environ.get("ROLECALL_SCHEMA_EXAMPLES", "0"))
CONFIG = """
[[operations]]
include-path-regex = "^/(v1/(chat/completions|responses)|api/(chat|generate))$"

[operations.checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 502]
"""
"""The model has no JSON for a schema, so that the turn fails."""
ENDLESS = ("--exclude-path-regex", "^/chat/notices/")
"""A stream of notices ends with its reader only."""
SHORT = ("--phases", "fuzzing", "--max-examples", "4", "--include-path-regex", "^/(chat|v1)")
LONG = ("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(EXAMPLES))
ROLES = (Role(ManagerAgent), Role(SampleLLMAgent, instances=4, models=("echo@test",)), Role(TellAgent))


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path, ROLES, http_requests_per_minute=1_000_000) as running:
        yield running


@pytest.fixture
async def url(deployment: Deployment) -> AsyncIterator[str]:
    async with serving(deployment.session.application) as url:
        yield url


@pytest.mark.timeout(60 + 60 * EXAMPLES)
async def test_nothing_that_the_document_allows_is_a_server_error(
    deployment: Deployment, url: str, tmp_path: Path
) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    form = {"format": {"type": "json_object"}}
    async with httpx2.AsyncClient(base_url=url) as client:
        asked = await client.post("/v1/responses", json={"model": "auto", "input": "Hello", "text": form})
        assert asked.status_code == 502
    command = (
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--no-color",
        "--checks", "not_a_server_error", "--request-timeout", "20", "--warnings", "off",
        *ENDLESS, *(LONG if EXAMPLES else SHORT),
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    found = re.search(r"(\d+) generated, (\d+) passed", said)
    assert found and int(found[1]) == int(found[2]) > 20, said
    letters = await dead_letters(deployment.session.bus)
    assert letters and all("gave no JSON that matches" in letter.reason for letter in letters)
    async with httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/health/live")).status_code == 200


async def test_the_document_describes_the_events_and_the_problems(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        document = (await client.get("/openapi.json")).json()
    paths, components = document["paths"], document["components"]
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for kind in components.values() for name in kind)
    asked = paths["/chat/stream"]["post"]["responses"]
    assert set(asked["200"]["content"]) == {"text/event-stream"}
    for status in ("401", "413", "422", "429", "503"):
        assert asked[status]["content"].keys() == {"application/problem+json"}
    names = [one["operationId"] for item in paths.values() for one in item.values()]
    assert len(set(names)) == len(names) and "responses_create" in names
    assert not [name for name in names if name.endswith(("_get", "_post"))], "FastAPI's own names"
    told = {path: str(item) for path, item in paths.items()}
    assert "'itemSchema'" not in str(told) and "HTTPValidationError" not in str(document)
    assert all("OpenAIError" in said and "'422'" not in said for path, said in told.items() if path.startswith("/v1/"))
    assert "'403'" in told["/agents"] and "'401'" in told["/chat"]
    assert paths["/chat/async"]["post"]["responses"]["202"]["headers"]["Location"]
