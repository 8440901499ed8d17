"""Every setting of a deployment as one typed value."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import tzinfo
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from rolecall.errors import ConfigError

FORMER_NAMES = {"RETRIES": "MAX_DELIVERIES"}
"""Old environment name → new one; the old names still work."""
CLUSTER_SHARDS = 16
SYSTEM_ZONE = "/etc/localtime"
"""Where a machine keeps its time zone."""
HIDDEN = "•••"
"""Stands for a secret."""
SHORTEST_SECRET = 4
"""Shorter ones would take ordinary words apart, and hide nothing."""
LOOKS_SECRET = re.compile(
    r"(?<=://)(?!user:password@)[^\s/@:]*:[^\s/@]+(?=@)"  # user and password in a URL, but for our examples
    r"|(?<= )(?i:(?<=bearer )|(?<=basic ))[\w+/.~-]{12,}=*"
    r"|\b(?:sk|pk|rk|gsk|xai|ghp|gho|ghs|github_pat|glpat|xox[abprs]|hf)[-_][\w-]{16,}"  # keys of common services
    r"|\bAIza[\w-]{30,}|\bAKIA[A-Z0-9]{16}\b|\b\d{6,12}:[\w-]{30,}"
    r"|(?<==)(?i:(?<=password=)|(?<=passwd=)|(?<=secret=)|(?<=token=)|(?<=api_key=)|(?<=apikey=))[^\s&;,\"'…]+",
    re.ASCII,
)
"""What looks like a secret, whether or not it is one of the settings. ``(?<= )`` and ``(?<==)`` change nothing but the
time: few places of a text have them, so that the rest is rarely tried, and every line of the log is searched."""
Seconds = Annotated[float, Field(gt=0, le=86_400)]
# What one item of a comma-separated setting is: of LOG_TARGETS, HTTP_HOSTS and HTTP_ORIGINS.
TARGET = r"\s*(?:directory|stdout|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[^\s,]*)?)\s*"
HOST = r"\s*(?:\*|[^\s/:,]+|[0-9a-fA-F.]*:[0-9a-fA-F.]*:[0-9a-fA-F.:]*)\s*"
ORIGIN = r"\s*(?:[a-z][a-z0-9+.-]*://[^\s/,]+|null)\s*"
# All of TELEGRAM_ALLOWED and TELEGRAM_ADMINS: IDs, or * for everyone.
LISTED = r"^\s*(\*|-?\d{1,19}(\s*,\s*-?\d{1,19})*)?\s*,?\s*$"


class ServerSettings(BaseModel, defer_build=True):
    """The Redis or Valkey server behind the bus; without ``redis_url`` and ``redis_host`` the bundled Valkey."""

    redis_url: SecretStr | None = Field(
        default=None,
        description="URL of the server: redis://, rediss:// (TLS), unix://, redis+sentinel:// or redis+cluster://",
    )
    redis_host: str | None = Field(default=None, description="host of the server, instead of REDIS_URL")
    redis_port: int = Field(default=6379, ge=1, le=65_535, description="port, used with REDIS_HOST")
    redis_db: int = Field(default=0, ge=0, le=1_000_000, description="database, used with REDIS_HOST")
    redis_username: str | None = Field(default=None, description="user name, used with REDIS_HOST")
    redis_password: SecretStr | None = Field(default=None, description="password, used with REDIS_HOST")
    redis_max_connections: int = Field(default=64, ge=4, le=100_000, description="most connections of each process")
    redis_socket_timeout: Seconds = Field(default=5, description="timeout of a command in seconds")
    appendfsync: Literal["always", "everysec"] = Field(
        default="always", description="fsync policy of the bundled Valkey"
    )
    key_prefix: str = Field(
        default="", pattern=r"^[a-z0-9_-]{0,40}$", examples=["staging"],
        description="prefix of all keys, to keep applications on one server apart; a-z 0-9 _ -",
    )  # fmt: skip
    app_name: str = Field(
        default="",
        max_length=100,
        description="name of the application on its server; by default that of its directory",
    )
    wait_replicas: int = Field(
        default=0, ge=0, le=10,
        description="replicas that must have a message before it is accepted, and an answer before it is delivered",
    )  # fmt: skip
    wait_seconds: float = Field(
        default=1, gt=0, le=60, description="timeout of WAIT_REPLICAS in seconds; then it is repeated"
    )
    shards: int = Field(
        default=1, ge=1, le=256, description="independent shards of the bus, fixed; on a cluster 16 unless set"
    )


class BusSettings(BaseModel, defer_build=True):
    """Timeouts and limits of the bus and its workers."""

    lease_seconds: Seconds = Field(
        default=15, description="seconds a lease lasts without renewal before others take over the envelope"
    )
    heartbeat_seconds: Seconds = Field(default=4, description="seconds between renewals of leases")
    scan_seconds: Seconds = Field(default=3, description="seconds between scans for envelopes whose instance died")
    max_deliveries: int = Field(
        default=3, ge=1, le=100, validation_alias=AliasChoices("max_deliveries", "retries"),
        description="deliveries of one envelope before it becomes a dead letter",
    )  # fmt: skip
    max_attempts: int = Field(
        default=8, ge=1, le=100, description="attempts of a turn whose model fails, before it ends"
    )
    schedule_limit: int = Field(default=25, ge=1, le=1000, description="schedules, such as reminders, per conversation")
    default_priority: int = Field(default=50, ge=0, le=100, description="priority of messages that set none")
    total_instances: int = Field(
        default=256, ge=1, le=10_000, description="maximum number of instances in one worker process"
    )
    mailbox_limit: int = Field(default=8, ge=1, le=10_000, description="waiting turns per conversation before FULL")
    in_flight_limit: int = Field(default=5000, ge=1, le=1_000_000, description="running turns per shard before BUSY")
    user_limit: int = Field(default=32, ge=1, le=100_000, description="unfinished turns per user before FULL")
    user_soft_limit: int = Field(
        default=4, ge=1, le=100_000, description="unfinished turns per user before new ones get a lower priority band"
    )
    handling_seconds: Seconds = Field(default=900, description="maximum seconds one handling may keep its lease")
    block_seconds: Seconds = Field(
        default=30, description="seconds a handler may block its worker before that restarts"
    )
    turn_seconds: Seconds = Field(default=3600, description="maximum seconds a turn may be in flight")
    hop_limit: int = Field(default=16, ge=1, le=100, description="maximum number of hops of a turn")
    call_depth: int = Field(default=4, ge=1, le=32, description="how deep calls of roles may be nested")
    call_limit: int = Field(default=32, ge=1, le=1000, description="calls of roles that a handler may have at once")
    step_kb: int = Field(
        default=64, ge=1, le=10_000, description="kilobytes that the result of a recorded step may have"
    )
    steps_kb: int = Field(
        default=1024, ge=1, le=100_000, description="kilobytes that all recorded steps of a handler may have"
    )
    drain_seconds: Seconds = Field(default=20, description="seconds a stopping worker waits for running handlers")
    conversation_days: float = Field(default=30, gt=0, le=3650, description="days an idle conversation is remembered")
    result_seconds: Seconds = Field(default=3600, description="seconds the result of a turn is stored")
    idempotency_seconds: Seconds = Field(default=86_400, description="seconds an idempotency key is remembered")
    session_idle_hours: float = Field(
        default=6, gt=0, le=8760, description="idle hours after which a new log file starts"
    )


class ModelSettings(BaseModel, defer_build=True):
    """API keys, addresses and limits of models."""

    gen_model: str | None = Field(
        default=None, description="models for roles that name none: name@provider, comma-separated"
    )
    openai_api_key: SecretStr | None = Field(default=None, description="API key for OpenAI or a compatible server")
    openai_base_url: str | None = Field(default=None, description="base URL of an OpenAI-compatible server")
    anthropic_api_key: SecretStr | None = Field(default=None, description="API key for Anthropic")
    anthropic_base_url: str | None = Field(
        default=None, description="base URL of another server that speaks Anthropic's API"
    )
    google_api_key: SecretStr | None = Field(default=None, description="API key for Gemini")
    gemini_api_key: SecretStr | None = Field(default=None, description="API key for Gemini, under its other name")
    gemini_base_url: str | None = Field(
        default=None, description="base URL of another server that speaks the Gemini API"
    )
    ollama_url: str | None = Field(default=None, description="URL of an Ollama server")
    ollama_host: str | None = Field(default=None, description="host of an Ollama server, instead of OLLAMA_URL")
    ollama_port: int = Field(default=11_434, ge=1, le=65_535, description="port, used with OLLAMA_HOST")
    ollama_api_key: SecretStr | None = Field(default=None, description="API key of an Ollama server that requires one")
    proxy: str = Field(default="SYSTEM", description="proxy for calls to providers: SYSTEM, NO or host:port")
    assistant_timeout: Seconds = Field(default=120, description="seconds a handler may take")
    assistant_history_limit: int = Field(default=20, ge=0, le=1000, description="remembered messages sent to a model")
    connect_seconds: Seconds = Field(default=5, description="timeout for connecting to a provider")
    first_token_seconds: Seconds = Field(default=60, description="timeout for a provider's first token")
    idle_token_seconds: Seconds = Field(default=30, description="timeout between two tokens of a provider")
    model_wait_seconds: Seconds = Field(
        default=120, description="seconds a turn waits for a model that does not answer"
    )
    breaker_failures: int = Field(
        default=5, ge=1, le=1000, description="consecutive failures that open a model's circuit breaker"
    )
    probe_seconds: Seconds = Field(default=1, description="maximum seconds between two probes of a model that is away")
    quota_minute_seconds: Seconds = Field(
        default=60, description="length of the minute of rpm and tpm in seconds; only tests change it"
    )
    user_tokens_per_day: int | None = Field(
        default=None, ge=1, description="budget of a user in model tokens per UTC day"
    )
    tokens_per_day: int | None = Field(
        default=None, ge=1, description="budget of all users together in model tokens per UTC day"
    )
    user_cost_per_day: float | None = Field(
        default=None, gt=0, description="budget of a user in US dollars per UTC day, by the prices in config.py"
    )
    cost_per_day: float | None = Field(
        default=None,
        gt=0,
        description="budget of all users together in US dollars per UTC day, by the prices in config.py",
    )
    voice_model: str | None = Field(
        default=None, pattern=r"^\S+@(openai|test)$", examples=["whisper-1@openai"],
        description="model that transcribes voice messages",
    )  # fmt: skip
    embedding_model: str | None = Field(
        default=None, pattern=r"^\S+@\S+$", examples=["text-embedding-3-small@openai"],
        description="embedding model; if unset, the first key that is set decides",
    )  # fmt: skip
    echo_delay: float = Field(
        default=0, ge=0, le=3600, description="seconds echo@test takes to answer; for tests and demos"
    )
    echo_deltas: int = Field(
        default=1, ge=1, le=10_000, description="pieces of an answer of echo@test; for tests and demos"
    )
    tool_rounds: int = Field(default=8, ge=1, le=100, description="rounds of tool calls before a model must answer")
    tool_seconds: Seconds = Field(default=30, description="timeout of a tool call in seconds")
    tool_chars: int = Field(
        default=8000, ge=100, le=1_000_000, description="characters of a tool's result sent to the model"
    )
    local_slots: int = Field(default=4, ge=1, le=64, description="concurrent requests of a local model server")
    local_context: int = Field(default=2048, ge=256, le=131_072, description="context of each slot in tokens")
    local_threads: int | None = Field(
        default=None, ge=1, le=1024, description="threads of a local model; all cores if unset"
    )
    local_models: int = Field(
        default=1, ge=1, le=64, description="local models loaded at the same time; they share the cores"
    )
    local_idle_seconds: float = Field(
        default=1800, ge=0, le=604_800, description="idle seconds after which a local model is unloaded; 0 keeps it"
    )
    local_ram: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="MB of memory for all local models together; all available memory if unset",
    )
    auto_instance_mb: int = Field(
        default=64, ge=1, le=1_000_000, description="memory reserved per instance in MB when instances is auto"
    )
    local_url: str | None = Field(
        default=None, pattern=r"^https?://[^\s@]+$", examples=["http://model:10009"],
        description="URL of a server for the local models; without it they run as processes on this machine",
    )  # fmt: skip
    local_key: SecretStr | None = Field(default=None, description="API key of the server at LOCAL_URL")


class FrontendSettings(BaseModel, defer_build=True):
    """Front ends, logging and the environment."""

    telegram_bot_token: SecretStr | None = Field(default=None, description="token of the Telegram bot, from @BotFather")
    telegram_api_url: str = Field(default="https://api.telegram.org", description="URL of the Bot API server")
    telegram_invite_code: SecretStr | None = Field(
        default=None, description="reusable invite code that makes its user a guest"
    )
    telegram_allowed: str = Field(
        default="", pattern=LISTED, examples=["11223344,-1001234567890"],
        description="Telegram IDs of users and groups that may use the bot, comma-separated; * is everyone, as guests",
    )  # fmt: skip
    telegram_admins: str = Field(
        default="", pattern=LISTED, examples=["11223344"],
        description="Telegram IDs of the bot's admins, comma-separated",
    )  # fmt: skip
    telegram_drafts: bool = Field(default=False, description="show streaming answers as drafts in private chats")
    telegram_edit_seconds: float = Field(default=1.2, ge=0, le=60, description="seconds between two edits in a chat")
    telegram_ring_seconds: float = Field(
        default=30, ge=0, le=86_400, description="seconds after which a finished answer also notifies; 0 never"
    )
    telegram_per_second: int = Field(default=30, ge=1, le=1000, description="messages the bot sends per second, in all")
    telegram_per_minute: int = Field(default=20, ge=1, le=100_000, description="messages per minute and user")
    telegram_keywords: str = Field(
        default="", description="words that address the bot in groups, like its name, comma-separated"
    )
    telegram_webhook_url: str | None = Field(
        default=None, pattern=r"^https?://[^\s@]+$", examples=["https://bot.example.org/telegram"],
        description="public URL where Telegram sends updates; without it the bot polls",
    )  # fmt: skip
    telegram_webhook_secret: SecretStr | None = Field(
        default=None, description="secret that Telegram sends with each update: 1 to 256 of A-Z a-z 0-9 _ -"
    )
    telegram_webhook_host: str = Field(default="127.0.0.1", description="address the webhook listens on")
    telegram_webhook_port: int = Field(default=8443, ge=1, le=65_535, description="port the webhook listens on")
    while_busy: Literal["queue", "collect", "interrupt"] = Field(
        default="queue", description="what happens to a message while another one of its chat is being answered"
    )
    document_chars: int = Field(
        default=24_000, ge=500, le=1_000_000, description="characters kept of an attached document"
    )
    blob_megabytes: int = Field(default=20, ge=1, le=500, description="maximum size of an image or file in MB")
    server_workers: int = Field(default=4, ge=1, le=256, description="processes of the HTTP server")
    http_host: str = Field(
        default="127.0.0.1", description="address the HTTP server listens on; other than localhost requires an API key"
    )
    http_port: int = Field(
        default=10_007, ge=0, le=65_535, description="port of the HTTP server; if it is taken, the next free one"
    )
    http_key: SecretStr | None = Field(
        default=None, min_length=22, examples=["22 random characters or more"],
        description="an operator's API key, in addition to those of `rolecall key new`",
    )  # fmt: skip
    http_hosts: str = Field(
        default="", pattern=rf"^({HOST}(,{HOST})*)?,?\s*$", examples=["chat.example.org"],
        description="further host names of the HTTP server, comma-separated",
    )  # fmt: skip
    http_origins: str = Field(
        default="", pattern=rf"^({ORIGIN}(,{ORIGIN})*)?,?\s*$", examples=["https://app.example.org"],
        description="origins of pages that may use the HTTP API, comma-separated",
    )  # fmt: skip
    http_requests: int = Field(
        default=512, ge=1, le=100_000, description="concurrent HTTP requests per key and process"
    )
    http_streams: int = Field(default=256, ge=1, le=100_000, description="open streams per key and process")
    http_requests_per_minute: int = Field(
        default=6000, ge=1, le=10_000_000, description="HTTP requests per key and minute"
    )
    http_image_urls: bool = Field(default=False, description="fetch images from public https URLs in messages")
    http_choices: int = Field(default=8, ge=1, le=128, description="most answers to one chat completion, its `n`")
    http_read_seconds: Seconds = Field(default=10, description="timeout for receiving an HTTP request in seconds")
    login_hours: float = Field(default=12, gt=0, le=8760, description="hours a login to the web page lasts")
    tools_server_workers: int = Field(default=1, ge=1, le=256, description="processes of the tools server")
    tools_port: int = Field(
        default=10_008, ge=1, le=65_535, description="port of the tools server; if it is taken, the next free one"
    )
    tools_key: SecretStr | None = Field(default=None, description="API key that clients of the tools server must send")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="minimum level logged to stderr"
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        default=None, description="URL of an OTLP/HTTP collector for traces"
    )
    otel_exporter_otlp_headers: SecretStr | None = Field(
        default=None, description="headers for the collector, such as a key: name=value, comma-separated"
    )
    otel_service_name: str = Field(default="rolecall", min_length=1, description="name of this deployment in traces")
    otel_traces_sampler_arg: float = Field(default=1, ge=0, le=1, description="share of turns that are traced")
    log_dir: str = Field(
        default="log", description="directory of the transcripts, relative to the application directory"
    )
    log_targets: str = Field(
        default="directory", pattern=f"^{TARGET}(,{TARGET})*$", examples=["directory,s3://my-bucket/rolecall"],
        description="where transcripts go, comma-separated: directory (LOG_DIR), stdout, s3://BUCKET/PREFIX",
    )  # fmt: skip
    log_s3_seconds: float = Field(
        default=5, ge=0, le=3600, description="seconds between two writes of transcripts to S3"
    )
    aws_endpoint_url: str | None = Field(
        default=None, description="URL of an S3-compatible object storage; AWS if unset"
    )
    aws_region: str | None = Field(default=None, description="region of the object storage")
    aws_access_key_id: SecretStr | None = Field(
        default=None, description="access key of the object storage; if unset, the machine's role"
    )
    aws_secret_access_key: SecretStr | None = Field(default=None, description="secret of AWS_ACCESS_KEY_ID")
    environment: Literal["production", "development"] = Field(
        default="production", description="development reloads agents and prompts when their files change"
    )
    tz: str | None = Field(
        default=None, description="time zone of the transcripts, such as Europe/Berlin; by default the system's"
    )

    @model_validator(mode="after")
    def _webhook_is_guarded(self) -> FrontendSettings:
        secret = self.telegram_webhook_secret.get_secret_value() if self.telegram_webhook_secret else ""
        if (secret or self.telegram_webhook_url) and not re.fullmatch(r"[A-Za-z0-9_-]{1,256}", secret):
            raise ValueError("TELEGRAM_WEBHOOK_URL needs TELEGRAM_WEBHOOK_SECRET: 1 to 256 of A-Z a-z 0-9 _ -")
        return self

    @field_validator("log_level", "environment", mode="before")
    @classmethod
    def _case(cls, value: object, info: object) -> object:
        if not isinstance(value, str):
            return value
        return value.upper() if getattr(info, "field_name", "") == "log_level" else value.lower()


class Settings(ServerSettings, BusSettings, ModelSettings, FrontendSettings):
    """All settings. The environment variable of a field is its name in upper case."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def _cluster_has_shards(cls, given: Any) -> Any:
        if isinstance(given, dict) and _is_cluster(given.get("redis_url")) and given.get("shards") is None:
            return {**given, "shards": CLUSTER_SHARDS}
        return given

    @model_validator(mode="after")
    def _clocks_agree(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"HEARTBEAT_SECONDS={self.heartbeat_seconds:g} must be at most half of "
                f"LEASE_SECONDS={self.lease_seconds:g}"
            )
        return self

    @property
    def clustered(self) -> bool:
        """Whether the server is a cluster."""
        return _is_cluster(self.redis_url)

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """Every secret among the settings, the longest first; of REDIS_URL only the password, as its host is no
        secret."""
        secret = [value for name, value in self if isinstance(value, SecretStr) and name != "redis_url"]
        given = [value.get_secret_value() for value in secret]
        url = self.redis_url.get_secret_value() if self.redis_url else ""
        found = {secret for secret in (*given, *_passwords(url)) if len(secret) >= SHORTEST_SECRET}
        return tuple(sorted(found, key=len, reverse=True))

    def redacted(self, text: str) -> str:
        """``text`` without the secrets among the settings and what looks like one, for whatever leaves the process."""
        return redacted(text, self.secrets)

    @property
    def google_key(self) -> SecretStr | None:
        """GEMINI_API_KEY, else GOOGLE_API_KEY."""
        return self.gemini_api_key or self.google_api_key

    @property
    def ollama_address(self) -> str | None:
        """OLLAMA_URL, else the URL built from OLLAMA_HOST and OLLAMA_PORT. As for Ollama itself, OLLAMA_HOST may be a
        complete URL."""
        if self.ollama_url or not self.ollama_host:
            return self.ollama_url
        if "://" in self.ollama_host:
            return self.ollama_host
        port = "" if ":" in self.ollama_host else f":{self.ollama_port}"
        return f"http://{self.ollama_host}{port}"


@dataclass(frozen=True)
class Terms:
    """Limits and prices of a model, shared by all processes: requests and tokens per minute, concurrent calls, and
    prices in US dollars per million input and output tokens. None means no limit."""

    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    price_in: float = 0.0
    price_out: float = 0.0


def redacted(text: str, secrets: Iterable[str]) -> str:
    """``text`` without ``secrets`` (the longest first) and without what looks like one."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return LOOKS_SECRET.sub(HIDDEN, text)


def listed(setting: str) -> list[str]:
    """The items of a comma-separated setting."""
    return [item for part in setting.split(",") if (item := part.strip())]


def _is_cluster(url: object) -> bool:
    text = url.get_secret_value() if isinstance(url, SecretStr) else str(url or "")
    return text.strip().partition("://")[0].endswith("+cluster")


def _passwords(url: str) -> tuple[str, ...]:
    """The password in ``url``, as it is written there and decoded."""
    place = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    password = place.rpartition("@")[0].partition(":")[2]
    return password, unquote(password)


def time_zone(name: str) -> tzinfo:
    """The time zone ``name`` in the forms that TZ has in the C library: Europe/Berlin, :Europe/Berlin, a file, or rules
    such as CET-1CEST,M3.5.0,M10.5.0/3. Raises ConfigError."""
    zone = name.strip().removeprefix(":")
    try:
        if zone.startswith("/"):
            with open(zone, "rb") as file:
                return ZoneInfo.from_file(file, key=zone)
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    try:  # rules stand at the end of such a file, behind transitions, of which this one has none
        header = struct.pack(">4sc15x6l", b"TZif", b"2", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb4s", 0, 0, 0, b"UTC")
        return ZoneInfo.from_file(io.BytesIO(header * 2 + b"\n" + zone.encode() + b"\n"), key=zone)
    except (ValueError, OSError):
        expected = "expected a time zone such as Europe/Berlin or UTC, or rules such as CET-1CEST,M3.5.0,M10.5.0/3"
        raise ConfigError(f"TZ={name} is invalid: {expected}") from None
