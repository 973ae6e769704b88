"""The outbox behind its tenants' walls: every query of sending is tried from another tenant, and from another user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from brokers.queues import Queue
from core.clock import now
from core.errors import ConflictError, NotFoundError
from core.ids import new_id
from core.settings import get_settings
from core.tenancy import Identity
from mail.addresses import unique_recipients
from mail.bounces import BounceReport
from mail.delivery import DeliveryOutcome
from mail.dkim import new_private_key
from storage.credentials import CredentialError
from storage.drafts import Draft, accept
from storage.models import Base, DkimKey, EmailClient, OutboundEmail, OutboundRecipient, Suppression, TaskRun
from storage.repositories.outbound import Attachments, OutboundEmails
from storage.repositories.outbox import Outbox, send_key
from storage.repositories.suppressions import DkimKeys, Suppressions
from tests.toys import Record

TABLES: list[type[Base]] = [OutboundEmail, OutboundRecipient, Suppression, DkimKey]


@dataclass
class Outboxes:
    """Ann's, one mail in each status that something can be done to, and acme's suppressed address and DKIM key."""

    client: str
    file: str
    waiting: str
    sending: str
    uncertain: str
    failed: str
    suppression: str
    key: str


@pytest.fixture
def anns(record: Record) -> Outboxes:
    ann, ids = record.people.ann, {}
    with record.session(ann) as session:
        client = EmailClient(
            tenant_id=ann.tenant_id, user_id=ann.user_id, name="Ann", email="ann@acme.test", smtp_host="smtp.test", imap_host="imap.test"
        )
        session.add(client)
        session.flush()
        file = Attachments(session).add(filename="f", content_type="text/plain", size=1, stored_filename="f").id
        for name, status in (("waiting", "pending"), ("sending", "sending"), ("uncertain", "uncertain"), ("failed", "failed")):
            email = _accepted(session, client.id)
            email.status, email.run_id, email.expires_at = status, new_id(), now() - timedelta(seconds=1)
            ids[name] = email.id
            session.flush()
            state = "REVOKED" if name == "waiting" else "FAILURE"
            session.add(
                TaskRun(
                    id=email.run_id, tenant_id=ann.tenant_id, user_id=ann.user_id, task="send_outbound_email", queue=Queue.SEND, args={},
                    state=state, max_attempts=1, fence=1, attempt=1, unique_key=send_key(email.id),
                )
            )  # fmt: skip
        suppression = Suppressions(session).add(ann.tenant_id, "bob@example.test", "manual").id
        key = DkimKeys(session, get_settings().credential_keys).add("acme.test", "s", new_private_key("ed25519-sha256")).id
    return Outboxes(client.id, file, suppression=suppression, key=key, **ids)


def _accepted(session: Session, client_id: str, **draft: Any) -> OutboundEmail:
    made = Draft(unique_recipients(["bob@example.test"]), "Hi", "Hello", **draft)
    return accept(session, client_id, made, files=Path("/nowhere"), keys=lambda: get_settings().credential_keys)


Attempt = Callable[[Session, Outboxes], object]
UNKNOWN: dict[str, Attempt] = {
    "accept": lambda s, b: _accepted(s, b.client),
    "Outbox.cancel": lambda s, b: Outbox(s).cancel(b.waiting),
    "Outbox.resolve": lambda s, b: Outbox(s).resolve(b.uncertain, "sent"),
    "OutboundEmails.reopen": lambda s, b: OutboundEmails(s).reopen(b.failed),
    "OutboundEmails.record": lambda s, b: OutboundEmails(s).record(
        b.sending, DeliveryOutcome(["bob@example.test"], [], None, 250), attempts=-1
    ),
    "OutboundEmails.put_off": lambda s, b: OutboundEmails(s).put_off(b.waiting, ["bob@example.test"], "later", attempts=0),
}
OF_THE_TENANT: dict[str, Attempt] = {  # the same for all its users
    "Suppressions.one": lambda s, b: Suppressions(s).one(b.suppression),
    "Suppressions.one by address": lambda s, b: Suppressions(s).one("bob@example.test"),
    "Suppressions.remove": lambda s, b: Suppressions(s).remove(b.suppression),
    "DkimKeys.one": lambda s, b: DkimKeys(s).one(b.key),
    "DkimKeys.one by domain": lambda s, b: DkimKeys(s).one("acme.test"),
    "DkimKeys.remove": lambda s, b: DkimKeys(s).remove("acme.test"),
}


def _email(b: Outboxes, who: Identity) -> OutboundEmail:
    return OutboundEmail(id=b.waiting, tenant_id=who.tenant_id, expires_at=now() - timedelta(seconds=1))


NOTHING: dict[str, Attempt] = {  # what finds nothing, changes nothing and says nothing
    "OutboundEmails.came_back by envelope": lambda s, b: OutboundEmails(s).came_back(
        [BounceReport(None, b.failed, "bob@example.test", "failed", "5.1.1")]
    ),
    "OutboundEmails.uncertain": lambda s, b: OutboundEmails(s).uncertain(b.waiting, "no"),
    "OutboundEmails.not_sent": lambda s, b: OutboundEmails(s).not_sent(b.waiting, "no", is_final=True),
    "OutboundEmails.sent_count": lambda s, b: OutboundEmails(s).sent_count(b.failed),
    "Outbox.saved": lambda s, b: Outbox(s).saved(b.failed, "saved"),
    "Outbox.has_imap": lambda s, b: Outbox(s).has_imap(b.client),
    "Outbox.due": lambda s, b: Outbox(s).due(),
    "Outbox.settle_lost": lambda s, b: Outbox(s).settle_lost(),
    "Outbox.cancel_revoked": lambda s, b: Outbox(s).cancel_revoked(),
    "Outbox.cancel_expired": lambda s, b: Outbox(s).cancel_expired(),
}
NOTHING_OF_THE_TENANT: dict[str, Attempt] = {
    "OutboundEmails.expired": lambda s, b: OutboundEmails(s).expired(_email(b, _identity(s))),
    "OutboundEmails.envelope": lambda s, b: OutboundEmails(s).envelope(_email(b, _identity(s))).recipients,
    "Outbox.live_runs": lambda s, b: Outbox(s).live_runs(_email(b, _identity(s))),
    "Outbox.is_held": lambda s, b: Outbox(s).is_held(_email(b, _identity(s)), new_id()),
    "Suppressions.page": lambda s, b: Suppressions(s).page(),
    "Suppressions.among": lambda s, b: Suppressions(s).among(_identity(s).tenant_id, ["bob@example.test"]),
    "DkimKeys.all": lambda s, b: DkimKeys(s).all(),
    "DkimKeys.of_domain": lambda s, b: DkimKeys(s).of_domain(_identity(s).tenant_id, "acme.test"),
}


def _identity(session: Session) -> Identity:
    identity: Identity = session.info["identity"]
    return identity


def snapshot(record: Record) -> list[Any]:
    with record.session() as session:
        return [tuple(row) for model in TABLES for row in session.execute(select(model.__table__).order_by(model.__table__.c.id))]


def strangers(record: Record, *, with_user: bool = True) -> list[Identity]:
    return [record.people.globex, record.people.gus, *([record.people.bob] if with_user else [])]


@pytest.mark.parametrize("name", [*UNKNOWN, *OF_THE_TENANT])
def test_what_is_somebody_elses_is_unknown(record: Record, anns: Outboxes, name: str) -> None:
    before = snapshot(record)
    for stranger in strangers(record, with_user=name in UNKNOWN):
        with pytest.raises(NotFoundError), record.session(stranger) as session:
            (UNKNOWN.get(name) or OF_THE_TENANT[name])(session, anns)
    assert snapshot(record) == before


@pytest.mark.parametrize("name", [*NOTHING, *NOTHING_OF_THE_TENANT])
def test_nothing_is_found_of_somebody_elses_and_nothing_changes(record: Record, anns: Outboxes, name: str) -> None:
    before = snapshot(record)
    for stranger in strangers(record, with_user=name in NOTHING):
        with record.session(stranger) as session:
            assert not (NOTHING.get(name) or NOTHING_OF_THE_TENANT[name])(session, anns), stranger
    assert snapshot(record) == before


@pytest.mark.parametrize("name", [*UNKNOWN, *OF_THE_TENANT])
def test_the_owner_finds_it(record: Record, anns: Outboxes, name: str) -> None:
    with record.session(record.people.ann) as session:
        try:
            (UNKNOWN.get(name) or OF_THE_TENANT[name])(session, anns)
        except ConflictError as error:  # it is hers, and not in the state for that
            assert "mail" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", sorted({*NOTHING, *NOTHING_OF_THE_TENANT} - {"Outbox.due", "Outbox.saved", "OutboundEmails.uncertain",
    "OutboundEmails.not_sent", "OutboundEmails.sent_count", "Outbox.live_runs", "Outbox.is_held"}))  # fmt: skip
def test_the_owner_s_own_are_found(record: Record, anns: Outboxes, name: str) -> None:
    with record.session(record.people.ann) as session:
        if name == "OutboundEmails.expired":
            assert OutboundEmails(session).expired(OutboundEmails(session).one(anns.waiting))
        elif name == "OutboundEmails.envelope":
            Suppressions(session).remove(anns.suppression)
            assert OutboundEmails(session).envelope(OutboundEmails(session).one(anns.waiting)).recipients
        else:
            assert (NOTHING.get(name) or NOTHING_OF_THE_TENANT[name])(session, anns)


def test_a_foreign_mail_is_not_marked(record: Record, anns: Outboxes) -> None:
    with record.session() as session:
        session.get_one(OutboundEmail, anns.waiting).expires_at = None
    for stranger in strangers(record):
        with pytest.raises(ConflictError), record.session(stranger) as session:
            OutboundEmails(session).mark_sending(anns.waiting, 0)
    with record.session(record.people.ann) as session:
        OutboundEmails(session).mark_sending(anns.waiting, 0)


def test_a_foreign_file_cannot_be_sent(record: Record, anns: Outboxes) -> None:
    gus = record.people.gus
    with record.session(gus) as session:
        client = EmailClient(tenant_id=gus.tenant_id, user_id=gus.user_id, name="Gus", email="gus@globex.test", smtp_host="smtp.test")
        session.add(client)
        session.flush()
        client_id = client.id
    with pytest.raises(NotFoundError), record.session(gus) as session:
        _accepted(session, client_id, attachment_ids=[anns.file])


def test_a_mail_is_signed_with_its_own_tenants_key_only(record: Record, anns: Outboxes) -> None:
    gus = record.people.gus
    with record.session(gus) as session:
        client = EmailClient(tenant_id=gus.tenant_id, user_id=gus.user_id, name="Gus", email="gus@acme.test", smtp_host="smtp.test")
        session.add(client)
        session.flush()
        assert not _accepted(session, client.id).source.startswith(b"DKIM-Signature:")
    with record.session(record.people.ann) as session:
        assert _accepted(session, anns.client).source.startswith(b"DKIM-Signature: v=1; a=ed25519-sha256;")


def test_a_private_key_copied_to_another_tenant_does_not_open(record: Record, anns: Outboxes) -> None:
    gus = record.people.gus
    with record.session() as session:
        stolen = session.get_one(DkimKey, anns.key)
        assert b"PRIVATE" not in stolen.private_key
        session.add(DkimKey(id=new_id(), tenant_id=gus.tenant_id, domain="globex.test", selector="s", private_key=stolen.private_key))
    with record.session(gus) as session:
        keys = DkimKeys(session, get_settings().credential_keys)
        (row,) = keys.all()
        with pytest.raises(CredentialError):
            keys.private_key(row)


def test_references_stay_inside_the_tenant_for_the_system_too(record: Record, anns: Outboxes) -> None:
    """The system sees everybody's lists; a mail asks its own tenant's only."""
    with record.session() as session:
        assert Suppressions(session).among(record.people.globex.tenant_id, ["bob@example.test"]) == set()
        assert Suppressions(session).among(record.people.acme.tenant_id, ["Bob@example.test"]) == {"bob@example.test"}
        assert DkimKeys(session).of_domain(record.people.globex.tenant_id, "acme.test") is None
