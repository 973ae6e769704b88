"""Mail accounts: their servers, their encrypted credentials, and how their syncs went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from core.errors import ConflictError, InvalidInputError
from core.settings import KeyRing
from storage.credentials import CredentialBox
from storage.expressions import db_now, db_now_plus
from storage.first_tries import Found
from storage.models import EmailClient, TaskRun
from storage.repositories.base import Repository
from storage.states import LIVE, State

REFUSALS_UNTIL_STOPPED = 3
PROTOCOLS = ("imap", "pop3", "smtp")
OAUTH_FIELDS = ("oauth_token_url", "oauth_client_id")
SERVER_FIELDS = (*(f"{protocol}_{what}" for protocol in PROTOCOLS for what in ("host", "port", "security", "username")), *OAUTH_FIELDS)
PLAIN_FIELDS = ("name", "email", "is_sync_enabled", "sync_interval", "saves_sent", "checks_spam", "moves_junk", *SERVER_FIELDS)
SECRET_FIELDS = (*(f"{protocol}_password" for protocol in PROTOCOLS), "oauth_client_secret", "oauth_refresh_token")
SMTP = (587, "starttls")  # where mail is submitted unless the account says otherwise (RFC 6409)
TOKEN_MARGIN_SECONDS = 120
"""A token that is void sooner than this is not used any more: a login takes its time, and clocks differ."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a fresh access token is asked for with (RFC 6749 section 6), the secrets in clear."""

    token_url: str
    client_id: str
    client_secret: str | None
    refresh_token: str

    def __repr__(self) -> str:
        return "Grant(***)"


@dataclass(frozen=True, slots=True)
class Login:
    """How to reach one server of an account, the password in clear. Lives as short as possible and is never logged."""

    host: str
    port: int
    security: str
    username: str | None
    password: str | None
    token: str | None = None  # an OAuth access token, instead of the password

    def __repr__(self) -> str:
        return f"Login({self.host}:{self.port})"


class EmailClients(Repository):
    """The accounts the identity may see."""

    def __init__(self, session: Session, keys: KeyRing | None = None) -> None:
        super().__init__(session)
        self._keys = keys

    def one(self, client_id: str) -> EmailClient:
        """Raises NotFoundError for another tenant's or user's account as for an unknown one."""
        return self.get(EmailClient, client_id, "e-mail client")

    def has(self, client_id: str) -> bool:
        """Whether the identity may see an account of this id."""
        return self.session.scalar(self.scoped(EmailClient).where(EmailClient.id == client_id)) is not None

    def server_of(self, client_id: str, protocol: str) -> str | None:
        """The host name of the account's "imap" (or POP3) or "smtp" server. Asks the database only if the account is not loaded."""
        loaded = self.session.identity_map.get(identity_key(EmailClient, client_id))
        client = loaded if isinstance(loaded, EmailClient) else self.one(client_id)
        return client.imap_host or client.pop3_host if protocol == "imap" else client.smtp_host

    def all(self, limit: int = 200) -> list[EmailClient]:
        """The identity's accounts, by name."""
        return list(self.session.scalars(self.scoped(EmailClient).order_by(EmailClient.name, EmailClient.id).limit(limit)))

    def create(self, user_id: str, fields: dict[str, Any]) -> EmailClient:
        """`fields` are columns of the account; the two passwords in clear. Raises InvalidInputError when no server is given."""
        if not any(fields.get(f"{protocol}_host") for protocol in PROTOCOLS):
            raise InvalidInputError("An e-mail client needs imap_host or pop3_host to be synced, or smtp_host to send; give at least one.")
        client = EmailClient(
            tenant_id=self.identity.tenant_id, user_id=user_id, **{name: fields[name] for name in PLAIN_FIELDS if name in fields}
        )
        self.session.add(client)
        self.session.flush()
        self._set_secrets(client, fields)
        self.session.flush()
        return client

    def change(self, client_id: str, fields: dict[str, Any]) -> EmailClient:
        """Changes what is given. New credentials or servers clear the account's refusals, so that its syncs go on."""
        client = self.one(client_id)
        for name in PLAIN_FIELDS:
            if name in fields:
                setattr(client, name, fields[name])
        self._set_secrets(client, fields)
        if any(name.startswith("oauth_") for name in fields):
            client.oauth_access_token = client.oauth_expires_at = None
        if any(name in fields for name in (*SERVER_FIELDS, *SECRET_FIELDS)):
            client.refused_logins, client.last_error = 0, None
            client.is_sync_enabled = fields.get("is_sync_enabled", True)
        self.session.flush()
        return client

    def delete(self, client_id: str) -> None:
        """Removes the account and everything that was synced from it. Raises ConflictError while a run works on it."""
        client = self.one(client_id)
        if self.live_sync(client) is not None:
            raise ConflictError("A sync of this account is waiting or running; revoke it first.")
        self.session.delete(client)
        self.session.flush()

    def live_sync(self, client: EmailClient) -> str | None:
        """The id of the account's waiting or running sync."""
        statement = self.scoped(TaskRun).where(TaskRun.unique_key == sync_key(client.id), TaskRun.state.in_(sorted(LIVE)))
        run = self.session.scalar(statement.where(TaskRun.tenant_id == client.tenant_id))
        return run.id if run is not None else None

    def imap_login(self, client: EmailClient) -> Login:
        """Raises InvalidInputError when the account has no IMAP server."""
        return self._login(client, "imap", 993, "tls", client.imap_username or client.email)

    def pop3_login(self, client: EmailClient) -> Login:
        """Raises InvalidInputError when the account has no POP3 server."""
        return self._login(client, "pop3", 995, "tls", client.pop3_username or client.email)

    def smtp_login(self, client: EmailClient) -> Login:
        """Raises InvalidInputError when the account has no SMTP server. Without a user name it sends without a login, unless by a token."""
        return self._login(client, "smtp", *SMTP, client.smtp_username or (client.email if client.oauth_token_url else None))

    def _login(self, client: EmailClient, protocol: str, port: int, security: str, username: str | None) -> Login:
        host, given_port, given_security = (getattr(client, f"{protocol}_{what}") for what in ("host", "port", "security"))
        if not host:
            raise InvalidInputError(f"This e-mail client has no {protocol.upper()} server; set {protocol}_host.")
        password = self._secret(client, f"{protocol}_password")
        return Login(host, given_port or port, given_security or security, username, password, self._token(client))

    def stale_grant(self, client: EmailClient) -> Grant | None:
        """What to ask for a fresh access token with; None when the account takes none, or has one that is good for a while."""
        if not client.oauth_token_url or client.oauth_refresh_token is None:
            return None
        if client.oauth_access_token is not None and client.oauth_expires_at is not None:
            left = self.session.scalar(select(db_now_plus(float(TOKEN_MARGIN_SECONDS))))
            if left is not None and client.oauth_expires_at > left:
                return None
        secret, refresh = self._secret(client, "oauth_client_secret"), self._secret(client, "oauth_refresh_token")
        return Grant(client.oauth_token_url, client.oauth_client_id or "", secret, refresh or "")

    def token_granted(self, client_id: str, access_token: str, expires_in: float, refresh_token: str | None) -> None:
        """Keeps a fresh access token (`expires_in` in seconds), and the refresh token that came instead of the one that was used."""
        client = self.one(client_id)
        given = {"oauth_access_token": access_token} | ({"oauth_refresh_token": refresh_token} if refresh_token else {})
        for kind, clear in given.items():
            setattr(client, kind, self._box().encrypt(clear, tenant_id=client.tenant_id, account_id=client.id, kind=kind))
        self._update(client_id, oauth_expires_at=db_now_plus(expires_in))
        self.session.flush()

    def token_refused(self, client_id: str) -> None:
        """The server did not take the access token, whatever its age: the next login asks for another."""
        self._update(client_id, oauth_expires_at=None)

    def _token(self, client: EmailClient) -> str | None:
        return self._secret(client, "oauth_access_token") if client.oauth_token_url else None

    def due_for_sync(self, limit: int = 10_000) -> list[EmailClient]:
        """Accounts whose last sync is older than their interval; for the scheduler."""
        due = or_(EmailClient.last_sync_at.is_(None), EmailClient.last_sync_at <= db_now_plus(-1.0 * EmailClient.sync_interval))
        is_read = or_(EmailClient.imap_host.is_not(None), EmailClient.pop3_host.is_not(None))
        statement = self.scoped(EmailClient).where(EmailClient.is_sync_enabled, is_read, due)
        return list(self.session.scalars(statement.order_by(EmailClient.last_sync_at).limit(limit)))

    def begin_sync(self, client_id: str, run_id: str) -> bool:
        """Takes the account for a run. False while another run, still STARTED, has it: two syncs would undo each other's work."""
        holder_runs = exists().where(TaskRun.id == EmailClient.syncing_run_id, TaskRun.state == State.STARTED)
        taken = self.session.execute(
            update(EmailClient)
            .where(
                self.owns(EmailClient),
                EmailClient.id == client_id,
                or_(EmailClient.syncing_run_id.is_(None), EmailClient.syncing_run_id == run_id, ~holder_runs),
            )
            .values(syncing_run_id=run_id)
            .returning(EmailClient.id)
        )
        return taken.scalar() is not None

    def end_sync(self, client_id: str, run_id: str) -> None:
        """Gives the account back."""
        mine = update(EmailClient).where(self.owns(EmailClient), EmailClient.id == client_id, EmailClient.syncing_run_id == run_id)
        self.session.execute(mine.values(syncing_run_id=None))

    def synced(self, client_id: str, run_id: str) -> None:
        """A sync went through: the account is well, and given back."""
        given_back = func.nullif(EmailClient.syncing_run_id, run_id)
        self._update(client_id, syncing_run_id=given_back, last_sync_at=db_now(), last_error=None, refused_logins=0)

    def login_refused(self, client_id: str, error: str) -> bool:
        """Counts a refused login. Returns whether it was one too many, so that the account's syncs are now stopped."""
        client = self.one(client_id)
        client.refused_logins += 1
        stopped = client.refused_logins >= REFUSALS_UNTIL_STOPPED
        client.last_error = f"{error} Syncing is stopped until the credentials are changed." if stopped else error
        client.is_sync_enabled = client.is_sync_enabled and not stopped
        self.session.flush()
        return stopped

    def sync_failed(self, client_id: str, error: str) -> None:
        """Remembers why the last sync did not go through."""
        self._update(client_id, last_error=error)

    def _update(self, client_id: str, **values: Any) -> None:
        self.session.execute(update(EmailClient).where(self.owns(EmailClient), EmailClient.id == client_id).values(**values))

    def _set_secrets(self, client: EmailClient, fields: dict[str, Any]) -> None:
        for kind in SECRET_FIELDS:
            if kind in fields:
                clear = fields[kind]
                sealed = self._box().encrypt(clear, tenant_id=client.tenant_id, account_id=client.id, kind=kind) if clear else None
                setattr(client, kind, sealed)

    def _secret(self, client: EmailClient, kind: str) -> str | None:
        stored: bytes | None = getattr(client, kind)
        return self._box().decrypt(stored, tenant_id=client.tenant_id, account_id=client.id, kind=kind) if stored else None

    def _box(self) -> CredentialBox:
        if self._keys is None:
            raise InvalidInputError("Credentials cannot be read or written here: no key ring was given.")
        return CredentialBox(self._keys)


def first_login(found: Found, keys: KeyRing) -> Login:
    """`smtp_login` of an account that was read together with a mail."""
    sealed = found.smtp_password
    place = {"tenant_id": found.tenant_id, "account_id": found.client_id, "kind": "smtp_password"}
    password = CredentialBox(keys).decrypt(sealed, **place) if sealed else None
    return Login(found.smtp_host, found.smtp_port or SMTP[0], found.smtp_security or SMTP[1], found.smtp_username, password)


def sync_key(client_id: str) -> str:
    """The unique key of an account's syncs: at most one is live."""
    return f"sync:{client_id}"
