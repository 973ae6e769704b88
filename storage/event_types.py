"""What a webhook can be told of: the names of events."""

from __future__ import annotations

from storage.states import OutboundStatus, State

TASK_EVENTS = {
    State.SUCCESS: "task.succeeded",
    State.FAILURE: "task.failed",
    State.RETRY: "task.retried",
    State.REVOKED: "task.revoked",
}
MAIL_EVENTS = {
    OutboundStatus.SENT: "email.sent",
    OutboundStatus.FAILED: "email.failed",
    OutboundStatus.UNCERTAIN: "email.uncertain",
}
BOUNCED = "email.bounced"
SYNCED = "sync.completed"
EVENTS = (*TASK_EVENTS.values(), *MAIL_EVENTS.values(), BOUNCED, SYNCED)
TEST_EVENT = "webhook.test"
"""Sent when somebody asks for it, and to every webhook that is asked."""
DELIVERS = "deliver_webhook"
"""The task that delivers events; its own runs are no events."""
