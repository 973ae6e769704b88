"""The signals of dramatiq reach every middleware that does something about them, in dramatiq's order, and nobody else."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from dramatiq import Middleware
from dramatiq.middleware import SkipMessage

from runs.emission import EmittingBroker
from runs.middleware import middleware


class Hears(Middleware):
    """Notes what it hears; raises what it is given."""

    def __init__(self, name: str, heard: list[str], error: Exception | None = None) -> None:
        self.name = name
        self.heard = heard
        self.error = error

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.heard.append(f"{self.name} before {message}")
        if self.error is not None:
            raise self.error

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        self.heard.append(f"{self.name} after {message}: {result}")
        if self.error is not None:
            raise self.error


class Deaf(Middleware):
    """Leaves every signal to dramatiq's empty methods."""


def emitting(*middleware: Middleware) -> EmittingBroker:
    return EmittingBroker(list(middleware))


def test_before_goes_inwards_and_after_outwards() -> None:
    heard: list[str] = []
    broker = emitting(Hears("outer", heard), Deaf(), Hears("inner", heard))
    for number in ("1", "2"):  # the second time from what is remembered
        broker.emit_before("process_message", number)
        broker.emit_after("process_message", number, result="done")
    assert heard == [
        *("outer before 1", "inner before 1", "inner after 1: done", "outer after 1: done"),
        *("outer before 2", "inner before 2", "inner after 2: done", "outer after 2: done"),
    ]


def test_one_that_is_added_later_hears_what_comes_then() -> None:
    heard: list[str] = []
    broker = emitting(Hears("first", heard))
    broker.emit_before("process_message", "1")
    broker.add_middleware(Hears("second", heard))
    broker.emit_before("process_message", "2")
    assert heard == ["first before 1", "first before 2", "second before 2"]


def test_what_one_raises_is_logged_and_the_others_hear_the_signal(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    broker = emitting(Hears("broken", heard, ValueError("odd")), Hears("whole", heard))
    with caplog.at_level(logging.CRITICAL):
        broker.emit_before("process_message", "1")
        broker.emit_after("process_message", "1")
    assert heard == ["broken before 1", "whole before 1", "whole after 1: None", "broken after 1: None"]
    assert sum(record.levelname == "CRITICAL" for record in caplog.records) == 2


def test_a_skip_goes_no_further() -> None:
    heard: list[str] = []
    broker = emitting(Hears("refuses", heard, SkipMessage("no")), Hears("unasked", heard))
    with pytest.raises(SkipMessage):
        broker.emit_before("process_message", "1")
    assert heard == ["refuses before 1"]


def test_a_worker_asks_nobody_about_acknowledgements_and_three_about_a_run() -> None:
    broker = EmittingBroker(middleware())
    asked = {name: len(broker.who_hears(name)) for name in ("before_ack", "after_ack", "before_process_message", "after_process_message")}
    assert asked == {"before_ack": 0, "after_ack": 0, "before_process_message": 3, "after_process_message": 3}
