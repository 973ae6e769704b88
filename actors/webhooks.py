"""Telling tenants' webhooks what happened. The delivery's row owns the tries; one run carries it to its end."""

from __future__ import annotations

from typing import TypedDict

import orjson
from periodiq import cron

from brokers.queues import Queue
from core.errors import Snooze
from core.logging import get_logger
from core.settings import get_settings
from runs.task import task
from runs.webhooks.posting import post
from runs.webhooks.signature import headers_of
from storage.engine import session_scope
from storage.repositories.requests import RequestKeys
from storage.repositories.webhooks import BATCH, Deliveries

log = get_logger(__name__)


class DeliveryResult(TypedDict):
    """`delivered`, `failed` or `cancelled`, after so many tries."""

    status: str
    attempts: int


class CleanupResult(TypedDict):
    """Deliveries that were deleted, and those that got another run because theirs was lost."""

    status: str
    deleted_count: int
    restarted_count: int


@task(queue=Queue.LOW_PRIORITY)
def deliver_webhook(delivery_id: str) -> DeliveryResult:
    """Post one event to its webhook, signed."""
    settings = get_settings()
    with session_scope() as session:
        deliveries = Deliveries(session, settings.credential_keys)
        job = deliveries.take(delivery_id)
        if job is None:
            row = deliveries.delivery(delivery_id)
            return DeliveryResult(status=row.status, attempts=row.attempts)
    body = orjson.dumps(job.payload)
    headers = headers_of(job.delivery_id, job.timestamp, body, job.secrets)
    answer = post(job.url, body, headers, allow_private=settings.allow_private_webhook_hosts, verify=settings.ssl_verify)
    with session_scope() as session:
        tried = Deliveries(session).record(
            job, answer.code, answer.error, answer.text, answer.retry_after, answer.duration_ms, is_good=answer.is_good
        )
    if tried.disabled is not None:
        log.warning("webhook_disabled", delivery_id=delivery_id, why=tried.disabled)
    if tried.wait is not None:
        raise Snooze(tried.wait, answer.error or "The address asked to try again later.")
    return DeliveryResult(status=tried.status, attempts=tried.attempts)


@task(queue=Queue.PERIODIC, periodic=cron("17 * * * *"), overlap="skip")
def cleanup_webhook_deliveries() -> CleanupResult:
    """Delete old deliveries and the keys of old requests in batches, and see to deliveries whose run was lost."""
    found = keys = BATCH
    with session_scope(system=True) as session:
        restarted = Deliveries(session).adopt_lost()
    deleted = 0
    while found == BATCH:
        with session_scope(system=True) as session:
            found = Deliveries(session).forget_old(get_settings().history_days)
        deleted += found
    while keys == BATCH:
        with session_scope(system=True) as session:
            keys = RequestKeys(session).forget_old(get_settings().history_days)
    return CleanupResult(status="success", deleted_count=deleted, restarted_count=restarted)
