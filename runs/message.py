"""What dramatiq's worker handles: a delivery, and once its claim succeeded, a run."""

from __future__ import annotations

import time

from dramatiq import Message
from dramatiq.broker import MessageProxy

from brokers.consumer import Delivery, Verdict
from brokers.message import Envelope
from storage.outcomes import Claim, Outcome
from storage.states import State


class RunMessage(MessageProxy):
    """Follows one message from its delivery to its settlement; a held run was claimed without a message and has no delivery."""

    def __init__(self, envelope: Envelope, delivery: Delivery | None) -> None:
        super().__init__(Message(envelope.queue, envelope.task, (), {}, {}, envelope.run_id, 0))
        self.envelope = envelope
        # What dramatiq asks for a dozen times in a run, so that it need not go through the proxy's __getattr__.
        self.message_id = envelope.run_id
        self.queue_name = envelope.queue
        self.actor_name = envelope.task
        self.kwargs = self._message.kwargs
        self.delivery = delivery
        self.arrived_at = time.monotonic()
        self.started_at = 0.0
        self.claim: Claim | None = None
        self.outcome: Outcome | None = None
        self.is_recorded = False  # the outcome is in the record, and it was this message's to write

    @property
    def run_id(self) -> str:
        """The id of the run the message is for."""
        return self.envelope.run_id

    @property
    def message(self) -> RunMessage:
        """Itself: it is its own item of the work queue, where dramatiq has a wrapper that sorts."""
        return self

    @classmethod
    def held(cls, claim: Claim) -> RunMessage:
        """A run that was claimed straight from the record."""
        envelope = Envelope(
            claim.run_id, claim.task, claim.queue, claim.tenant_id, claim.user_id, claim.request_id, claim.attempt, claim.priority
        )
        message = cls(envelope, None)
        message.claimed(claim)
        return message

    def claimed(self, claim: Claim) -> None:
        """Takes the arguments over from the record."""
        self.claim = claim
        self.kwargs.update(claim.args)

    @property
    def verdict(self) -> Verdict:
        """What to tell the broker: dead letters are rejected, so that RabbitMQ dead-letters them natively."""
        return Verdict.REJECT if self.outcome is not None and self.outcome.state is State.FAILURE else Verdict.ACK

    def duration_ms(self) -> int | None:
        """Milliseconds since the run was started, None if it never was."""
        return round((time.monotonic() - self.started_at) * 1000) if self.started_at else None

    def __str__(self) -> str:
        return f"{self.envelope.task}({self.run_id})"  # dramatiq logs this; arguments hold addresses and tokens
