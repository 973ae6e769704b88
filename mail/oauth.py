"""A fresh access token for a mailbox, from the refresh token its owner once gave (RFC 6749 section 6)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import NoReturn

import httpx

from core.errors import InvalidInputError, MailroomError
from core.hosts import resolve_checked
from mail.accounts import Secret
from mail.errors import (
    AuthenticationRefused,
    CertificateRefused,
    ConnectionFailed,
    MailboxProtocolError,
    ServerThrottled,
    ServerUnavailable,
)

MAX_RESPONSE = 64 * 1024
_EXPIRES_IN = 3600.0
"""Seconds, for servers that do not say it (RFC 6749 5.1 only recommends it)."""
_REFUSED = {"invalid_grant", "invalid_client", "unauthorized_client", "access_denied", "invalid_scope", "consent_required"}
_LATER = {"temporarily_unavailable", "server_error", "slow_down"}


@dataclass(frozen=True, slots=True)
class Token:
    """`expires_in` is in seconds from now. A `refresh_token` replaces the one that was used, which may be void already."""

    access_token: Secret
    expires_in: float
    refresh_token: Secret | None


def refresh(
    token_url: str, client_id: str, client_secret: Secret | None, refresh_token: Secret, *, allow_private: bool, timeout: float = 20
) -> Token:
    """Asks the token endpoint, over https to a public address unless `allow_private`. `timeout` is in seconds, for all of it.

    Raises AuthenticationRefused when the grant is void (its owner has to log in again), ServerThrottled, ServerUnavailable or
    ConnectionFailed when it may work later, MailboxProtocolError when the answer is none, InvalidInputError for an unusable URL.
    """
    url = _checked_url(token_url, allow_private=allow_private)
    form = {"grant_type": "refresh_token", "client_id": client_id, "refresh_token": refresh_token.reveal()}
    if client_secret is not None:
        form["client_secret"] = client_secret.reveal()
    where = f"{url.host}:{_port(url)}"
    status, headers, body = _post(url, form, where, allow_private=allow_private, timeout=timeout)
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    fields = answer if isinstance(answer, dict) else {}
    if status != httpx.codes.OK:
        _refused(status, str(fields.get("error", "")), headers, where)
    return _token(fields, where)


def _checked_url(token_url: str, *, allow_private: bool) -> httpx.URL:
    try:
        url = httpx.URL(token_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidInputError("The token URL is not valid.") from error
    if url.scheme != "https" and not (allow_private and url.scheme == "http"):
        raise InvalidInputError("The token URL must begin with https://.")
    if not url.host or url.userinfo:
        raise InvalidInputError("The token URL needs a host, and no user name.")
    return url


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _post(url: httpx.URL, form: dict[str, str], where: str, *, allow_private: bool, timeout: float) -> tuple[int, httpx.Headers, bytes]:
    """To the address that was judged, under the host's own name: a second look-up could lead elsewhere. No proxy, no redirect."""
    host = url.raw_host.decode("ascii")
    address = resolve_checked(host, _port(url), allow_private=allow_private)[0]
    request_headers = {"Host": url.netloc.decode("ascii"), "Accept": "application/json", "Accept-Encoding": "identity"}
    deadline = time.monotonic() + timeout
    try:
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=timeout) as client,
            client.stream(
                "POST", url.copy_with(host=address.ip), data=form, headers=request_headers, extensions={"sni_hostname": host}
            ) as response,
        ):
            body = b""
            for piece in response.iter_raw():
                body += piece
                if len(body) > MAX_RESPONSE:
                    raise MailboxProtocolError(f"{where} sent more than {MAX_RESPONSE} bytes instead of a token.")
                if time.monotonic() > deadline:
                    raise ConnectionFailed(f"{where} did not answer within {timeout:g} s.")
            return response.status_code, response.headers, body
    except httpx.TimeoutException as error:
        raise ConnectionFailed(f"{where} did not answer within {timeout:g} s.") from error
    except httpx.HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # httpx keeps the kind in the text alone
            raise CertificateRefused(f"The certificate of {where} is not valid.") from error
        raise ConnectionFailed(f"{where} cannot be reached, or the connection was lost.") from error


def _refused(status: int, code: str, headers: httpx.Headers, where: str) -> NoReturn:
    raise _error(status, code, headers, where)


def _error(status: int, code: str, headers: httpx.Headers, where: str) -> MailroomError:
    hint = headers.get("retry-after", "")
    seconds = min(86_400.0, float(hint)) if hint.isascii() and hint.isdigit() and len(hint) < 10 else None
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return ServerThrottled(f"{where} asks for a pause before another token.", retry_after=seconds)
    if httpx.codes.is_server_error(status) or code in _LATER:
        return ServerUnavailable(f"{where} cannot give a token just now ({status}).", retry_after=seconds)
    if code in _REFUSED:
        return AuthenticationRefused(f"{where} gives no token for this account any more; its owner has to log in again.")
    return MailboxProtocolError(f"{where} gave no token ({status}).")


def _token(fields: dict[str, object], where: str) -> Token:
    access, expires, following = fields.get("access_token"), fields.get("expires_in"), fields.get("refresh_token")
    if not isinstance(access, str) or not access or not access.isascii() or not access.isprintable():
        raise MailboxProtocolError(f"{where} gave no token.")
    try:
        seconds = float(expires) if isinstance(expires, int | float | str) else _EXPIRES_IN
    except ValueError:
        seconds = _EXPIRES_IN
    seconds = seconds if 0 < seconds < 366 * 86_400 else _EXPIRES_IN
    return Token(Secret(access), seconds, Secret(following) if isinstance(following, str) and following else None)
