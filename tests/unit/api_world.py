"""What the API's tests stand on: a database, two tenants with users and keys, toy tasks under the real names, and a client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dramatiq
import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.app import create_app
from brokers.message import MessageEncoder
from brokers.queues import Queue
from brokers.stub import StubBroker
from core.settings import Settings
from core.tenancy import SYSTEM_TENANT, Identity
from runs.broker import Parts, RunBroker
from runs.registry import AttachmentId, EmailClientId, EmailId, FolderId
from runs.task import task
from storage.engine import make_engine, new_session, session_scope
from storage.models import Base, EmailClient, EmailFolder, EmailMessage, OutboundEmail, OutboundRecipient, TaskRun, Tenant
from storage.repositories.tenants import ApiKeys, Tenants

KEY = "k1:" + "A" * 43 + "="


def add(x: int, y: int = 1) -> int:
    """Add two numbers."""
    return x + y


def sync_emails(email_client_id: EmailClientId, folder_id: FolderId | None = None, force_full_sync: bool = False) -> None:
    """Stand in for the real one."""


def send_email(
    email_client_id: EmailClientId, to: list[str], body_text: str = "", attachment_ids: list[AttachmentId] | None = None
) -> None:
    """Stand in for the real one."""


def learn_spam() -> None:
    """Stand in for the real one."""


def move_out_of_junk(email_client_id: EmailClientId, email_ids: list[str]) -> None:
    """Stand in for the real one."""


def teach_engines(email_id: EmailId) -> None:
    """Stand in for the real one."""


def check_mailbox_spam(email_client_id: EmailClientId, folder_id: FolderId | None = None) -> None:
    """Stand in for the real one."""


def nothing() -> None:
    """Take no arguments."""


@dataclass
class Account:
    """A tenant with one user and one mail account that has a folder, a message and a mail going out."""

    tenant_id: str
    user_id: str
    key: str
    client_id: str
    folder_id: str
    message_id: str
    outbound_id: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass
class Furnished:
    """A database that was made and filled once, to be copied for each world, and who lives there."""

    directory: TemporaryDirectory[str]  # vanishes with the process
    acme: Account
    globex: Account
    admin_key: str
    ann_key: str

    @property
    def database(self) -> Path:
        return Path(self.directory.name) / "test.db"


class World:
    """Everything, and short ways to ask."""

    def __init__(self, directory: Path) -> None:
        furnished = _furnished()
        shutil.copy(furnished.database, directory / "test.db")
        self.settings = Settings(
            _env_file=None,
            database_url=SecretStr(f"sqlite:///{directory / 'test.db'}"),
            file_root=directory / "files",
            data_dir=directory,
            redis_url=SecretStr("redis://127.0.0.1:1/0"),
            credential_encryption_key=SecretStr(KEY),
        )
        self.engine: Engine = make_engine(self.settings.database)
        self.stub = StubBroker()
        encoder = MessageEncoder({"k1": b"0" * 32})
        self.broker = RunBroker(Parts(lambda: self.engine, lambda: encoder, lambda: self.stub, lambda *_: []))
        dramatiq.set_broker(self.broker)
        for function, queue in ((add, Queue.DEFAULT), (nothing, Queue.DEFAULT), (sync_emails, Queue.SYNC), (send_email, Queue.SEND)):
            task(queue=queue)(function)
        for spam in (learn_spam, teach_engines, move_out_of_junk, check_mailbox_spam):
            task(queue=Queue.SPAM)(spam)
        self.acme, self.globex = furnished.acme, furnished.globex
        self.admin_key, self.ann_key = furnished.admin_key, furnished.ann_key
        self.app: FastAPI = create_app(self.settings, self.engine)
        self.http = TestClient(self.app, raise_server_exceptions=False)

    def system(self) -> Any:
        return session_scope(system=True, engine=self.engine)

    @contextmanager
    def as_tenant(self, account: Account) -> Iterator[Session]:
        with new_session(Identity(account.tenant_id), self.engine) as session:
            yield session
            session.commit()

    def call(self, method: str, path: str, key: str | None = "", **options: Any) -> Response:
        """As acme's key unless told otherwise; None sends no key."""
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers["Authorization"] = f"Bearer {key or self.acme.key}"
        answer: Response = self.http.request(method, path, headers=headers, **options)
        return answer

    def get(self, path: str, key: str | None = "", **options: Any) -> Response:
        return self.call("GET", path, key, **options)

    def post(self, path: str, key: str | None = "", **options: Any) -> Response:
        return self.call("POST", path, key, **options)

    def add(self, key: str = "", **args: int) -> str:
        """A new run of `add`."""
        answer = self.post("/api/tasks", key, json={"task": "add", "args": args or {"x": 1}})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["taskId"])

    def set_run(self, run_id: str, **columns: Any) -> None:
        """What a worker would have written."""
        with self.system() as session:
            run = session.get(TaskRun, run_id)
            for name, value in columns.items():
                setattr(run, name, value)

    def count(self, model: type[Base]) -> int:
        with self.system() as session:
            return int(session.query(model).count())

    def close(self) -> None:
        self.broker.close()
        self.engine.dispose()


def _account(session: Session, name: str, user_name: str) -> Account:
    tenant = Tenants(session).create(name)
    user = Tenants(session).add_user(tenant.id, user_name)
    key = ApiKeys(session).create(tenant.id, f"{name}'s")
    owner = {"tenant_id": tenant.id}
    client = EmailClient(**owner, user_id=user.id, name=f"{name} inbox", email=f"{user_name.lower()}@{name}.test", imap_host="imap.test")
    session.add(client)
    session.flush()
    folder = EmailFolder(**owner, client_id=client.id, name="INBOX", role="inbox")
    session.add(folder)
    session.flush()
    message = EmailMessage(
        **owner,
        client_id=client.id,
        folder_id=folder.id,
        uid_validity=1,
        uid=1,
        subject=f"Hello {name}",
        references=[],
        to=[],
        cc=[],
        flags=[],
        headers=[],
        defects=[],
        size=10,
        sha256="0" * 64,
        sender={"name": "Bob", "address": "bob@example.test"},
        body_text="Good day",
    )
    outbound = OutboundEmail(
        **owner, user_id=user.id, client_id=client.id, message_id="<1@x>", subject="Out", sender="ann@acme.test", source=b"x"
    )
    session.add_all([message, outbound])
    session.flush()
    session.add(OutboundRecipient(**owner, email_id=outbound.id, address="bob@example.test"))
    session.flush()
    return Account(tenant.id, user.id, key, client.id, folder.id, message.id, outbound.id)


@cache
def _furnished() -> Furnished:
    directory: TemporaryDirectory[str] = TemporaryDirectory(prefix="furnished")
    engine = make_engine(f"sqlite:///{directory.name}/test.db")
    Base.metadata.create_all(engine)
    with session_scope(system=True, engine=engine) as session:
        session.add(Tenant(id=SYSTEM_TENANT, name="system"))
        session.flush()
        acme, globex = _account(session, "acme", "Ann"), _account(session, "globex", "Gus")
        admin_key = ApiKeys(session).create(SYSTEM_TENANT, "admin", is_admin=True)
        ann_key = ApiKeys(session).create(acme.tenant_id, "ann's", user_id=acme.user_id)
    engine.dispose()
    return Furnished(directory, acme, globex, admin_key, ann_key)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world of its own for one test."""
    with _bound(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for the many tests of a module that must leave nothing behind."""
    with _bound(tmp_path_factory.mktemp("world")) as made:
        yield made


@contextmanager
def _bound(directory: Path) -> Iterator[World]:
    before = dramatiq.broker.global_broker
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])  # the default draws every traceback in a frame
    made = World(directory)
    yield made
    made.close()
    structlog.reset_defaults()
    dramatiq.broker.global_broker = before
