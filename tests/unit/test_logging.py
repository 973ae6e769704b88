"""Log lines: one JSON object each, with the bound context, and never a secret, an address or a local variable."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import structlog

from core.logging import begin_run, configure_logging, end_run, get_logger, safe_text, where_it_was_raised
from core.tenancy import Identity, acting_as

CANARY = "hunter2-canary"


@contextmanager
def logging_to(stream: io.StringIO, log_format: Literal["json", "console"]) -> Iterator[None]:
    """Logging as a process sets it up, but into the stream; put back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging("INFO", log_format)
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    try:
        yield
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was logged as JSON."""
    stream = io.StringIO()
    with logging_to(stream, "json"):
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_message_context_and_facts(lines: Callable[[], list[dict[str, Any]]]) -> None:
    structlog.contextvars.bind_contextvars(task_id="t1", request_id="r1", attempt=2)
    with acting_as(Identity("tenant-1")):
        get_logger("x").info("email_sent", email_id="e1", duration_ms=12)
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "message": "email_sent",
        "level": "info",
        "task_id": "t1",
        "request_id": "r1",
        "attempt": 2,
        "tenant_id": "tenant-1",
        "email_id": "e1",
        "duration_ms": 12,
    }


def test_a_runs_facts_stand_in_its_lines_and_in_no_later_one(lines: Callable[[], list[dict[str, Any]]]) -> None:
    begin_run("r1", {"task_id": "t1", "attempt": 2})
    get_logger("x").info("inside", attempt=3)
    end_run()
    get_logger("x").info("outside")
    inside, outside = lines()
    assert (inside["task_id"], inside["request_id"], inside["attempt"]) == ("t1", "r1", 3)
    assert not {"task_id", "request_id", "attempt"} & outside.keys()


def test_a_librarys_line_takes_the_same_path(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logging.getLogger("some.library").warning("connected to redis://user:%s@host as %s", CANARY, "ann@acme.test")
    (line,) = lines()
    assert (line["level"], line["message"]) == ("warning", "connected to redis://host as <address>")


@pytest.mark.parametrize(
    "facts",
    [
        {"password": CANARY},
        {"imap_passwd": CANARY},
        {"reset_token": CANARY},
        {"Authorization": f"Bearer {CANARY}"},
        {"api_key": CANARY},
        {"cookies": {"session": CANARY}},
        {"settings": {"client_secret": CANARY}},
        {"kwargs": {"to": CANARY}},
        {"body_html": CANARY},
        {"url": f"amqp://guest:{CANARY}@host/"},
        {"to": [f"{CANARY}@acme.test"]},
        {"who": (f"{CANARY}@acme.test",)},
        {"error": ValueError(f"no mailbox {CANARY}@acme.test")},
        {"nested": {"deep": [{"credential": CANARY}]}},
    ],
)
def test_a_secret_or_an_address_never_reaches_a_line(facts: dict[str, Any], lines: Callable[[], list[dict[str, Any]]]) -> None:
    get_logger("x").info("event", **facts)
    logging.getLogger("library").warning("event", extra=facts)
    found = lines()
    assert len(found) == 2
    assert CANARY not in json.dumps(found)


def test_an_error_tells_class_text_and_places_and_no_values(lines: Callable[[], list[dict[str, Any]]]) -> None:
    def fails(password: str) -> None:
        raise RuntimeError("could not reach ann@acme.test")

    try:
        fails(CANARY)
    except RuntimeError as error:
        get_logger("x").exception("failed")
        get_logger("x").error("failed", exc_info=error)
        places = where_it_was_raised(error)
    first, second = lines()
    for line in (first, second):
        assert (line["error"], line["error_text"]) == ("RuntimeError", "could not reach <address>")
        assert line["where"][-1].startswith("tests/unit/test_logging.py:")
        assert line["where"][-1].endswith(" fails")
    assert CANARY not in json.dumps([first, second])
    assert places == first["where"]


def test_places_in_libraries_are_short() -> None:
    with pytest.raises(ValueError) as caught:
        json.loads("{")
    assert any(place.startswith("json/") for place in where_it_was_raised(caught.value)[1:])


def test_below_the_level_nothing_is_written(lines: Callable[[], list[dict[str, Any]]]) -> None:
    get_logger("x").debug("unseen")
    logging.getLogger("pika.connection").info("unseen")
    logging.getLogger("dramatiq.worker.WorkerThread").error("unseen")
    assert lines() == []


def test_the_console_shows_the_event_and_no_json() -> None:
    stream = io.StringIO()
    with logging_to(stream, "console"):
        get_logger("x").info("hello", token=CANARY, n=1)
    written = stream.getvalue()
    assert "hello" in written
    assert "n=1" in written
    assert not written.startswith("{")
    assert CANARY not in written


def test_a_safe_text_has_an_end_and_no_nul() -> None:
    assert safe_text("a\x00b") == "ab"
    assert len(safe_text("x" * 9000)) == 2000
    assert safe_text("x" * 9000, 10) == "x" * 9 + "…"
    assert safe_text("to ann.o'neil+x@mail.acme.test!") == "to <address>!"
