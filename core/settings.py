"""Every setting of Mailroom, read once from the environment (and `.env` in development) and checked before anything starts.

This is the only module that reads `os.environ`. Code below the entry points receives values as arguments.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.errors import ConfigurationError
from core.hosts import SmtpServer, is_name_server, parse_smtp_url

log = logging.getLogger("mailroom.settings")
ROOT = Path(__file__).resolve().parent.parent
KEY_BYTES = 32
HOW_TO_MAKE_A_KEY = "python3 -c \"import base64, os; print('k1:' + base64.b64encode(os.urandom(32)).decode())\""

_Take = Callable[[str, str, str], None]
KeyRing = dict[str, bytes]
"""Key id to key. The first is the active one; the others are still accepted."""


LINK_BASE = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[A-Za-z0-9._~/-]*)?")
THUMBNAIL_SIZE = r"[1-9]\d{1,3}x[1-9]\d{1,3}"
WELL_FORMED: dict[str, tuple[str | Callable[[str], bool], str]] = {
    "rabbitmq_url": (r"amqps?://.*", "must start with amqp:// or amqps://"),
    "redis_url": (r"(rediss?|unix)://.*", "must start with redis:// or rediss:// or unix://"),
    "rspamd_url": (r"https?://.*", "must start with http:// or https://"),
    "rspamd_controller_url": (r"https?://.*", "must start with http:// or https://"),
    "spamd_url": (r"(tcp:/)?/.*", "must start with tcp:// or /"),
    "spam_dkim_dns": (is_name_server, "must be system or an address like 192.0.2.53:53 or [::1]"),
    "system_sender": (
        r"[^<>@\s]+@[^<>@\s]+|[^<>@\r\n]*<[^<>@\s]+@[^<>@\s]+>",
        "must be an address, bare or with a name: Acme <noreply@acme.example>",
    ),
    "link_base_url": (LINK_BASE.pattern, "must be where links in mails lead, like https://app.example.com"),
    "thumbnail_size": (
        rf"{THUMBNAIL_SIZE}(, *{THUMBNAIL_SIZE}){{0,7}}",
        "must be a size like 256x256, or up to eight of them separated by commas, each side from 10 to 9999",
    ),
}
MAY_BE_EMPTY = {"credential_encryption_key", "task_signing_key", "system_smtp_url", "rspamd_password", *WELL_FORMED} - {"thumbnail_size"}


class Settings(BaseSettings):
    """What is in force. Names are the environment variables' own, in upper case."""

    model_config = SettingsConfigDict(env_file=ROOT / ".env", extra="ignore", case_sensitive=False, frozen=True)

    database_url: SecretStr = SecretStr("")
    db_pool_size: int = Field(10, ge=1)
    db_max_overflow: int = Field(20, ge=0)

    rabbitmq_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    rabbitmq_queue_type: Literal["classic", "quorum"] = "classic"

    worker_processes: int = Field(default_factory=lambda: max(1, min(os.cpu_count() or 1, 4)), ge=1)
    worker_threads: int = Field(8, ge=1)
    worker_max_tasks_per_child: int = Field(1000, ge=0)
    worker_max_memory_mb: int = Field(384, ge=0)
    claim_ahead: int = Field(0, ge=0)
    stop_grace: float = Field(30.0, gt=0)
    task_time_limit: float | None = Field(None, gt=0)
    task_soft_time_limit: float | None = Field(None, gt=0)
    tenant_window: int = Field(200, ge=1)

    result_ttl: int = Field(3600, ge=1)
    history_days: int = Field(30, ge=1)
    sync_batch_size: int = Field(500, ge=1, le=5000)
    raw_retention: int = Field(0, ge=0)  # days
    imap_compress: bool = False
    mail_max_message_mb: int = Field(50, ge=1, le=50)
    mail_max_parts: int = Field(1000, ge=1)
    mail_max_header_kb: int = Field(1024, ge=1)
    mail_max_line_kb: int = Field(1024, ge=1)
    mail_max_nesting: int = Field(100, ge=1, le=500)

    spam_check_on_sync: bool = False
    spam_feedback_per_hour: int = Field(100, ge=1)
    rspamd_url: str | None = None
    rspamd_controller_url: str | None = None
    rspamd_password: SecretStr | None = None
    spamd_url: str | None = None
    spam_engine_timeout: float = Field(5.0, gt=0, le=60)
    spam_teach_engines: bool = False
    spam_dkim_dns: str | None = None

    credential_encryption_key: SecretStr | None = None
    task_signing_key: SecretStr | None = None
    ssl_verify: bool = True
    allow_private_mail_hosts: bool = False
    allow_private_webhook_hosts: bool = False
    system_smtp_url: SecretStr | None = None
    system_sender: str | None = None
    link_base_url: str | None = None
    mail_locale: str = Field("en", pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
    verification_expires_hours: int = Field(24, ge=1, le=720)
    password_reset_expires_minutes: int = Field(60, ge=5, le=10_080)

    data_dir: Path = ROOT / ".mailroom"
    file_root: Path | None = None
    file_cleanup_max_age_days: int = Field(90, ge=1)
    temp_dir: Path | None = None
    temp_max_age_hours: int = Field(24, ge=1)
    thumbnail_size: str = "256x256"
    thumbnail_max_file_mb: int = Field(100, ge=1, le=2000)
    thumbnail_max_megapixels: int = Field(50, ge=1, le=1000)
    thumbnail_memory_mb: int = Field(768, ge=128)
    thumbnail_cpu_seconds: int = Field(20, ge=1, le=300)
    health_history_days: int = Field(7, ge=1)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] | None = None
    api_host: str = "127.0.0.1"
    api_port: int = Field(8000, ge=0, le=65535)

    @field_validator(*MAY_BE_EMPTY, mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        for plain in ("postgres://", "postgresql://"):
            if url.startswith(plain):
                return SecretStr("postgresql+psycopg2://" + url.removeprefix(plain))
        return value if url == "" else _with_scheme(value, ("postgresql+psycopg2://", "sqlite:///")) or value

    @field_validator("system_smtp_url")
    @classmethod
    def _smtp(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_smtp_url(value.get_secret_value())
        return value

    @field_validator(*WELL_FORMED)
    @classmethod
    def _well_formed(cls, value: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        form, sentence = WELL_FORMED[str(info.field_name)]
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text is not None and not (form(text) if callable(form) else re.fullmatch(form, text, re.DOTALL)):
            raise ValueError(sentence)
        return value

    @model_validator(mode="after")
    def _keys_are_well_formed(self) -> Settings:
        for name in ("credential_encryption_key", "task_signing_key"):
            secret: SecretStr | None = getattr(self, name)
            if secret is not None:
                parse_key_ring(secret.get_secret_value(), name.upper())
        return self

    @cached_property
    def database(self) -> str:
        """The database's URL; SQLite in the data directory unless one is set."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'mailroom.db'}"

    @cached_property
    def rabbitmq(self) -> str | None:
        """RabbitMQ's URL or None."""
        return self.rabbitmq_url.get_secret_value() if self.rabbitmq_url else None

    @cached_property
    def redis(self) -> str | None:
        """Redis' URL; the embedded Valkey's socket when no broker is set at all."""
        if self.redis_url:
            return self.redis_url.get_secret_value()
        return None if self.rabbitmq else f"unix://{embedded_socket(self.data_dir)}"

    @cached_property
    def uses_embedded_broker(self) -> bool:
        """Whether Mailroom itself has to start a Valkey."""
        return self.redis_url is None and self.rabbitmq_url is None

    @cached_property
    def signing_keys(self) -> KeyRing:
        """The keys that sign broker messages. Raises ConfigurationError when none is set."""
        return self._ring("TASK_SIGNING_KEY", self.task_signing_key, "signs the messages on the broker")

    @cached_property
    def credential_keys(self) -> KeyRing:
        """The keys that encrypt stored credentials. Raises ConfigurationError when none is set."""
        return self._ring("CREDENTIAL_ENCRYPTION_KEY", self.credential_encryption_key, "encrypts stored passwords and secret arguments")

    @cached_property
    def system_smtp(self) -> SmtpServer | None:
        """The server for mails of the system itself, if one is set."""
        return parse_smtp_url(self.system_smtp_url.get_secret_value()) if self.system_smtp_url else None

    @cached_property
    def files(self) -> Path:
        """Where uploaded and generated files are kept."""
        return self.file_root or self.data_dir / "files"

    @cached_property
    def temporary(self) -> Path:
        """Where files lie that nobody misses after a while."""
        return self.temp_dir or self.data_dir / "tmp"

    @cached_property
    def thumbnail_sizes(self) -> list[tuple[int, int]]:
        """The boxes that thumbnails are fitted into; the first is the one that results tell."""
        boxes = [box.split("x") for box in self.thumbnail_size.replace(" ", "").split(",")]
        return list(dict.fromkeys((int(width), int(height)) for width, height in boxes))

    @staticmethod
    def _ring(name: str, secret: SecretStr | None, purpose: str) -> KeyRing:
        if secret is None:
            raise ConfigurationError(f"{name} is not set; it {purpose}. Make one with: {HOW_TO_MAKE_A_KEY}")
        return parse_key_ring(secret.get_secret_value(), name)


def embedded_socket(data_dir: Path) -> Path:
    """The embedded Valkey's socket. A unix socket's path ends at 107 bytes, so a deep data directory gets a short one."""
    path = data_dir / "valkey.sock"
    if len(os.fsencode(path)) <= 100:
        return path
    digest = base64.b32encode(os.fsencode(data_dir))[-16:].decode().strip("=").lower()
    return Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / f"mailroom-{os.getuid()}-{digest}.sock"  # noqa: S108  (0700 socket)


def parse_key_ring(text: str, name: str) -> KeyRing:
    """`id:base64` pairs separated by commas, the first active, each key of 32 bytes. Raises ConfigurationError."""
    ring: KeyRing = {}
    for entry in text.split(","):
        key_id, separator, encoded = entry.strip().partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if not (key_id and separator and len(key) == KEY_BYTES and key_id not in ring):
            raise ConfigurationError(
                f"{name} must be id:base64 pairs of {KEY_BYTES}-byte keys, separated by commas. Make one with: {HOW_TO_MAKE_A_KEY}"
            )
        ring[key_id] = key
    return ring


def _with_scheme(value: SecretStr | None, schemes: tuple[str, ...]) -> SecretStr | None:
    if value is not None and not value.get_secret_value().startswith(schemes):
        raise ValueError(f"must start with {' or '.join(schemes)}")
    return value


def load_settings(**overrides: Any) -> Settings:
    """Reads and checks the environment. Raises ConfigurationError with one line naming the setting."""
    try:
        legacy = translate_legacy_names(os.environ)
        return Settings(**{**legacy, **overrides})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "a setting"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{name}: {message}.") from None


_in_force: list[Settings] = []


def get_settings() -> Settings:
    """The settings of this process, read on first use."""
    if not _in_force:
        _in_force.append(load_settings())
    return _in_force[0]


def use_settings(settings: Settings) -> None:
    """Puts other settings in force, for commands and tests that run with their own."""
    _in_force[:] = [settings]


def environment(**changes: str) -> dict[str, str]:
    """This process' environment with changes, for starting a child process."""
    return {**os.environ, **changes}


# The names of the Celery stack that Mailroom replaces, read as fallbacks so that a deployment moves without edits.
RENAMED = {
    "CELERYD_CONCURRENCY": "worker_threads",
    "CELERY_WORKER_CONCURRENCY": "worker_threads",
    "CELERY_WORKER_MAX_TASKS_PER_CHILD": "worker_max_tasks_per_child",
    "TASK_TIMEOUT": "task_time_limit",
    "CELERY_TASK_SOFT_TIME_LIMIT": "task_soft_time_limit",
}


def translate_legacy_names(environ: Mapping[str, str]) -> dict[str, str]:
    """Field name to value for every old name that is set while its successor is not. Logs one line for each."""
    found: dict[str, str] = {}

    def take(old: str, field: str, value: str) -> None:
        if value and field.upper() not in environ and field not in found:
            found[field] = value
            log.warning("setting_renamed", extra={"old": old, "successor": field.upper()})

    for old, field in RENAMED.items():
        take(old, field, environ.get(old, ""))
    _take_broker(environ, take)
    _take_prefetch(environ, found, take)
    return found


def _take_broker(environ: Mapping[str, str], take: _Take) -> None:
    url = environ.get("CELERY_BROKER_URL", "")
    if url.startswith(("amqp://", "amqps://")):
        take("CELERY_BROKER_URL", "rabbitmq_url", url)
    elif url:
        take("CELERY_BROKER_URL", "redis_url", url)
    if "REDIS_HOST" in environ:
        take("REDIS_HOST", "redis_url", _redis_url(environ))


def _redis_url(environ: Mapping[str, str]) -> str:
    scheme = "rediss" if environ.get("REDIS_USE_SSL", "").lower() in {"1", "true", "yes"} else "redis"
    password = environ.get("REDIS_PASSWORD", "")
    login = f":{quote(password, safe='')}@" if password else ""
    database = environ.get("REDIS_BROKER_DB") or environ.get("REDIS_DB") or "0"
    required = environ.get("REDIS_SSL_CERT_REQS", "").lower() or (
        "none" if environ.get("REDIS_SSL_VERIFY_CERT", "").lower() in {"0", "false", "no"} else ""
    )
    query = f"?ssl_cert_reqs={required}" if scheme == "rediss" and required else ""
    return f"{scheme}://{login}{environ['REDIS_HOST']}:{environ.get('REDIS_PORT', '6379')}/{database}{query}"


def _take_prefetch(environ: Mapping[str, str], found: Mapping[str, str], take: _Take) -> None:
    multiplier = environ.get("CELERY_WORKER_PREFETCH_MULTIPLIER", "")
    if multiplier.isdigit():
        threads = int(environ.get("WORKER_THREADS") or found.get("worker_threads") or 8)
        take("CELERY_WORKER_PREFETCH_MULTIPLIER", "claim_ahead", str(max(0, int(multiplier) - 1) * threads))
