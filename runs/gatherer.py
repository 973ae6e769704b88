"""One thread does for all threads of a process what they ask, many at a time.

A batch is what gathered while the one before it was under way: a lonely request waits for nobody, and thirty-two threads that ask at the
same moment share one round trip. Where the caller's thread may do it, a lonely request is not even handed over.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from core.errors import UnavailableError
from runs.inbox import Inbox

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception


@dataclass(frozen=True, eq=False)
class _Request(Generic[Q, A]):
    """The answer comes through an Inbox: a waiting thread may be interrupted by its limit at any moment, and leaves no lock behind
    that the thread which answers would need."""

    asked: Q
    answer: Inbox[A | _Raised] = field(default_factory=Inbox)


class Gatherer(ABC, Generic[Q, A]):
    """Its thread is started by the first request, never before a fork."""

    def __init__(self, name: str, *, most: int, alone_if_refused: bool) -> None:
        """At `most` so many make a batch. `alone_if_refused`: when a batch fails each of it is tried by itself, so that none fails for
        another's sake; for work that has not happened when it fails. A database that cannot be reached is no fault of one of them."""
        self._name = name
        self._most = most
        self._alone_if_refused = alone_if_refused
        self._inbox: Inbox[_Request[Q, A] | None] = Inbox()
        self._lock = threading.Lock()
        self._doing = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, asked: Q) -> A:
        """Returns when it is done. Raises what doing it raised."""
        if self._may_do_it_here() and self._inbox.empty() and self._doing.acquire(blocking=False):
            try:
                return self._do([asked])[0]
            finally:
                self._doing.release()
        request: _Request[Q, A] = _Request(asked)
        self._inbox.put(request)
        self._ensure_running()
        answer = request.answer.get()
        if isinstance(answer, _Raised):
            raise answer.error
        return answer

    def close(self) -> None:
        """Does what was asked and ends the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            thread.join(10)
        if self._doing.acquire(timeout=1):  # else it is still at it, and its connection goes with the process
            self._end()
            self._doing.release()

    @abstractmethod
    def _do(self, asked: Sequence[Q]) -> Sequence[A]:
        """All of it, answered in the same order, or none."""

    def _may_do_it_here(self) -> bool:
        """Whether the calling thread may do its own request when nobody is before it. Not where it may be interrupted at any moment: it
        would leave half a conversation behind, and the lock that all others need."""
        return False

    def _end(self) -> None:
        """Closes what was opened; it may be opened again."""

    def _ensure_running(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        is_over = False
        while not is_over:
            first = self._inbox.get()
            with self._doing:  # while somebody does their own, more gather
                batch, is_over = self._gather(first)
                self._answer(batch)

    def _gather(self, request: _Request[Q, A] | None) -> tuple[list[_Request[Q, A]], bool]:
        """Takes all there are behind the first; also whether that was the last."""
        batch: list[_Request[Q, A]] = []
        while request is not None:
            batch.append(request)
            if len(batch) >= self._most:
                return batch, False
            try:
                request = self._inbox.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _answer(self, batch: Sequence[_Request[Q, A]]) -> None:
        if not batch:
            return
        answers: Sequence[A | _Raised]
        try:
            answers = self._do([request.asked for request in batch])
        except Exception as error:
            if self._alone_if_refused and len(batch) > 1 and not isinstance(error, UnavailableError):
                for request in batch:
                    self._answer([request])
                return
            answers = [_Raised(error)] * len(batch)
        for request, answer in zip(batch, answers, strict=True):
            request.answer.put(answer)
