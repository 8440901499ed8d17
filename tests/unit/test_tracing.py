"""Traces: one for each turn, whatever process runs its hops, and nothing at all while they are off."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import StatusCode

from rolecall import Agent, Context, Envelope, Reject
from rolecall.agent.mcp import ToolServer, ToolServerHost, ToolServers
from rolecall.agent.role import Role
from rolecall.cli.stderr_log import ForMachines
from rolecall.errors import ConfigError
from rolecall.settings import Settings
from rolecall.tracing import conventions
from rolecall.tracing.otlp import RecordedTraces, open_tracing
from rolecall.tracing.span import Tracing, span
from rolecall.tracing.traceparent import HEADER, parsed
from rolecall.worker import runtime
from tests.contract.model_vendor import Connection, Vendor, saying
from tests.contract.model_wires import OpenAIWire
from tests.deployment import deployed
from tests.http.server import serving
from tests.listening import listening
from tests.waiting import wait_until

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "sk-thisisasecretthatnobodymaysee"


class ManagerAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("samplellm")


class CallingAgent(Agent):
    role = "manager"

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply((await ctx.call("samplellm", envelope.text)).text)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class SampleLLMAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "bury me":
            raise Reject(f"with {SECRET}")
        await ctx.once("charge", lambda: 7)
        logging.getLogger("agents").warning("at work")
        answer = await ctx.stream(ctx.model, (), envelope.text, tools=[add], temperature=0.5, max_tokens=99)
        return envelope.reply(answer)


async def calls_a_tool(connection: Connection) -> None:
    """The model calls a tool, then says what came of it."""
    again = any(message["role"] == "tool" for message in connection.body["messages"])
    call = (connection.wire.call("add", {"a": 1, "b": 2}), connection.wire.end("tool_calls", (9, 3)))
    await saying(*((connection.wire.delta("3"), connection.wire.end("stop", (20, 7))) if again else call))(connection)


ROLES = (Role(ManagerAgent), Role(SampleLLMAgent, instances=2, models=("echo@test",)))


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What every worker of this test records."""
    exporter = InMemorySpanExporter()

    def opened(settings: Settings, process: str) -> Tracing:
        return RecordedTraces(settings, process, SimpleSpanProcessor(exporter))

    monkeypatch.setattr(runtime, "open_tracing", opened)
    return exporter


async def turn_of(spans: InMemorySpanExporter, count: int = 1) -> list[ReadableSpan]:
    """All spans, once ``count`` turns are complete."""
    await wait_until(lambda: [one.name for one in spans.get_finished_spans()].count("turn") == count)
    return list(spans.get_finished_spans())


def tree(spans: Sequence[ReadableSpan], parent: int | None = None) -> list[Any]:
    """The names of spans below ``parent``, nested, in the order in which they began."""
    return [
        (one.name, tree(spans, one.context.span_id if one.context else 0))
        for one in sorted(spans, key=lambda one: one.start_time or 0)
        if (one.parent.span_id if one.parent else None) == parent
    ]


def attributes(spans: Sequence[ReadableSpan], name: str) -> dict[str, Any]:
    (one,) = (one for one in spans if one.name == name)
    return dict(one.attributes or {})


async def test_a_turn_is_one_trace_with_a_span_for_each_hop_call_tool_and_step(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    vendor = Vendor(OpenAIWire())
    vendor.script = calls_a_tool
    await vendor.start()
    roles, given = (ROLES[0], Role(SampleLLMAgent, models=("m@openai",))), {"openai_base_url": f"{vendor.url}/v1"}
    async with deployed(tmp_path, roles, processes=2, openai_api_key="sk-x", **given) as deployment:  # type: ignore[arg-type]
        await deployment.ask("terminal:a", "the word of a user")
        found = await turn_of(spans)
    await vendor.stop()
    assert tree(found) == [
        ("turn", [
            ("invoke_agent manager", []),
            ("invoke_agent samplellm", [("once charge", []), ("chat m", []), ("execute_tool add", []), ("chat m", [])]),
        ]),
    ]  # fmt: skip
    assert len({one.context.trace_id for one in found if one.context}) == 1
    asked, answered = (one for one in found if one.name == "chat m")
    about = dict(answered.attributes or {})
    assert about["gen_ai.operation.name"] == "chat" and about["gen_ai.provider.name"] == "openai"
    assert about["gen_ai.request.model"] == about["gen_ai.response.model"] == "m"
    assert (about["gen_ai.request.temperature"], about["gen_ai.request.max_tokens"]) == (0.5, 99)
    assert (about["gen_ai.usage.input_tokens"], about["gen_ai.usage.output_tokens"]) == (20, 7)
    assert about["gen_ai.response.finish_reasons"] == ("stop",)
    assert dict(asked.attributes or {})["gen_ai.response.finish_reasons"] == ("tool_calls",)
    assert attributes(found, "execute_tool add")["gen_ai.tool.call.id"] == "call_1"
    sent = [parsed(connection.headers[HEADER]) for connection in vendor.connections]
    assert sent == [(one.context.trace_id, one.context.span_id, True) for one in (asked, answered) if one.context]
    hop = attributes(found, "invoke_agent samplellm")
    assert hop["gen_ai.agent.name"] == "samplellm" and hop["gen_ai.conversation.id"] == "terminal:a"
    assert hop["rolecall.hop"] == 1 and hop["rolecall.wait_seconds"] >= 0 and hop["rolecall.verdict"] == "OK"
    assert "the word of" not in str([one.to_json() for one in found]), "what users say is not recorded"


async def test_calls_of_other_roles_are_in_the_trace_of_their_turn(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async with deployed(tmp_path, (Role(CallingAgent), *ROLES[1:])) as deployment:
        assert (await deployment.ask("terminal:a", "hello")).text == "echo: hello"
        found = await turn_of(spans, 2)
    assert len({one.context.trace_id for one in found if one.context}) == 1
    called: Any = ("turn", [("invoke_agent samplellm", [("once charge", []), ("chat echo", [])])])
    assert tree(found) == [("turn", [("invoke_agent manager", [called]), ("invoke_agent manager", [])])]


async def test_the_trace_continues_that_of_the_http_request(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async with (
        deployed(tmp_path, ROLES) as deployment,
        serving(deployment.session.application) as url,
        httpx2.AsyncClient(base_url=url) as client,
    ):
        for given in (CALLER, "00-nonsense-b7ad6b7169203331-01", CALLER[:-1] + "0"):
            answer = await client.post("/chat", json={"text": "hello"}, headers={HEADER: given})
            assert answer.status_code == 200, answer.text
        found = await turn_of(spans, 2)  # the last is not recorded, as its caller wishes
    traced = [one for one in found if one.context and f"{one.context.trace_id:032x}" == CALLER[3:35]]
    (root,) = (one for one in traced if one.name == "turn")
    assert root.parent and f"{root.parent.span_id:016x}" == CALLER[36:52]
    assert {one.name for one in traced} >= {"invoke_agent manager", "invoke_agent samplellm", "chat echo"}
    assert len(found) == 2 * len(traced)


async def test_a_turn_that_is_given_up_is_marked_and_tells_no_secret(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    async with deployed(tmp_path, ROLES) as deployment:
        await deployment.ask("terminal:a", "bury me")
        found = await turn_of(spans)
    failed = {one.name for one in found if one.status.status_code is StatusCode.ERROR}
    assert failed == {"turn", "invoke_agent samplellm"}
    assert attributes(found, "turn")["error.type"] == "rejected"
    assert SECRET not in str([one.to_json() for one in found])


async def test_the_share_that_is_traced_is_decided_alike_everywhere() -> None:
    exporter = InMemorySpanExporter()
    half = Settings(otel_traces_sampler_arg=0.5)
    one, two = (RecordedTraces(half, name, SimpleSpanProcessor(exporter)) for name in ("a", "b"))
    for number in range(100):
        with one.hop("invoke_agent x", {}, f"id {number}", "1", {}), span("chat y", {}, client=True):
            pass
        two.turn({}, f"id {number}", "1", {}, 0)
    names = [found.name for found in exporter.get_finished_spans()]
    assert names.count("turn") == names.count("invoke_agent x") == names.count("chat y")
    assert 25 < names.count("turn") < 75


async def test_log_lines_name_the_trace(
    tmp_path: Path, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, Any]] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(ForMachines(()).format(record)))

    logger, handler = logging.getLogger("agents"), Keeping()
    logger.addHandler(handler)
    try:
        async with deployed(tmp_path, ROLES) as deployment:
            await deployment.ask("terminal:a", "hello")
            (trace,) = {f"{one.context.trace_id:032x}" for one in await turn_of(spans) if one.context}
    finally:
        logger.removeHandler(handler)
    assert [line["trace_id"] for line in lines] == [trace]


async def test_names_are_those_of_the_conventions() -> None:
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI")}
    operations = {one.value for one in gen_ai_attributes.GenAiOperationNameValues}
    providers = {one.value for one in gen_ai_attributes.GenAiProviderNameValues}
    given = [
        conventions.turn("c", "1"), conventions.agent("r", "i", "c", "1"), conventions.model("m@openai", 1, 0.5, True),
        conventions.answer("m@openai", 1, 2, "stop"), conventions.tool("t", "1"), conventions.step("once", "n", "1"),
    ]  # fmt: skip
    for attributes in given:
        assert {name for name in attributes if name.startswith("gen_ai.")} <= known
        assert attributes.get("gen_ai.operation.name", "chat") in operations
    for provider in ("openai", "gemini", "anthropic"):
        assert conventions.model(f"m@{provider}", None, None, False)["gen_ai.provider.name"] in providers


def test_a_traceparent_is_taken_or_left_as_the_w3c_says() -> None:
    assert parsed(CALLER) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True)
    assert parsed(CALLER.replace("00-", "42-", 1) + "-more") is not None  # a later version may say more
    empty = (f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01")
    for bad in (
        "",
        None,
        7,
        CALLER.upper(),
        CALLER[:-1],
        f"ff{CALLER[2:]}",
        *empty,
        f"{CALLER}x",
        f"{CALLER}-{'y' * 600}",
    ):
        assert parsed(bad) is None, bad


def test_nothing_of_opentelemetry_is_imported_while_it_is_off() -> None:
    program = (
        "import sys; import rolecall.worker.runtime, rolecall.client, rolecall.models.providers.openai; "
        "from rolecall.settings import Settings; from rolecall.tracing.otlp import open_tracing; "
        "from rolecall.tracing.span import UNTRACED; "
        "assert open_tracing(Settings(), 'p') is UNTRACED; "
        # redis-py imports what there is of OpenTelemetry's metrics
        "print([n for n in sys.modules if n.startswith(('opentelemetry.exporter', 'opentelemetry.sdk.trace'))])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


async def test_tool_servers_are_told_the_trace(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    tracing = RecordedTraces(Settings(), "p", SimpleSpanProcessor(exporter))
    servers = ToolServers(
        {"notes": ToolServer(command=(sys.executable, str(Path(__file__).parents[1] / "tool_program.py")), seconds=30)},
        ToolServerHost(tmp_path, tmp_path / "state"),
    )
    try:
        tools = {tool.spec.name: tool for tool in await servers.tools("notes")}
        with tracing.hop("invoke_agent x", {}, "some envelope", "1", {}):
            told = await tools["trace"].run("{}")
        assert told == f"{exporter.get_finished_spans()[0].context.trace_id:032x}"
        assert await tools["trace"].run("{}") == "0" * 32
    finally:
        await servers.aclose()


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[ExportTraceServiceRequest], list[str]]]:
    """A receiver of OTLP over HTTP: its address, what came, and the keys that came with it."""
    received: list[ExportTraceServiceRequest] = []
    keys: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                if headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert first.startswith("POST /v1/traces ")
                received.append(ExportTraceServiceRequest.FromString(body))
                keys.append(headers.get("x-api-key", ""))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}", received, keys


async def test_a_collector_gets_the_traces_when_the_worker_has_drained(tmp_path: Path) -> None:
    async with collector() as (url, received, keys):
        given: dict[str, Any] = {
            "otel_exporter_otlp_endpoint": url, "otel_exporter_otlp_headers": "X-Api-Key=open sesame",
            "otel_service_name": "crm",
        }  # fmt: skip
        async with deployed(tmp_path, ROLES, **given) as deployment:
            await deployment.ask("terminal:a", "hello")
    (resource,) = (one for request in received for one in request.resource_spans)
    about = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert about["service.name"] == "crm" and about["service.instance.id"] == "host:1~aaaaaa"
    names = [one.name for scope in resource.scope_spans for one in scope.spans]
    assert sorted(names) == ["chat echo", "invoke_agent manager", "invoke_agent samplellm", "once charge", "turn"]
    assert keys == ["open sesame"]


async def test_a_collector_that_is_away_or_silent_costs_no_turn_and_no_time(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with listening(silent) as port:
        silent_url = f"http://127.0.0.1:{port}"
        for number, url in enumerate(("http://127.0.0.1:1", silent_url)):
            began = time.monotonic()
            async with deployed(tmp_path / str(number), ROLES, otel_exporter_otlp_endpoint=url) as deployment:
                assert (await deployment.ask("terminal:a", "hello")).text == "echo: hello"
            assert time.monotonic() - began < 10
        assert asked.is_set()


@pytest.mark.parametrize("given, said", [
    ({"otel_exporter_otlp_endpoint": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318 is invalid"),
    ({"otel_exporter_otlp_endpoint": "http://x", "otel_exporter_otlp_headers": "nonsense"},
     "OTEL_EXPORTER_OTLP_HEADERS is invalid: expected name=value"),
])  # fmt: skip
def test_wrong_settings_are_one_clear_line(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_tracing(Settings.model_validate(given), "p")
