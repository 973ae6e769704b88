"""The heart of a worker process: claims runs before they start and writes what became of them, many at a time.

One thread. Each turn is one transaction: the outcomes of the runs that finished since the last turn, and claims for as many
waiting messages as threads are free. While the database commits, the next turn's work gathers, so the batches grow with the
load and there is no timer that a lonely run would wait for. A message is settled on its broker only after the commit.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Sequence

from brokers.consumer import Delivery, Rejection, Settlement, Verdict, settle_all
from brokers.message import Envelope, MessageEncoder, MessageRejectedError
from core.errors import UnavailableError
from core.logging import get_logger
from runs.doubts import Doubts
from runs.held import HeldRuns, kept_free
from runs.hooks import RecorderHooks, Wake
from runs.inbox import Inbox
from runs.message import RunMessage
from runs.retry import ResultError, failed, handed_back
from runs.solitude import Solitude
from runs.turns import Turns
from runs.waiting import WaitingMessages, told
from storage.outcomes import Claim, HeldLane, RecordRefusedError
from storage.record import Record

log = get_logger(__name__)
IDLE_SECONDS = 0.25
QUIET_SECONDS = 5.0  # where nothing but an event can change anything: so nobody gets up four times a second for nothing
BROKEN_SECONDS = 0.5
BUSY_SECONDS = 0.4  # with the quarter second of an idle turn, held messages go back in well under a second
EXTRA_WAITING = 16  # how many messages beyond the free threads a polled broker may still bring
LOOK_SECONDS = 0.05  # a recorder that has run dry looks for held runs, but not more often than this
LEAVING_SECONDS = 1.0  # how much longer a process may live that has handed back its runs


class Recorder(threading.Thread):
    """`threads` is how many runs may run at once, `claim_ahead` how many more may be claimed."""

    def __init__(
        self, record: Record, encoder: MessageEncoder, worker_id: str, hooks: RecorderHooks, *, threads: int, claim_ahead: int = 0
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self.worker_id = worker_id
        self.ended = 0  # runs whose outcome was written
        self._record = record
        self._encoder = encoder
        self._hooks = hooks
        self._limit = threads + claim_ahead
        self._is_consuming = True
        self._inbox: Inbox[RunMessage | Wake] = Inbox()
        self._waiting = WaitingMessages()
        self._held: dict[str, RunMessage] = {}  # claimed; until the outcome is committed
        self._abandoned: set[str] = set()
        self._doubts = Doubts()
        self._unwritten: list[RunMessage] = []  # finished; outcome not committed yet
        self._claiming = True
        self._stopping = threading.Event()
        self._lanes = HeldRuns(hooks.find_held, kept_free=kept_free(threads, claim_ahead))
        self._looked_at = 0.0
        self._must_look = False
        self._is_dry = False  # something was claimed since the last look
        self._turns = Turns(self._waiting, self._lanes)
        self._solitude = Solitude(hooks.claim_alone)

    # Called from other threads.

    def offer(self, delivery: Delivery) -> None:
        """A message came. One that is not ours is dead-lettered at once, whatever it says."""
        try:
            message = RunMessage(self._encoder.unpack(delivery.body), delivery)
        except MessageRejectedError as error:
            log.error("message_rejected", reason=error.reason, queue=delivery.queue, bytes=len(delivery.body))
            settle_all([(delivery, Rejection(error.reason))])
            return
        self._inbox.put(message)

    def held_runs_wait(self) -> None:
        """There are runs to be claimed without a message."""
        self._inbox.put(Wake.HELD)

    def suspects_wait(self) -> None:
        """There are runs that must run alone, and it is this process' turn to do so."""
        self._inbox.put(Wake.SUSPECTS)

    @property
    def is_alone(self) -> bool:
        """Whether the process keeps to one run at a time."""
        return self._solitude.is_kept

    def runs(self) -> list[RunMessage]:
        """What is claimed and has not ended."""
        return [message for message in list(self._held.values()) if message.outcome is None]

    def finished(self, message: RunMessage) -> None:
        """A worker thread is done with a run and free again; its outcome is set."""
        self._inbox.put(message)

    def room(self) -> int:
        """How many messages a polled broker may bring."""
        return self._limit + EXTRA_WAITING - len(self._held) - len(self._waiting) - self._inbox.qsize() if self._claiming else 0

    def abandon(self, run_id: str) -> None:
        """This run would not end: it stays this worker's until the process is gone, and is not handed back."""
        self._abandoned.add(run_id)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held but what was abandoned."""
        return self._held.keys() <= self._abandoned

    @property
    def has_abandoned(self) -> bool:
        """Whether something is held that was abandoned."""
        return bool(self._held.keys() & self._abandoned)

    def stop_claiming(self) -> None:
        """From now on nothing new starts; what waits goes back to its broker."""
        self._claiming = False
        self._inbox.put(Wake.LOOK_AGAIN)

    def stop(self, timeout: float = 10.0) -> None:
        """Writes what is still to be written and ends the thread."""
        self._claiming = False
        self._stopping.set()
        self._inbox.put(Wake.LOOK_AGAIN)
        if self.is_alive():
            self.join(timeout)

    def hand_back(self) -> None:
        """The last thing a process does, after the loop has ended: runs that did not end are somebody else's. Their attempt did not happen.

        They are due only after a moment, when this process and the threads that may still be at them are gone.
        """
        self._claiming = False
        self._gather()
        left = [message for message in self.runs() if message.run_id not in self._abandoned]
        for message in left:
            message.outcome = handed_back(message.claim, LEAVING_SECONDS) if message.claim is not None else None
        if left:
            log.warning("runs_handed_back", runs=len(left))
        ended, self._unwritten = [*self._unwritten, *left], []
        if ended:
            self._commit(ended, {})
        for message in ended:
            self._held.pop(message.run_id, None)
        self._record.close()

    # The loop.

    def run(self) -> None:
        """Turns until stopped and everything is written."""
        while not self._stopping.is_set() or self._unwritten or not self._inbox.empty():
            try:
                self.turn()
            except Exception as error:
                log.warning("record_unreachable", error=type(error).__name__, unwritten=len(self._unwritten))
                self._lanes.start_over()
                self._doubts.begin()
                time.sleep(BROKEN_SECONDS)
        settle_all(told(self.runs(), Verdict.ACK))  # whatever becomes of them, no message is needed for it

    def turn(self) -> None:
        """One round trip: outcomes and claims, then their consequences."""
        self._gather()
        if self._doubts.are_due():
            self._take_back_own()
        if not self._claiming or self.is_alone:
            self._return_waiting()
        self._look_if_dry()
        wanted, lanes, duplicates = self._turns.take(self._free(), self._held)
        settle_all(told(duplicates, Verdict.ACK))
        self._give_back_if_busy()
        done = list(self._unwritten)
        claimed = self._commit(done, wanted, lanes) if done or wanted or lanes else {}
        self._unwritten = self._unwritten[len(done) :]
        for message in done:
            self._held.pop(message.run_id, None)
        started, unclaimed = self._take_over(wanted, claimed)
        for message in started:
            self._hooks.start_run(message)
        settle_all([(message.delivery, message.verdict) for message in done if message.delivery is not None])  # only now: the record has it
        if done:
            self._tell_ended(done)
        settle_all(self._reconsidered(unclaimed))
        if self.is_alone:
            self._keep_alone()

    def _commit(self, done: list[RunMessage], wanted: dict[str, RunMessage], lanes: Sequence[HeldLane] = ()) -> dict[str, Claim]:
        tenants = {run_id: message.envelope.tenant_id for run_id, message in wanted.items()}
        outcomes = [message.outcome for message in done if message.outcome is not None]
        try:
            written, claimed = self._record.turn(self.worker_id, outcomes, tenants, self._doubts.run_ids & wanted.keys(), lanes)
        except Exception as error:
            self._doubts.claimed(wanted)  # that commit may have happened
            for message in wanted.values():
                self._waiting.add(message)
            if isinstance(error, RecordRefusedError):
                self._isolate(done)
            raise
        self._doubts.settled(wanted)
        if lanes:
            self._lanes.took(lanes, [claim for run_id, claim in claimed.items() if run_id not in wanted])
        self._lanes.met(claimed[run_id] for run_id in wanted if run_id in claimed)
        for message in done:
            message.is_recorded = message.run_id in written
            if message.outcome is not None and not message.is_recorded:
                log.warning("outcome_with_old_fence", task_id=message.run_id)
        return claimed

    def _take_back_own(self) -> None:
        """Runs that the record says are this worker's and that it does not hold: claimed by a turn that got no answer."""
        for run_id, tenant_id, task, queue_name in self._record.own(self.worker_id):
            if run_id not in self._held:
                self._doubts.claimed([run_id])
                self._waiting.add(RunMessage(Envelope(run_id, task, queue_name, tenant_id), None))  # if it is here already, a duplicate

    def _isolate(self, done: list[RunMessage]) -> None:
        """The database refuses what one of these would write. That one fails with a reason; the others are not held up by it."""
        for message in done:
            try:
                self._record.turn(self.worker_id, [message.outcome] if message.outcome is not None else [], {}, ())
            except RecordRefusedError:
                if message.claim is not None:
                    message.outcome = failed(message.claim, ResultError("The outcome could not be recorded; the database refused it."), 0.0)

    def _take_over(self, wanted: dict[str, RunMessage], claimed: dict[str, Claim]) -> tuple[list[RunMessage], list[RunMessage]]:
        started = []
        for run_id, claim in claimed.items():
            message = wanted.get(run_id)
            if message is None:
                message = RunMessage.held(claim)
            else:
                message.claimed(claim)
            self._held[run_id] = message
            started.append(message)
        self._is_dry |= bool(started)
        return started, [message for run_id, message in wanted.items() if run_id not in claimed]

    def _reconsidered(self, unclaimed: Iterable[RunMessage]) -> list[Settlement]:
        """Messages with nothing to claim: duplicates, revoked or not due are stale; one the record never knew may be adopted."""
        settled: list[Settlement] = []
        for message in unclaimed:
            if message.delivery is None:
                continue
            try:
                verdict = self._hooks.adopt(message.delivery, message.envelope)
            except UnavailableError:
                verdict = None
            if verdict is None:
                self._waiting.add(message)
            else:
                settled.append((message.delivery, verdict))
        return settled

    def _tell_ended(self, done: list[RunMessage]) -> None:
        self.ended += len(done)
        for message in done:
            if message.delivery is None and message.verdict is Verdict.REJECT:
                self._hooks.bury(message.envelope)
        self._hooks.on_ended(done)

    def _gather(self) -> None:
        """Waits for the first event, then takes all there are."""
        try:
            event = self._inbox.get(timeout=self._patience())
            while True:
                if isinstance(event, Wake):
                    self._heed(event)
                elif event.outcome is not None:
                    self._unwritten.append(event)
                else:
                    self._waiting.add(event)
                event = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _patience(self) -> float:
        """How long to wait when nothing comes."""
        if self._unwritten or self._stopping.is_set():
            return 0
        if (free := self._free()) > 0:
            if self._waiting or self._lanes.room(free):
                return 0
            if self._is_dry and not self._lanes:
                return max(0.0, min(IDLE_SECONDS, self._looked_at + LOOK_SECONDS - time.monotonic()))
        return IDLE_SECONDS if self._waiting or self._lanes or self._doubts or self.is_alone else QUIET_SECONDS

    def _heed(self, event: Wake) -> None:
        if event is Wake.HELD:  # from the relay, once a second
            self._must_look = True
        elif event is Wake.SUSPECTS and not self.is_alone and self._claiming:
            log.info("keeps_to_one_run", worker=self.worker_id)
            self._solitude.begin()
            self._hooks.consume(False)

    def _look_if_dry(self) -> None:
        """Whoever has run out of messages looks whether runs are held. When the relay says that there are some, all lanes are read
        from their beginnings: other tenants' may be new, and runs may have been put back behind a place that was reached."""
        now = time.monotonic()
        is_dry = self._is_dry and not self._lanes and not self._waiting and self._free() > 0
        if self._must_look or (is_dry and now - self._looked_at >= LOOK_SECONDS):
            if self._must_look:
                self._lanes.start_over()
            self._looked_at, self._is_dry, self._must_look = now, False, False
            self._lanes.look()

    def _keep_alone(self) -> None:
        """Starts the next suspect once nothing else runs."""
        claim = self._solitude.next(held=len(self._held)) if self._claiming else None
        if claim is not None:
            message = self._held[claim.run_id] = RunMessage.held(claim)
            self._hooks.start_run(message)
        elif self._solitude.is_over(held=len(self._held)) or not self._claiming:
            self._solitude.end()
            self._hooks.consume(True)

    def _free(self) -> int:
        """How many runs may be claimed now."""
        return self._limit - len(self._held) + len(self._unwritten) if self._claiming and not self.is_alone else 0

    def _give_back_if_busy(self) -> None:
        """A process whose threads stay busy keeps no message that an idle one could start."""
        is_busy = len(self._held) - len(self._unwritten) >= self._limit
        if not self._claiming or self.is_alone or (is_busy and self._waiting.longest_wait() <= BUSY_SECONDS):
            return
        if self._is_consuming is is_busy:
            self._is_consuming = not is_busy
            self._hooks.consume(not is_busy)
        if is_busy:
            self._return_waiting()

    def _return_waiting(self) -> None:
        settle_all(told(self._waiting.take_all(), Verdict.REQUEUE))
