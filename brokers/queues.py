"""The eight queues and their policies, as data (DESIGN.md, section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

DEAD_LETTER_SUFFIX = ".XQ"
DEAD_LETTER_TTL_MS = 7 * 86_400 * 1000
"""How long RabbitMQ keeps a dead letter for its management UI. The record keeps it until it is purged."""


class Queue(StrEnum):
    """The names, as they stand on the broker."""

    SYNC = "sync"
    PERIODIC = "periodic"
    HIGH_PRIORITY = "high_priority"
    SEND = "send"
    DEFAULT = "default"
    DELETE = "delete"
    SPAM = "spam"
    LOW_PRIORITY = "low_priority"


class Priority(IntEnum):
    """The order inside a queue: the three levels of `x-max-priority`. The number of levels cannot be changed later."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


MAX_PRIORITY = max(Priority)


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How urgent a queue is (0-10, higher sooner), how long its runs may take (s), how often and how soon they are retried."""

    priority: int
    soft_limit: float
    hard_limit: float
    retries: int
    base_backoff: float


POLICIES: dict[str, QueuePolicy] = {
    Queue.SYNC: QueuePolicy(priority=10, soft_limit=280, hard_limit=300, retries=5, base_backoff=5),
    Queue.PERIODIC: QueuePolicy(priority=10, soft_limit=280, hard_limit=300, retries=1, base_backoff=10),
    Queue.HIGH_PRIORITY: QueuePolicy(priority=9, soft_limit=540, hard_limit=600, retries=5, base_backoff=60),
    Queue.SEND: QueuePolicy(priority=8, soft_limit=280, hard_limit=300, retries=3, base_backoff=10),
    Queue.DEFAULT: QueuePolicy(priority=5, soft_limit=540, hard_limit=600, retries=3, base_backoff=60),
    Queue.DELETE: QueuePolicy(priority=5, soft_limit=280, hard_limit=300, retries=2, base_backoff=10),
    Queue.SPAM: QueuePolicy(priority=3, soft_limit=280, hard_limit=300, retries=2, base_backoff=10),
    Queue.LOW_PRIORITY: QueuePolicy(priority=1, soft_limit=540, hard_limit=600, retries=3, base_backoff=60),
}


def policy_of(queue: str) -> QueuePolicy:
    """The policy of a queue; an unknown one (a test's, an extension's) behaves like `default`."""
    return POLICIES.get(queue, POLICIES[Queue.DEFAULT])


def by_urgency(queues: list[str]) -> list[str]:
    """The queues, the most urgent first; equals keep their order."""
    return sorted(queues, key=lambda queue: -policy_of(queue).priority)


def dead_letter_queue(queue: str) -> str:
    """Where a queue's dead letters go."""
    return queue + DEAD_LETTER_SUFFIX
