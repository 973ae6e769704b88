"""Webhooks of a tenant, their deliveries, and the schedule by which a delivery is tried again."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, exists, func, select, tuple_, update
from sqlalchemy.orm import Session

from core.errors import ConflictError, InvalidInputError, NotFoundError
from core.ids import is_id
from core.settings import KeyRing
from storage.credentials import CredentialBox
from storage.event_types import EVENTS, TEST_EVENT
from storage.expressions import db_now, db_now_plus
from storage.models import TaskRun, Webhook, WebhookDelivery
from storage.repositories.base import Repository
from storage.states import LIVE
from storage.webhook_events import NewEvent, payload_of

RETRY_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Between the tries of a delivery, as Standard Webhooks recommends: three and a half days in all."""
LONGEST_WAIT = 86_400.0
JITTER = 0.1
OVERLAP_SECONDS = 86_400
"""How long the secret before the last is good beside it."""
PATIENCE_SECONDS = 5 * 86_400
"""A webhook through which nothing got for so long is switched off."""
MOST_WEBHOOKS = 20
BATCH = 500
GONE = 410
Identity = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Job:
    """A delivery to be tried now."""

    delivery_id: str
    url: str
    payload: dict[str, Any]
    secrets: list[str]
    attempts: int
    timestamp: int


@dataclass(frozen=True, slots=True)
class Tried:
    """How a delivery stands: its status, its tries, the seconds until the next (None: it is over), and the webhook it switched off."""

    status: str
    attempts: int
    wait: float | None
    disabled: str | None = None


class Webhooks(Repository):
    """Those of the identity's tenant. Secrets need the key ring."""

    def __init__(self, session: Session, keys: KeyRing | None = None) -> None:
        super().__init__(session)
        self._keys = keys

    def all(self) -> list[Webhook]:
        """The oldest first."""
        return list(self.session.scalars(self.scoped(Webhook).order_by(Webhook.created_at, Webhook.id)))

    def one(self, webhook_id: str) -> Webhook:
        """Raises NotFoundError."""
        return self.get(Webhook, webhook_id, "webhook")

    def add(self, url: str, events: Sequence[str], secret: str, description: str = "") -> Webhook:
        """Raises InvalidInputError for an event that is none, ConflictError when there are very many."""
        mine = select(func.count()).select_from(Webhook).where(self.owns(Webhook))
        if (self.session.scalar(mine) or 0) >= MOST_WEBHOOKS:
            raise ConflictError(f"There are {MOST_WEBHOOKS} webhooks already; delete one first.")
        hook = Webhook(
            tenant_id=self.identity.tenant_id, url=url, events=checked_events(events), description=description, secret=b"", is_active=True
        )
        self.session.add(hook)
        self.session.flush()
        hook.secret = self._sealed(hook, secret)
        self.session.flush()
        self.session.refresh(hook)
        return hook

    def change(self, webhook_id: str, **changes: Any) -> Webhook:
        """url, events, description, is_active; switched on, it begins anew."""
        hook = self.one(webhook_id)
        if "events" in changes:
            changes["events"] = checked_events(changes["events"])
        if changes.get("is_active"):
            changes |= {"failures": 0, "failing_since": None, "disabled_reason": None}
        elif changes.get("is_active") is False and hook.is_active:
            changes["disabled_reason"] = "Somebody switched it off."
        for name, value in changes.items():
            setattr(hook, name, value)
        self.session.flush()
        self.session.refresh(hook)
        return hook

    def rotate(self, webhook_id: str, secret: str) -> Webhook:
        """The secret so far is good for a day beside the new one."""
        hook = self.one(webhook_id)
        hook.previous_secret, hook.previous_until = hook.secret, db_now_plus(OVERLAP_SECONDS)
        hook.secret = self._sealed(hook, secret)
        self.session.flush()
        self.session.refresh(hook)
        return hook

    def remove(self, webhook_id: str) -> None:
        """With its deliveries."""
        self.session.execute(delete(Webhook).where(self.owns(Webhook), Webhook.id == self.one(webhook_id).id))

    def secrets(self, hook: Webhook) -> list[str]:
        """The good ones in clear, the newest first. They live as short as possible and are never logged."""
        sealed = [hook.secret]
        is_good = select(func.coalesce(Webhook.previous_until > db_now(), False)).where(Webhook.id == hook.id)
        if hook.previous_secret is not None and self.session.scalar(is_good):
            sealed.append(hook.previous_secret)
        return [self._box().decrypt(each, tenant_id=hook.tenant_id, account_id=hook.id, kind="webhook") for each in sealed]

    def _sealed(self, hook: Webhook, secret: str) -> bytes:
        return self._box().encrypt(secret, tenant_id=hook.tenant_id, account_id=hook.id, kind="webhook")

    def _box(self) -> CredentialBox:
        if self._keys is None:
            raise InvalidInputError("Secrets cannot be read or written here: no key ring was given.")
        return CredentialBox(self._keys)


class Deliveries(Webhooks):
    """What was and is to be told."""

    def page(self, webhook_id: str, *, before: tuple[datetime, str] | None = None, limit: int = 50) -> list[WebhookDelivery]:
        """Those of a webhook, the newest first. Raises NotFoundError."""
        statement = self.scoped(WebhookDelivery).where(WebhookDelivery.webhook_id == self.one(webhook_id).id)
        if before is not None:
            statement = statement.where(tuple_(WebhookDelivery.created_at, WebhookDelivery.id) < before)
        newest = statement.order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
        return list(self.session.scalars(newest.limit(limit)))

    def newest(self, hooks: Sequence[Webhook], *, before: tuple[datetime, str] | None = None, limit: int = 50) -> list[WebhookDelivery]:
        """Those of several webhooks, the newest first: a few of each, by its index, and of these the newest."""
        found = [row for hook in hooks for row in self.page(hook.id, before=before, limit=limit)]
        return sorted(found, key=lambda row: (row.created_at, row.id), reverse=True)[:limit]

    def newest_of_all(self, *, before: tuple[datetime, str] | None = None, limit: int = 50) -> list[WebhookDelivery]:
        """Of all that the identity may see; quick for the system only."""
        statement = self.scoped(WebhookDelivery)
        if before is not None:
            statement = statement.where(tuple_(WebhookDelivery.created_at, WebhookDelivery.id) < before)
        newest = statement.order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
        return list(self.session.scalars(newest.limit(limit)))

    def delivery(self, delivery_id: str) -> WebhookDelivery:
        """Raises NotFoundError."""
        return self.get(WebhookDelivery, delivery_id, "webhook delivery")

    def test(self, webhook_id: str) -> WebhookDelivery:
        """Something to be delivered, whatever the webhook wants to know."""
        hook = self.one(webhook_id)
        moment: datetime = self.session.execute(select(db_now())).scalar_one()
        event = NewEvent(hook.tenant_id, TEST_EVENT, {"webhookId": hook.id})
        text = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        row = WebhookDelivery(
            tenant_id=hook.tenant_id, webhook_id=hook.id, type=TEST_EVENT, payload=payload_of(event, text), status="pending", attempts=0
        )
        self.session.add(row)
        self.session.flush()
        self.session.refresh(row)
        return row

    def again(self, delivery_id: str) -> WebhookDelivery:
        """Tells it once more, with all its tries. Raises ConflictError while it is still being told, or its webhook is off."""
        row = self.delivery(delivery_id)
        if row.status == "pending":
            raise ConflictError("The event is still being delivered.")
        if not self.one(row.webhook_id).is_active:
            raise ConflictError("The webhook is switched off; switch it on first.")
        row.status, row.attempts, row.run_id, row.next_attempt_at, row.finished_at = "pending", 0, None, None, None
        self.session.flush()
        return row

    def not_started(self) -> list[Identity]:
        """(tenant, id) of deliveries that no run carries yet, the first BATCH of them; nobody else gets them in this transaction."""
        waiting = and_(WebhookDelivery.run_id.is_(None), WebhookDelivery.status == "pending")
        statement = select(WebhookDelivery.tenant_id, WebhookDelivery.id).where(waiting).order_by(WebhookDelivery.id).limit(BATCH)
        return [(row.tenant_id, row.id) for row in self.session.execute(statement.with_for_update(skip_locked=True))]

    def started(self, runs: Collection[tuple[str, str]]) -> None:
        """(delivery, run): who carries what."""
        for delivery_id, run_id in runs:
            self.session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(run_id=run_id))

    def take(self, delivery_id: str) -> Job | None:
        """What is to be sent now; None when that is over. Raises NotFoundError."""
        row = self.delivery(delivery_id) if is_id(delivery_id) else None
        if row is None:
            raise NotFoundError("There is no webhook delivery with this id.")
        hook = self.one(row.webhook_id)
        if row.status != "pending":
            return None
        if not hook.is_active and row.type != TEST_EVENT:
            self._end(row, "cancelled", "The webhook was switched off.")
            return None
        moment: datetime = self.session.execute(select(db_now())).scalar_one()
        return Job(row.id, hook.url, row.payload, self.secrets(hook), row.attempts, int(moment.timestamp()))

    def record(
        self, job: Job, code: int | None, error: str | None, text: str, retry_after: float | None, duration_ms: int, *, is_good: bool
    ) -> Tried:
        """What came of a try. A try that another run has recorded meanwhile changes nothing."""
        mine = self.scoped(WebhookDelivery).where(WebhookDelivery.id == job.delivery_id)
        row = self.session.scalar(mine.with_for_update().execution_options(populate_existing=True))
        if row is None or row.status != "pending" or row.attempts != job.attempts:
            return Tried(row.status if row is not None else "cancelled", job.attempts, None)
        row.attempts += 1
        row.response_code, row.response_text, row.last_error, row.duration_ms = code, text[:200] or None, error, duration_ms
        if is_good:
            self._end(row, "delivered", None)
            self._set(row, failures=0, failing_since=None)
            return Tried("delivered", row.attempts, None)
        disabled = self._failed(row, code)
        if disabled is not None or row.attempts > len(RETRY_SECONDS) or row.type == TEST_EVENT:
            self._end(row, "failed", error)
            return Tried("failed", row.attempts, None, disabled)
        wait = RETRY_SECONDS[row.attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  (no secret)
        wait = min(LONGEST_WAIT, max(wait, retry_after or 0.0))
        row.next_attempt_at = db_now_plus(wait)
        self.session.flush()
        return Tried("pending", row.attempts, wait)

    def adopt_lost(self) -> int:
        """Deliveries whose run is over, and they are not, get another. Returns how many."""
        live = exists().where(TaskRun.id == WebhookDelivery.run_id, TaskRun.state.in_(sorted(LIVE)))
        lost = and_(WebhookDelivery.status == "pending", WebhookDelivery.run_id.is_not(None), ~live)
        result: Any = self.session.execute(
            update(WebhookDelivery).where(lost).values(run_id=None).execution_options(synchronize_session=False)
        )
        return int(result.rowcount)

    def forget_old(self, days: int) -> int:
        """Deletes up to BATCH deliveries that are older and over. Returns how many."""
        old = and_(WebhookDelivery.created_at < db_now_plus(-days * 86_400.0), WebhookDelivery.status != "pending")
        some = select(WebhookDelivery.id).where(old).order_by(WebhookDelivery.created_at).limit(BATCH)
        result: Any = self.session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(some)))
        return int(result.rowcount)

    def _failed(self, row: WebhookDelivery, code: int | None) -> str | None:
        """Counts it. Returns why the webhook was switched off now, if it was."""
        since = func.coalesce(Webhook.failing_since, db_now())
        self._set(row, failures=Webhook.failures + 1, failing_since=since)
        reason = "The address answered 410: it is gone." if code == GONE else None
        if reason is None:
            too_long = select(Webhook.failing_since < db_now_plus(-PATIENCE_SECONDS)).where(Webhook.id == row.webhook_id)
            reason = "Nothing got through for five days." if self.session.scalar(too_long) else None
        if reason is not None:
            self._set(row, is_active=False, disabled_reason=reason)
        return reason

    def _set(self, row: WebhookDelivery, **values: Any) -> None:
        mine = update(Webhook).where(Webhook.tenant_id == row.tenant_id, Webhook.id == row.webhook_id)
        self.session.execute(mine.values(**values))

    def _end(self, row: WebhookDelivery, status: str, error: str | None) -> None:
        row.status, row.next_attempt_at, row.last_error = status, None, error
        row.finished_at = db_now()
        self.session.flush()


def checked_events(events: Sequence[str]) -> list[str]:
    """In a fixed order, each once. Raises InvalidInputError."""
    unknown = sorted(set(events) - set(EVENTS))
    if unknown or not events:
        raise InvalidInputError(f"events are of these, at least one: {', '.join(EVENTS)}.")
    return [event for event in EVENTS if event in events]
