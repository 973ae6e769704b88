"""From an account's stored login to the endpoint that the mail domain connects to, under the operator's rules."""

from __future__ import annotations

import threading

from core.errors import PermanentError
from core.settings import get_settings
from mail import oauth
from mail.accounts import Endpoint, Secret, Security
from mail.mime import ParseLimits
from storage.engine import session_scope
from storage.repositories.email_clients import EmailClients, Grant, Login

NO_SERVER = "There is no mail server for this: set SYSTEM_SMTP_URL, or an account of the tenant (clientId in PUT /api/mail/settings)."


class NoMailServerError(PermanentError):
    """Nobody has said over which server mails of the system go out."""

    code = "no_mail_server"


_refreshing: dict[str, threading.Lock] = {}
"""One thread asks for an account's token; the others find it."""


def endpoint_of(login: Login) -> Endpoint:
    """Certificates and private addresses as the settings allow; time-outs stay below every soft limit."""
    settings = get_settings()
    return Endpoint(
        host=login.host,
        port=login.port,
        security=Security(login.security),
        username=login.username,
        secret=Secret(login.password) if login.password is not None else None,
        verify_tls=settings.ssl_verify,
        allow_private=settings.allow_private_mail_hosts,
        token=Secret(login.token) if login.token is not None else None,
        compress=settings.imap_compress,
    )


def system_endpoint() -> Endpoint:
    """The system's own server. The operator has named it, so it may be a private one. Raises NoMailServerError."""
    settings = get_settings()
    server = settings.system_smtp
    if server is None:
        raise NoMailServerError(NO_SERVER)
    return Endpoint(
        host=server.host,
        port=server.port,
        security=Security(server.security),
        username=server.username,
        secret=Secret(server.password) if server.password is not None else None,
        verify_tls=settings.ssl_verify,
        allow_private=True,
    )


def parse_limits() -> ParseLimits:
    """What of a message is read at most, as the settings say."""
    settings = get_settings()
    return ParseLimits(
        message=settings.mail_max_message_mb * 2**20,
        header=settings.mail_max_header_kb * 1024,
        line=settings.mail_max_line_kb * 1024,
        parts=settings.mail_max_parts,
        depth=settings.mail_max_nesting,
    )


def with_fresh_token(email_client_id: str) -> None:
    """Sees to it that an account that logs in by OAuth has an access token; call it before its login is read.

    Nothing for any other account. Raises what `mail.oauth.refresh` raises, and NotFoundError.
    """
    if _stale_grant(email_client_id) is None:
        return
    with _refreshing.setdefault(email_client_id, threading.Lock()):
        grant = _stale_grant(email_client_id)  # another thread may have been quicker
        if grant is None:
            return
        secret = Secret(grant.client_secret) if grant.client_secret else None
        token = oauth.refresh(
            grant.token_url,
            grant.client_id,
            secret,
            Secret(grant.refresh_token),
            allow_private=get_settings().allow_private_mail_hosts,
        )
        with session_scope() as session:
            following = token.refresh_token.reveal() if token.refresh_token is not None else None
            clients = EmailClients(session, get_settings().credential_keys)
            clients.token_granted(email_client_id, token.access_token.reveal(), token.expires_in, following)


def _stale_grant(email_client_id: str) -> Grant | None:
    with session_scope() as session:
        clients = EmailClients(session)
        client = clients.one(email_client_id)
        if not client.oauth_token_url:
            return None
        return EmailClients(session, get_settings().credential_keys).stale_grant(client)
