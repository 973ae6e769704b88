"""What the actors' tests stand on: the real tasks over a database and a broker in memory, and mail accounts for two tenants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from brokers.message import MessageEncoder
from brokers.stub import StubBroker
from core.ids import new_id
from core.settings import get_settings
from core.tenancy import Identity, acting_as
from runs.current import set_current_run
from storage.models import EmailClient
from storage.outcomes import Claim
from storage.repositories.email_clients import EmailClients
from tests.toys import Record
from tests.unit.conftest import stub_parts


class Actors:
    """Calls the real tasks as a worker's thread would, attempt after attempt."""

    def __init__(self, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
        import actors  # not earlier: importing it reads the settings in force

        self.record = record
        self.stub = StubBroker()
        monkeypatch.setattr(actors.broker, "_parts", stub_parts(lambda: record.engine, MessageEncoder({"k1": bytes(32)}), self.stub))
        monkeypatch.setattr(actors.broker, "_publisher", None)
        self.broker = actors.broker

    def account(self, who: Identity, **fields: Any) -> str:
        given = {"name": "Ann", "email": "ann@acme.test", "smtp_host": "127.0.0.1", "smtp_security": "plain", "imap_security": "plain"}
        with self.record.session(who) as session:
            return EmailClients(session, get_settings().credential_keys).create(str(who.user_id), {**given, **fields}).id

    def client(self, client_id: str) -> EmailClient:
        with self.record.session() as session:
            return session.get_one(EmailClient, client_id)

    @contextmanager
    def attempt(self, who: Identity, *, run_id: str = "", number: int = 1, of: int = 4) -> Iterator[str]:
        """One attempt of a run of the identity's, on this thread."""
        run_id = run_id or new_id()
        set_current_run(Claim(run_id, who.tenant_id, who.user_id, "t", "send", {}, number, of, number, None, None, None))
        try:
            with acting_as(who):
                yield run_id
        finally:
            set_current_run(None)


@pytest.fixture
def acting(record: Record, monkeypatch: pytest.MonkeyPatch) -> Iterator[Actors]:
    made = Actors(record, monkeypatch)
    yield made
    made.broker.close()
