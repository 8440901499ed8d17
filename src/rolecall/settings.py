"""Every setting of a deployment as one typed value. Pure: nothing here reads the environment."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from rolecall.errors import ConfigError

FORMER_NAMES = {"RETRIES": "MAX_DELIVERIES"}
"""Environment names of an earlier version that still work, and what they are called now."""
KEPT_OPEN = 20
Seconds = Annotated[float, Field(gt=0, le=86_400)]
LISTED = r"^\s*(\*|-?\d{1,19}(\s*,\s*-?\d{1,19})*)?\s*,?\s*$"


class ServerSettings(BaseModel):
    """The Redis or Valkey server behind the bus; without ``redis_url`` and ``redis_host`` the bundled Valkey."""

    redis_url: SecretStr | None = Field(None, description="redis://, rediss:// or unix:// address of the server")
    redis_host: str | None = Field(None, description="host of the server, instead of REDIS_URL")
    redis_port: int = Field(6379, ge=1, le=65_535, description="port that goes with REDIS_HOST")
    redis_db: int = Field(0, ge=0, le=1_000_000, description="database that goes with REDIS_HOST")
    redis_username: str | None = Field(None, description="user that goes with REDIS_HOST")
    redis_password: SecretStr | None = Field(None, description="password that goes with REDIS_HOST")
    redis_max_connections: int = Field(64, ge=4, le=100_000, description="ceiling of this process's connections")
    redis_socket_timeout: Seconds = Field(5, description="seconds a command may wait for its answer")
    appendfsync: Literal["always", "everysec"] = Field("always", description="durability of the bundled Valkey")
    shards: int = Field(1, ge=1, le=256, description="independent lanes of the bus; fixed once the bus is used")


class BusSettings(BaseModel):
    """Clocks and limits of the bus and its workers."""

    lease_seconds: Seconds = Field(15, description="hold on an envelope without a heartbeat before others take over")
    heartbeat_seconds: Seconds = Field(4, description="seconds between renewals of the leases held")
    scan_seconds: Seconds = Field(3, description="seconds between looks for envelopes whose holder is gone")
    max_deliveries: int = Field(
        3, ge=1, le=100, validation_alias=AliasChoices("max_deliveries", "retries"),
        description="deliveries of one envelope before it becomes a dead letter",
    )  # fmt: skip
    max_attempts: int = Field(8, ge=1, le=100, description="attempts of one turn whose model fails, before it ends")
    default_priority: int = Field(50, ge=0, le=100, description="priority of a message that names none")
    total_instances: int = Field(256, ge=1, le=10_000, description="ceiling of instances in one worker process")
    mailbox_limit: int = Field(8, ge=1, le=10_000, description="waiting turns per conversation before FULL")
    in_flight_limit: int = Field(5000, ge=1, le=1_000_000, description="running turns per shard before BUSY")
    user_limit: int = Field(32, ge=1, le=100_000, description="unfinished turns of one user before FULL")
    user_soft_limit: int = Field(4, ge=1, le=100_000, description="unfinished turns of one user before a lower band")
    handling_seconds: Seconds = Field(900, description="seconds a single handling may hold its lease")
    turn_seconds: Seconds = Field(3600, description="seconds a turn may be in flight")
    hop_limit: int = Field(16, ge=1, le=100, description="hops of one turn before it is given up")
    drain_seconds: Seconds = Field(20, description="seconds a stopping worker lets running handlers finish")
    conversation_days: float = Field(30, gt=0, le=3650, description="days an idle conversation is remembered")
    result_seconds: Seconds = Field(3600, description="seconds the result of a turn can be asked for")
    idempotency_seconds: Seconds = Field(86_400, description="seconds a repeated message is recognised")
    session_idle_hours: float = Field(6, gt=0, le=8760, description="idle hours after which a new log file begins")


class ModelSettings(BaseModel):
    """Keys, addresses and limits of the language models."""

    gen_model: str | None = Field(None, description="model of every role that names none: name@provider, by comma")
    openai_api_key: SecretStr | None = Field(None, description="key of the OpenAI API, or of a compatible server")
    openai_base_url: str | None = Field(None, description="address of any OpenAI-compatible server")
    google_api_key: SecretStr | None = Field(None, description="key of the Gemini API")
    gemini_api_key: SecretStr | None = Field(None, description="key of the Gemini API, under its other name")
    gemini_base_url: str | None = Field(None, description="address of a server that speaks the Gemini API")
    ollama_url: str | None = Field(None, description="address of an Ollama server")
    ollama_host: str | None = Field(None, description="host of an Ollama server, instead of OLLAMA_URL")
    ollama_port: int = Field(11_434, ge=1, le=65_535, description="port that goes with OLLAMA_HOST")
    ollama_api_key: SecretStr | None = Field(None, description="key of an Ollama server that wants one")
    proxy: str = Field("SYSTEM", description="SYSTEM, NO or host:port for calls to providers")
    assistant_timeout: Seconds = Field(120, description="seconds a handler may take")
    assistant_history_limit: int = Field(20, ge=0, le=1000, description="remembered messages shown to a model")
    connect_seconds: Seconds = Field(5, description="seconds to connect to a provider")
    first_token_seconds: Seconds = Field(60, description="seconds a provider may take to its first token")
    idle_token_seconds: Seconds = Field(30, description="seconds a provider may stay silent between tokens")
    breaker_failures: int = Field(5, ge=1, le=1000, description="failures in a row before a model is taken to be away")
    probe_seconds: Seconds = Field(1, description="longest pause between two looks whether a model is back")
    quota_minute_seconds: Seconds = Field(60, description="length of the minute of rpm and tpm (tests scale it)")
    user_tokens_per_day: int | None = Field(None, ge=1, description="model tokens one user may use in a day (UTC)")
    tokens_per_day: int | None = Field(None, ge=1, description="model tokens all may use in a day (UTC)")
    user_cost_per_day: float | None = Field(
        None, gt=0, description="money one user may cost in a day, by the price table"
    )
    cost_per_day: float | None = Field(None, gt=0, description="money all may cost in a day, by the price table")
    voice_model: str | None = Field(
        None, pattern=r"\S+@(openai|test)", examples=["whisper-1@openai"],
        description="model that writes down what is said in voice messages",
    )  # fmt: skip
    echo_delay: float = Field(0, ge=0, le=3600, description="seconds echo@test takes for an answer (tests, demos)")
    echo_deltas: int = Field(1, ge=1, le=10_000, description="pieces of an answer of echo@test (tests, demos)")
    tool_rounds: int = Field(8, ge=1, le=100, description="rounds of tool calls before a model has to answer")
    tool_seconds: Seconds = Field(30, description="seconds a single call of a tool may take")
    tool_chars: int = Field(8000, ge=100, le=1_000_000, description="characters of a tool's result a model is shown")
    local_slots: int = Field(4, ge=1, le=64, description="requests a local model server answers at once")
    local_context: int = Field(2048, ge=256, le=131_072, description="tokens of context of each slot")
    local_threads: int | None = Field(None, ge=1, le=1024, description="threads of a local model; all cores if unset")
    local_models: int = Field(1, ge=1, le=64, description="local models loaded at once: they share the cores")
    local_idle_seconds: float = Field(
        1800, ge=0, le=604_800, description="seconds without a question after which a local model leaves; 0 never"
    )
    local_ram: int | None = Field(
        None, ge=1, le=100_000_000, description="MB of memory for all local models together; what there is if unset"
    )
    auto_instance_mb: int = Field(
        64, ge=1, le=1_000_000, description="memory reckoned for each instance where instances are auto"
    )
    local_url: str | None = Field(
        None, pattern=r"https?://[^\s@]+", examples=["http://model:10009"],
        description="address of a server of the local models; without one they run in processes of this machine",
    )  # fmt: skip
    local_key: SecretStr | None = Field(None, description="key that the server at LOCAL_URL wants to see")


class FrontendSettings(BaseModel):
    """What the ways in and out need, and what this process is."""

    telegram_bot_token: SecretStr | None = Field(None, description="token of the Telegram bot, from @BotFather")
    telegram_api_url: str = Field("https://api.telegram.org", description="address of a Bot API server of one's own")
    telegram_invite_code: SecretStr | None = Field(None, description="code that lets a stranger in on Telegram")
    telegram_allowed: str = Field(
        "", pattern=LISTED, examples=["11223344,-1001234567890"],
        description="numbers of the users and groups the bot serves, by comma; * for everyone, as guests",
    )  # fmt: skip
    telegram_admins: str = Field(
        "", pattern=LISTED, examples=["11223344"], description="numbers of the users who may let others in, by comma"
    )
    telegram_drafts: bool = Field(False, description="true shows growing answers of private chats as drafts")
    telegram_edit_seconds: float = Field(1.2, ge=0, le=60, description="seconds between two edits in a chat")
    telegram_ring_seconds: float = Field(30, ge=0, le=86_400, description="a turn that took so long rings; 0 never")
    telegram_per_minute: int = Field(20, ge=1, le=100_000, description="messages one user may send in a minute")
    telegram_keywords: str = Field("", description="words that address the bot in groups as its name does, by comma")
    telegram_webhook_url: str | None = Field(
        None, pattern=r"https?://[^\s@]+", examples=["https://bot.example.org/telegram"],
        description="public address at which Telegram brings updates; without one they are asked for",
    )  # fmt: skip
    telegram_webhook_secret: SecretStr | None = Field(
        None, description="what Telegram has to show there: 1 to 256 of A-Z a-z 0-9 _ -"
    )
    telegram_webhook_host: str = Field("127.0.0.1", description="address to listen at for what Telegram brings")
    telegram_webhook_port: int = Field(8443, ge=1, le=65_535, description="port that goes with it")
    while_busy: Literal["queue", "collect", "interrupt"] = Field(
        "queue", description="what becomes of a message while one of its chat is being answered"
    )
    document_chars: int = Field(
        24_000, ge=500, le=1_000_000, description="characters kept of a document that comes with a message"
    )
    blob_megabytes: int = Field(20, ge=1, le=500, description="largest image or file a message may bring")
    server_workers: int = Field(4, ge=1, le=256, description="processes of the HTTP server")
    http_host: str = Field("127.0.0.1", description="address the HTTP server listens on; others need an API key")
    http_port: int = Field(10_007, ge=0, le=65_535, description="port of the HTTP server, else the next free one")
    http_key: SecretStr | None = Field(
        None, min_length=22, examples=["22 random characters or more"],
        description="an operator's API key, good beside those of `rolecall key new`",
    )  # fmt: skip
    http_hosts: str = Field("", description="names the HTTP server is reached under, by comma, beside its own address")
    http_origins: str = Field("", description="origins of other web pages that may use the HTTP API, by comma")
    http_requests: int = Field(512, ge=1, le=100_000, description="HTTP requests of one key at once, per process")
    http_streams: int = Field(256, ge=1, le=100_000, description="open streams of one key, per process")
    http_requests_per_minute: int = Field(6000, ge=1, le=10_000_000, description="HTTP requests of one key in a minute")
    http_read_seconds: Seconds = Field(10, description="seconds a client may take to send its HTTP request")
    login_hours: float = Field(12, gt=0, le=8760, description="hours a login to the web page lasts")
    tools_server_workers: int = Field(1, ge=1, le=256, description="processes of the tools server")
    tools_port: int = Field(10_008, ge=1, le=65_535, description="port of the tools server, else the next free one")
    tools_key: SecretStr | None = Field(None, description="key that who calls the tools server has to show")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level on stderr")
    log_dir: str = Field("log", description="directory of the transcripts, within the application directory")
    environment: Literal["production", "development"] = Field("production", description="development reloads agents")
    tz: str | None = Field(None, description="time zone of the transcripts, such as Europe/Berlin; else the system's")

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
    """All settings; each field's name in upper case is its environment name."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _clocks_agree(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"HEARTBEAT_SECONDS={self.heartbeat_seconds:g} must be at most half of "
                f"LEASE_SECONDS={self.lease_seconds:g}"
            )
        return self

    @property
    def google_key(self) -> SecretStr | None:
        """The Gemini key under either of its names."""
        return self.gemini_api_key or self.google_api_key

    @property
    def ollama_address(self) -> str | None:
        """OLLAMA_URL, or the address made of OLLAMA_HOST and OLLAMA_PORT; OLLAMA_HOST may be a whole one, as Ollama
        itself takes it."""
        if self.ollama_url or not self.ollama_host:
            return self.ollama_url
        if "://" in self.ollama_host:
            return self.ollama_host
        port = "" if ":" in self.ollama_host else f":{self.ollama_port}"
        return f"http://{self.ollama_host}{port}"


@dataclass(frozen=True)
class Terms:
    """On what terms a model is used, over all processes: requests and tokens per minute, calls at once, and its price
    per million tokens read and written, in whatever money the deployment counts. None is no limit."""

    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    price_in: float = 0.0
    price_out: float = 0.0


def address(variable: str, url: str) -> str:
    """``url`` without a slash at its end. Raises ConfigError, which names ``variable``."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        shown = "" if "@" in url else f"={url}"
        raise ConfigError(f"{variable}{shown} is invalid: expected an address such as http://127.0.0.1:8080/v1")
    return url.rstrip("/")


def proxy_of(setting: str) -> str:
    """SYSTEM, NO or the proxy's URL. Raises ConfigError without the value, which may hold a password."""
    if setting.upper() in ("SYSTEM", "NO"):
        return setting.upper()
    url = setting if "://" in setting else f"http://{setting}"
    try:
        parts = urlsplit(url)
        known = parts.hostname and parts.port
    except ValueError:
        known = None
    if not known:
        raise ConfigError("PROXY is invalid: expected SYSTEM, NO or host:port")
    return url


def is_loopback(url: str) -> bool:
    """True for a server on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def client_options(url: str, proxy: str, limits: Callable[..., Any]) -> dict[str, Any]:
    """Arguments for an HTTP client that speaks to ``url`` alone; ``proxy`` as proxy_of returns it.

    ``limits`` is the Limits class of httpx or httpx2, whichever the client is of. A server on this machine is
    reached past any proxy and by new connections only.
    """
    if is_loopback(url):
        # Reused loopback connections fail now and then with "Server disconnected"; new ones cost nothing.
        return {**_direct(url), "limits": limits(max_connections=None, max_keepalive_connections=0)}
    pool = {"limits": limits(max_connections=None, max_keepalive_connections=KEPT_OPEN)}
    if proxy == "SYSTEM":
        return pool
    return {**pool, **_direct(url)} if proxy == "NO" else {**pool, "proxy": proxy}


def _direct(url: str) -> dict[str, Any]:
    """Past the proxies that the environment names, but not past its certificates (SSL_CERT_FILE)."""
    paths = ssl.get_default_verify_paths()
    if urlsplit(url).scheme == "http" or paths.cafile in (None, paths.openssl_cafile):
        return {"trust_env": False}
    return {"trust_env": False, "verify": ssl.create_default_context(cafile=paths.cafile)}
