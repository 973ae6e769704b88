"""One POST to an address that a tenant has named: never to a private one, never led elsewhere, never for long, never read for long.

The host is resolved and judged here and the connection is made to the judged address, so that a second answer of the name server
leads nowhere (DNS rebinding); the certificate is checked for the host's name.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit

import httpx

from core.clock import now
from core.errors import InvalidInputError, MailroomError
from core.hosts import is_allowed, resolve_checked
from runs.limits import SoftTimeLimitExceeded, watch

CONNECT_SECONDS = 5.0
WAIT_SECONDS = 10.0
TOTAL_SECONDS = 20.0
LONGEST_URL = 2048
MOST_ADDRESSES = 3
READ_BYTES = 1024
KEPT_CHARACTERS = 200
AGENT = "Mailroom-Webhooks/1"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it. `code` is None where nobody answered; then `error` says why. `text` is how the answer began."""

    code: int | None
    error: str | None
    text: str = ""
    retry_after: float | None = None
    duration_ms: int = 0

    @property
    def is_good(self) -> bool:
        """The receiver has it."""
        return self.code is not None and httpx.codes.is_success(self.code)


def check_url(url: str, *, allow_private: bool) -> str:
    """The URL, if it may be one. Names are judged when they are resolved. Raises InvalidInputError."""
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if not is_address or len(url) > LONGEST_URL or not url.isprintable() or not url.isascii() or " " in url:
        raise InvalidInputError(f"url is no web address of at most {LONGEST_URL} ASCII characters.")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise InvalidInputError("url has a user, a password or a fragment; leave them out, a webhook is signed.")
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_private):
        raise InvalidInputError("url must begin with https://.")
    if not _may_be_public(parts.hostname or "", allow_private=allow_private):
        raise InvalidInputError("url leads to a private address.")
    return url


def post(url: str, body: bytes, headers: dict[str, str], *, allow_private: bool, verify: bool = True) -> Answer:
    """Never raises for what the other side does."""
    began = time.monotonic()
    try:
        with watch.soft_limit(TOTAL_SECONDS):
            answer = _post(url, body, headers, allow_private=allow_private, verify=verify)
    except SoftTimeLimitExceeded:
        answer = Answer(None, f"The answer took longer than {TOTAL_SECONDS:.0f} s.")
    except MailroomError as error:
        answer = Answer(None, str(error))  # our own sentences name no address
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        answer = Answer(None, _sentence(error))
    return Answer(answer.code, answer.error, answer.text, answer.retry_after, round((time.monotonic() - began) * 1000))


def _post(url: str, body: bytes, headers: dict[str, str], *, allow_private: bool, verify: bool) -> Answer:
    parts = urlsplit(check_url(url, allow_private=allow_private))
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    addresses = resolve_checked(host, port, allow_private=allow_private)[:MOST_ADDRESSES]
    timeout = httpx.Timeout(WAIT_SECONDS, connect=CONNECT_SECONDS)
    with httpx.Client(timeout=timeout, verify=verify, trust_env=False, follow_redirects=False) as client:
        for address in addresses[:-1]:
            try:
                return _ask(client, parts, address.ip, body, headers)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return _ask(client, parts, addresses[-1].ip, body, headers)


def _ask(client: httpx.Client, parts: SplitResult, ip: str, body: bytes, headers: dict[str, str]) -> Answer:
    where = f"[{ip}]" if ":" in ip else ip
    there = parts._replace(netloc=where + (f":{parts.port}" if parts.port else "")).geturl()
    own = {"Host": parts.netloc, "Content-Type": "application/json", "User-Agent": AGENT, "Accept-Encoding": "identity"}
    named = {"sni_hostname": parts.hostname} if parts.scheme == "https" else {}
    with client.stream("POST", there, content=body, headers={**own, **headers}, extensions=named) as response:
        text = _beginning(response)
        error = None if response.is_success else _refusal(response.status_code)
        return Answer(response.status_code, error, text, _retry_after(response.headers.get("retry-after")))


def _beginning(response: httpx.Response) -> str:
    """Some bytes of the answer as text. The rest is not read: the connection is closed over it."""
    read = b""
    try:
        for chunk in response.iter_raw(READ_BYTES):
            read += chunk
            if len(read) >= READ_BYTES:
                break
    except httpx.HTTPError:
        pass  # the status has come, and it is what counts
    text = read.decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)[:KEPT_CHARACTERS].strip()


def _refusal(code: int) -> str:
    if httpx.codes.is_redirect(code):
        return f"The address answered {code}; redirects are not followed."
    return f"The address answered {code}."


def _retry_after(text: str | None) -> float | None:
    """Seconds (RFC 9110, 10.2.3), of either form; None for nonsense."""
    if not text:
        return None
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now()).total_seconds())
    except (ValueError, TypeError):
        return None


def _may_be_public(host: str, *, allow_private: bool) -> bool:
    """What can be said of a host without asking anybody."""
    if host == "localhost" or host.endswith(".localhost"):
        return allow_private
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return is_allowed(host, allow_private=allow_private)


def _sentence(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "The address did not answer in time."
    if isinstance(error, httpx.ConnectError):
        is_tls = "certificate" in str(error).lower() or "ssl" in str(error).lower()
        return "The connection's certificate or encryption is not good." if is_tls else "The connection was refused or is not possible."
    return f"The address did not answer as a web server does ({type(error).__name__})."
