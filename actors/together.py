"""Mails of several threads share their transactions: one thread asks the record for all that wait, as the recorder does for runs.

A batch is what gathered while the one before it was under way, so that a lonely mail waits for nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine

from core.errors import MailroomError, UnavailableError
from core.logging import get_logger
from runs.inbox import Inbox
from storage.engine import get_engine
from storage.first_tries import Answer, Asked, FirstTries

log = get_logger(__name__)
MAX_BATCH = 64


@dataclass(frozen=True)
class _Request:
    """The answer comes through an Inbox: a waiting thread may be interrupted by its limit at any moment, and leaves no lock behind."""

    asked: Asked
    answer: Inbox[Answer | MailroomError] = field(default_factory=Inbox)


class Together:
    """For all threads of a process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._tries = FirstTries(engine)
        self._inbox: Inbox[_Request | None] = Inbox()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, asked: Asked) -> Answer:
        """See `storage.first_tries`. Raises UnavailableError when nobody knows whether it was done."""
        request = _Request(asked)
        self._inbox.put(request)
        self._ensure_running()
        answer = request.answer.get()
        if isinstance(answer, MailroomError):
            raise answer
        return answer

    def close(self) -> None:
        """Answers what was asked and ends the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            thread.join(10)

    def _ensure_running(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="first-tries", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (request := self._inbox.get()) is not None:
            batch = [request]
            while len(batch) < MAX_BATCH and not self._inbox.empty():
                following = self._inbox.get_nowait()
                if following is None:
                    self._inbox.put(None)
                    break
                batch.append(following)
            self._answer(batch)
        self._tries.close()

    def _answer(self, batch: list[_Request]) -> None:
        answers: Sequence[Answer | MailroomError]
        try:
            answers = self._tries.turn([request.asked for request in batch])
        except UnavailableError as error:
            answers = [error] * len(batch)
        except Exception as error:
            log.exception("first_tries_failed")
            answers = [UnavailableError(f"The record could not be asked ({type(error).__name__}).", retry_after=5)] * len(batch)
        for request, answer in zip(batch, answers, strict=True):
            request.answer.put(answer)


_open: list[Together] = []
_opening = threading.Lock()


def together() -> Together | None:
    """This process', opened on first use and never before a fork. None where every mail has its own transactions (SQLite)."""
    engine = get_engine()
    if engine.dialect.name != "postgresql":
        return None
    with _opening:
        if not _open or _open[0].engine is not engine:
            _open[:] = [Together(engine)]
        return _open[0]
