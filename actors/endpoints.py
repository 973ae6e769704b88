"""From an account's stored login to the endpoint that the mail domain connects to, under the operator's rules."""

from __future__ import annotations

from core.settings import get_settings
from mail.accounts import Endpoint, Secret, Security
from storage.repositories.email_clients import Login


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
    )
