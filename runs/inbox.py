"""A queue between threads whose time-outs end.

`queue.SimpleQueue.get` waits for ever when its time is over at the moment it finds its lock free and the queue empty: CPython then
goes on with a negative time-out, which means none. That happens when another thread takes the item it was woken for, and when the
time-out is a few microseconds. A worker thread that waits so does not see that it is to stop, and a housekeeper does no more chores.
`queue.Queue` has no such fault, but a Condition: neither a signal handler nor a thread that may be interrupted can use that safely.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from queue import Empty
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """First in, first out, for any number of threads on both sides. `put` may be called from a signal handler."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._bell = threading.Lock()  # held: there is nothing new
        self._bell.acquire()

    def put(self, item: T) -> None:
        """Never waits."""
        self._items.append(item)
        self._ring()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """The oldest item. Raises queue.Empty when there is none, or none has come within so many seconds (None: waits for ever)."""
        until: float | None = None
        while True:
            try:
                item = self._items.popleft()
            except IndexError:
                pass
            else:
                if self._items:  # the bell rings once for many; what is left is for others
                    self._ring()
                return item
            left = -1.0
            if block and timeout is not None:
                until = time.monotonic() + timeout if until is None else until
                left = max(0.0, until - time.monotonic())
            if not self._bell.acquire(block, left):
                raise Empty

    def get_nowait(self) -> T:
        """`get` without waiting."""
        return self.get(block=False)

    def empty(self) -> bool:
        """Whether nothing is there just now."""
        return not self._items

    def qsize(self) -> int:
        """How much is there just now."""
        return len(self._items)

    def _ring(self) -> None:
        if self._bell.locked():
            with suppress(RuntimeError):  # somebody else has rung it just now
                self._bell.release()
