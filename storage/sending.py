"""The statements that every mail costs, built once: who is due, the mark before the final dot, and the usual outcome.

Building one anew takes longer than the database needs for it. Each exists in three forms: for a user, a tenant, and the system.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, Select, Table, Update, and_, bindparam, exists, func, select, true, update

from core.tenancy import Identity
from mail.delivery import DeliveryOutcome
from storage.expressions import db_now
from storage.models import OutboundEmail, OutboundRecipient
from storage.states import OutboundStatus

EMAILS, RECIPIENTS = (cast("Table", model.__table__) for model in (OutboundEmail, OutboundRecipient))
Form = str
"""`system`, `tenant` or `user`."""


def waiting_recipients(connection: Connection, identity: Identity, email_id: str) -> Sequence[Any]:
    """(address, next_retry_at, now) of those who have no outcome yet, in the order of the envelope."""
    return connection.execute(_waiting(_form(identity)), {**_owner(identity), "email": email_id}).all()


def mark_sending(connection: Connection, identity: Identity, email_id: str, attempts: int | None) -> bool:
    """Sets the mark if the mail waits, is not expired and, unless `attempts` is None, has been tried so often."""
    values = {**_owner(identity), "email": email_id, "tried": attempts}
    return connection.execute(_mark(_form(identity), fenced=attempts is not None), values).scalar() is not None


def end_waits(connection: Connection, identity: Identity, email_id: str, addresses: Sequence[str]) -> None:
    """These wait no more: they are being offered the mail."""
    connection.execute(_offered(_form(identity)), {**_owner(identity), "email": email_id, "offered": list(addresses)})


def all_accepted(connection: Connection, identity: Identity, email_id: str, outcome: DeliveryOutcome, attempts: int) -> datetime | None:
    """Everybody who was waiting has it: when that was. None, and nothing is written, when it is not so, or not this try's to say."""
    owner, form = _owner(identity), _form(identity)
    values = {**owner, "email": email_id, "tried": attempts, "accepted": outcome.accepted}
    sent_at: datetime | None = connection.execute(_sent(form), values).scalar()
    if sent_at is not None:
        told = {"reply": outcome.reply_code, "enhanced": outcome.enhanced or None}
        connection.execute(_taken(form), {**owner, "email": email_id, "accepted": outcome.accepted, **told})
    return sent_at


def is_expired() -> ColumnElement[bool]:
    """Whether a mail's time is over."""
    return func.coalesce(EMAILS.c.expires_at <= db_now(), False)


@cache
def _waiting(form: Form) -> Select[Any]:
    columns = (RECIPIENTS.c.address, RECIPIENTS.c.next_retry_at, db_now().label("now"))
    mine = (_wall(RECIPIENTS, form), RECIPIENTS.c.email_id == bindparam("email"), RECIPIENTS.c.status == OutboundStatus.PENDING)
    return select(*columns).where(*mine).order_by(RECIPIENTS.c.id)


@cache
def _mark(form: Form, *, fenced: bool) -> Update:
    waits = (_wall(EMAILS, form), EMAILS.c.id == bindparam("email"), EMAILS.c.status == OutboundStatus.PENDING, ~is_expired())
    marked = update(EMAILS).where(*waits).values(status=OutboundStatus.SENDING, attempts=EMAILS.c.attempts + 1)
    return (marked.where(EMAILS.c.attempts == bindparam("tried")) if fenced else marked).returning(EMAILS.c.id)


@cache
def _offered(form: Form) -> Update:
    waits = (_wall(RECIPIENTS, form), RECIPIENTS.c.email_id == bindparam("email"), RECIPIENTS.c.next_retry_at.is_not(None))
    return update(RECIPIENTS).where(*waits, RECIPIENTS.c.address.in_(bindparam("offered", expanding=True))).values(next_retry_at=None)


@cache
def _sent(form: Form) -> Update:
    others = exists().where(
        RECIPIENTS.c.tenant_id == EMAILS.c.tenant_id,
        RECIPIENTS.c.email_id == EMAILS.c.id,
        RECIPIENTS.c.status == OutboundStatus.PENDING,
        RECIPIENTS.c.address.not_in(bindparam("accepted", expanding=True)),
    )
    mine = and_(_wall(EMAILS, form), EMAILS.c.id == bindparam("email"))
    this_try = and_(EMAILS.c.status == OutboundStatus.SENDING, EMAILS.c.attempts == bindparam("tried") + 1)
    values: dict[str, Any] = {"status": OutboundStatus.SENT, "sent_at": db_now(), "last_error": None, "next_retry_at": None}
    return update(EMAILS).where(mine, this_try, ~others).values(values).returning(EMAILS.c.sent_at)


@cache
def _taken(form: Form) -> Update:
    waiting = (_wall(RECIPIENTS, form), RECIPIENTS.c.email_id == bindparam("email"), RECIPIENTS.c.status == OutboundStatus.PENDING)
    values: dict[str, Any] = {
        "status": OutboundStatus.SENT,
        "reply_code": bindparam("reply"),
        "enhanced_code": bindparam("enhanced"),
        "error": None,
        "next_retry_at": None,
    }
    return update(RECIPIENTS).where(*waiting, RECIPIENTS.c.address.in_(bindparam("accepted", expanding=True))).values(values)


def _wall(table: Table, form: Form) -> ColumnElement[bool]:
    """As `Repository.owns`, with the identity as parameters."""
    if form == "system":
        return true()
    condition = table.c.tenant_id == bindparam("tenant")
    if form == "user" and "user_id" in table.c:
        return and_(condition, table.c.user_id == bindparam("user"))
    return condition


def _form(identity: Identity) -> Form:
    if identity.is_system:
        return "system"
    return "tenant" if identity.user_id is None else "user"


def _owner(identity: Identity) -> dict[str, Any]:
    if identity.is_system:
        return {}
    return {"tenant": identity.tenant_id} | ({"user": identity.user_id} if identity.user_id is not None else {})
