"""The real servers as session fixtures: started when the first test asks, stopped at the end, skipped loudly when not installed."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn, TypeVar

import pytest
import structlog

from tests.servers.dovecot import Dovecot
from tests.servers.postgres import Postgres
from tests.servers.process import MissingServerError, Server, ServerFactory, server_directory
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis, Valkey
from tests.servers.rspamd import Rspamd
from tests.servers.smtp import SmtpSink
from tests.servers.spamd import Spamd

S = TypeVar("S", bound=Server)
MISSING: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-all", action="store_true", help="a missing server fails the tests that need it instead of skipping them")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MISSING] = []


def pytest_collection_finish() -> None:
    """What was imported stays: looking through it again and again for garbage cost a quarter of the unit tests' time."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reasons = config.stash[MISSING]
    for reason in sorted(set(reasons)):
        terminalreporter.write_line(f"NOT TESTED: {reason}", yellow=True, bold=True)


def missing(config: pytest.Config, reason: str) -> NoReturn:
    """Skip the test and say so at the end of the run; with --require-all fail it."""
    config.stash[MISSING].append(reason)
    if config.getoption("--require-all"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def prepared(config: pytest.Config, stack: ExitStack, kind: type[S]) -> S:
    """A server in a directory of its own that vanishes with the stack, whatever state it is left in."""
    directory = stack.enter_context(server_directory(kind.__name__.lower()))
    try:
        server = kind(directory)
    except MissingServerError as error:
        reason = str(error)
    else:
        stack.callback(server.stop)
        return server
    missing(config, reason)


def running(config: pytest.Config, kind: type[S]) -> Iterator[S]:
    with ExitStack() as stack:
        server = prepared(config, stack, kind)
        server.start()
        yield server


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test configures ends with it: a logger that caches its configuration would keep it for all tests that follow."""
    configure, before, root = structlog.configure, structlog.get_config(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(structlog, "configure", lambda **given: configure(**{**given, "cache_logger_on_first_use": False}))
    yield
    configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def own_server(pytestconfig: pytest.Config) -> Iterator[ServerFactory]:
    """For tests that must not disturb the shared servers."""
    with ExitStack() as stack:
        yield lambda kind: prepared(pytestconfig, stack, kind)


@pytest.fixture(scope="session")
def rabbitmq(pytestconfig: pytest.Config) -> Iterator[RabbitMq]:
    """A private RabbitMQ node. A test that wipes or kills it starts it again."""
    yield from running(pytestconfig, RabbitMq)


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[Redis]:
    """Debian's Redis."""
    yield from running(pytestconfig, Redis)


@pytest.fixture(scope="session")
def valkey(pytestconfig: pytest.Config) -> Iterator[Valkey]:
    """The embedded Valkey, over TCP."""
    yield from running(pytestconfig, Valkey)


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[Postgres]:
    """A private cluster; `create_database(name)` gives a module its own."""
    yield from running(pytestconfig, Postgres)


@pytest.fixture(scope="session")
def dovecot(pytestconfig: pytest.Config) -> Iterator[Dovecot]:
    """IMAP and POP3; each test adds its own users."""
    yield from running(pytestconfig, Dovecot)


@pytest.fixture(scope="session")
def rspamd(pytestconfig: pytest.Config) -> Iterator[Rspamd]:
    """Checks and learning, nothing asked over a network."""
    yield from running(pytestconfig, Rspamd)


@pytest.fixture(scope="session")
def spamd(pytestconfig: pytest.Config) -> Iterator[Spamd]:
    """SpamAssassin, local tests only."""
    yield from running(pytestconfig, Spamd)


@pytest.fixture(scope="session")
def _smtp_server() -> Iterator[SmtpSink]:
    with SmtpSink() as sink:
        yield sink


@pytest.fixture
def smtp_sink(_smtp_server: SmtpSink) -> SmtpSink:
    """An SMTP server that starts every test empty and well-behaved; the port stays the same for the whole run."""
    _smtp_server.reset()
    _smtp_server.start()
    return _smtp_server
