"""What joins a recorder to the process it works in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from brokers.consumer import Delivery, Rejection, Verdict
from brokers.message import Envelope
from runs.message import RunMessage
from storage.outcomes import Claim, HeldLane


class Wake(Enum):
    """What else there may be in the inbox."""

    LOOK_AGAIN = "look again"
    HELD = "held"  # there are held runs
    SUSPECTS = "suspects"  # there are runs that must run alone, and it is this process' turn


@dataclass(frozen=True)
class RecorderHooks:
    """What a recorder asks of its process.

    `start_run` hands a claimed run to a worker thread. `adopt` turns a message whose run the record does not know into a row, if it
    is of a service that may do so: None when it has. `consume(False)` stops the deliveries, `consume(True)` resumes them.
    `find_held` reads where held runs wait. `bury` puts a dead letter on the broker for a run that has no message to reject.
    `claim_alone` claims a suspect; `on_ended` hears of every run whose outcome is written.
    """

    start_run: Callable[[RunMessage], None]
    adopt: Callable[[Delivery, Envelope], Verdict | Rejection | None]
    consume: Callable[[bool], None]
    find_held: Callable[[], list[HeldLane]]
    bury: Callable[[Envelope], None]
    claim_alone: Callable[[], Claim | None]
    on_ended: Callable[[list[RunMessage]], None]
