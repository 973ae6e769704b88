"""The heart of a worker process: claims runs before they start and writes what became of them, many at a time.

One thread. Each turn is one transaction: the outcomes of the runs that finished since the last turn, and claims for as many
waiting messages as threads are free. While the database commits, the next turn's work gathers, so the batches grow with the
load and there is no timer that a lonely run would wait for. A message is settled on its broker only after the commit.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine

from brokers.consumer import Delivery, Verdict, settle_all
from brokers.message import Envelope, MessageEncoder, MessageRejectedError
from brokers.queues import policy_of
from core.errors import UnavailableError
from core.logging import get_logger
from runs.message import RunMessage
from runs.retry import ResultError, failed, handed_back
from storage.outcomes import Claim, RecordRefusedError
from storage.record import open_record

log = get_logger(__name__)
IDLE_SECONDS = 0.25
BROKEN_SECONDS = 0.5
BUSY_SECONDS = 0.4
"""With the quarter second that an idle turn takes at most, held messages go back in well under a second."""
EXTRA_WAITING = 16
"""How many messages beyond the free threads a polled broker may still bring."""


class Starter(Protocol):
    """Hands a claimed run to a worker thread."""

    def __call__(self, message: RunMessage) -> None: ...


@dataclass(frozen=True, slots=True)
class _Wake:
    """Makes the thread look again."""


class Recorder(threading.Thread):
    """`adopt` turns a message whose run the record does not know into a row, if it is of a service that may do so: None when it has."""

    def __init__(
        self,
        engine: Engine,
        encoder: MessageEncoder,
        worker_id: str,
        *,
        threads: int,
        start_run: Starter,
        adopt: Callable[[Envelope], Verdict | None],
        consume: Callable[[bool], None] = lambda _wanted: None,
        claim_ahead: int = 0,
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self.worker_id = worker_id
        self._record = open_record(engine)
        self._encoder = encoder
        self._limit = threads + claim_ahead
        self._start_run = start_run
        self._adopt = adopt
        self._consume = consume
        self._is_consuming = True
        self._inbox: queue.SimpleQueue[RunMessage | _Wake] = queue.SimpleQueue()
        self._waiting: list[tuple[tuple[int, int], int, RunMessage]] = []  # heap: most urgent queue, highest priority, arrival
        self._arrival = itertools.count()
        self._held: dict[str, RunMessage] = {}  # claimed; until the outcome is committed
        self._in_doubt: set[str] = set()  # claims that may have been committed although nobody answered
        self._unwritten: list[RunMessage] = []  # finished; outcome not committed yet
        self._claiming = True
        self._stopping = threading.Event()

    # Called from other threads.

    def offer(self, delivery: Delivery) -> None:
        """A message came. One that is not ours is dead-lettered at once, whatever it says."""
        try:
            message = RunMessage(self._encoder.unpack(delivery.body), delivery)
        except MessageRejectedError as error:
            log.error("message_rejected", reason=error.reason, queue=delivery.queue, bytes=len(delivery.body))
            settle_all([(delivery, Verdict.REJECT)])
            return
        self._inbox.put(message)

    def finished(self, message: RunMessage) -> None:
        """A worker thread is done with a run and free again; its outcome is set."""
        self._inbox.put(message)

    def room(self) -> int:
        """How many messages a polled broker may bring."""
        return self._limit + EXTRA_WAITING - len(self._held) - len(self._waiting) - self._inbox.qsize() if self._claiming else 0

    def stop_claiming(self) -> None:
        """From now on nothing new starts; what waits goes back to its broker."""
        self._claiming = False
        self._inbox.put(_Wake())

    def stop(self, timeout: float = 10.0) -> None:
        """Writes what is still to be written, hands back what still runs, and ends the thread."""
        self._claiming = False
        self._stopping.set()
        self._inbox.put(_Wake())
        if self.is_alive():
            self.join(timeout)

    # The loop.

    def run(self) -> None:
        """Turns until stopped and everything is written."""
        while not self._stopping.is_set() or self._unwritten or not self._inbox.empty():
            try:
                self.turn()
            except Exception as error:
                log.warning("record_unreachable", error=type(error).__name__, unwritten=len(self._unwritten))
                time.sleep(BROKEN_SECONDS)
        self._hand_back_the_rest()
        self._record.close()

    def turn(self) -> None:
        """One round trip: outcomes and claims, then their consequences."""
        self._gather()
        if not self._claiming:
            self._return_waiting()
        wanted, duplicates = self._choose()
        settle_all([(message.delivery, Verdict.ACK) for message in duplicates])
        self._give_back_if_busy()
        done = list(self._unwritten)
        claimed = self._commit(done, wanted) if done or wanted else {}
        self._unwritten = self._unwritten[len(done) :]
        for message in done:
            self._held.pop(message.run_id, None)
        started, unclaimed = self._take_over(wanted, claimed)
        for message in started:
            self._start_run(message)
        settle_all([(message.delivery, message.verdict) for message in done])  # only now: the record has it
        settle_all(self._reconsidered(unclaimed))

    def _commit(self, done: list[RunMessage], wanted: dict[str, RunMessage]) -> dict[str, Claim]:
        tenants = {run_id: message.envelope.tenant_id for run_id, message in wanted.items()}
        outcomes = [message.outcome for message in done if message.outcome is not None]
        try:
            written, claimed = self._record.turn(self.worker_id, outcomes, tenants, self._in_doubt & wanted.keys())
        except Exception as error:
            self._in_doubt.update(wanted)  # that commit may have happened
            for message in wanted.values():
                self._wait(message)
            if isinstance(error, RecordRefusedError):
                self._isolate(done)
            raise
        self._in_doubt.difference_update(wanted)
        for outcome in outcomes:
            if outcome.run_id not in written:
                log.warning("outcome_with_old_fence", task_id=outcome.run_id)
        return claimed

    def _isolate(self, done: list[RunMessage]) -> None:
        """The database refuses what one of these would write. That one fails with a reason; the others are not held up by it."""
        for message in done:
            try:
                self._record.turn(self.worker_id, [message.outcome] if message.outcome is not None else [], {}, ())
            except RecordRefusedError:
                if message.claim is not None:
                    message.outcome = failed(message.claim, ResultError("The outcome could not be recorded; the database refused it."), 0.0)

    def _take_over(self, wanted: dict[str, RunMessage], claimed: dict[str, Claim]) -> tuple[list[RunMessage], list[RunMessage]]:
        started, unclaimed = [], []
        for run_id, message in wanted.items():
            if run_id in claimed:
                message.claimed(claimed[run_id])
                self._held[run_id] = message
                started.append(message)
            else:
                unclaimed.append(message)
        return started, unclaimed

    def _reconsidered(self, unclaimed: Iterable[RunMessage]) -> list[tuple[Delivery, Verdict]]:
        """Messages with nothing to claim: duplicates, revoked or not due are stale; one the record never knew may be adopted."""
        settled = []
        for message in unclaimed:
            try:
                verdict = self._adopt(message.envelope)
            except UnavailableError:
                verdict = None
            if verdict is None:
                self._wait(message)
            else:
                settled.append((message.delivery, verdict))
        return settled

    def _gather(self) -> None:
        """Waits for the first event, then takes all there are."""
        try:
            event = self._inbox.get(timeout=0 if self._unwritten or self._stopping.is_set() else IDLE_SECONDS)
            while True:
                if isinstance(event, RunMessage):
                    if event.outcome is not None:
                        self._unwritten.append(event)
                    else:
                        self._wait(event)
                event = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _wait(self, message: RunMessage) -> None:
        urgency = (-policy_of(message.envelope.queue).priority, -message.envelope.priority)
        heapq.heappush(self._waiting, (urgency, next(self._arrival), message))

    def _choose(self) -> tuple[dict[str, RunMessage], list[RunMessage]]:
        """The next messages to claim, the most urgent queue first and no more than can start; and duplicates of what is held."""
        wanted: dict[str, RunMessage] = {}
        duplicates = []
        free = self._limit - len(self._held) + len(self._unwritten) if self._claiming else 0
        while self._waiting and len(wanted) < free:
            message = heapq.heappop(self._waiting)[2]
            if message.run_id in self._held or message.run_id in wanted:
                duplicates.append(message)
            else:
                wanted[message.run_id] = message
        return wanted, duplicates

    def _give_back_if_busy(self) -> None:
        """A process whose threads stay busy keeps no message that an idle one could start."""
        if not self._claiming:
            return
        is_busy = len(self._held) - len(self._unwritten) >= self._limit
        waited = time.monotonic() - min((message.arrived_at for _, _, message in self._waiting), default=time.monotonic())
        if is_busy and waited > BUSY_SECONDS:
            if self._is_consuming:
                self._is_consuming = False
                self._consume(False)
            self._return_waiting()
        elif not is_busy and not self._is_consuming:
            self._is_consuming = True
            self._consume(True)

    def _return_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        settle_all([(message.delivery, Verdict.REQUEUE) for _, _, message in waiting])

    def _hand_back_the_rest(self) -> None:
        """Runs that did not end within the grace: their attempt did not happen, somebody else runs them."""
        left = list(self._held.values())
        for message in left:
            if message.claim is not None:
                message.outcome = handed_back(message.claim)
        if left:
            log.warning("runs_handed_back", runs=len(left))
            self._commit(left, {})
            settle_all([(message.delivery, Verdict.ACK) for message in left])
