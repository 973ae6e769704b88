"""rspamd over HTTP: /checkv2 on its normal worker, /learnspam and /learnham on its controller."""

from __future__ import annotations

import time
from typing import Any

import httpx
import orjson

from mail.accounts import Secret
from mail.spam.engines.engine import MAX_ANSWER, EngineUnavailable, Envelope, header_safe
from mail.spam.verdict import EngineScore

ALREADY_LEARNED = 208


class Rspamd:
    """One server. Connections are kept and shared by threads; made on first use."""

    name = "rspamd"

    def __init__(self, url: str, *, controller_url: str | None = None, password: Secret | None = None, timeout: float = 5.0) -> None:
        self._url = url.rstrip("/")
        self._controller_url = (controller_url or url).rstrip("/")
        self._password = password
        self._timeout = timeout
        self._client = httpx.Client(trust_env=False, follow_redirects=False, timeout=timeout)

    def scan(self, source: bytes, envelope: Envelope) -> EngineScore:
        """Raises EngineUnavailable."""
        status, answer = self._post(f"{self._url}/checkv2", source, envelope)
        score, required = answer.get("score"), answer.get("required_score")
        if status != httpx.codes.OK or not isinstance(score, int | float) or not isinstance(required, int | float):
            raise EngineUnavailable(f"rspamd answered {status} without a score.")
        return EngineScore(self.name, float(score), float(required), _symbols(answer.get("symbols")))

    def learn(self, source: bytes, envelope: Envelope, *, is_spam: bool) -> None:
        """Raises EngineUnavailable. A message that rspamd has learned already, or learns nothing from, is no error."""
        status, answer = self._post(f"{self._controller_url}/{'learnspam' if is_spam else 'learnham'}", source, envelope)
        if status not in {httpx.codes.OK, ALREADY_LEARNED, httpx.codes.NO_CONTENT} and "learned" not in str(answer.get("error", "")):
            raise EngineUnavailable(f"rspamd did not learn: it answered {status}.")

    def _post(self, url: str, source: bytes, envelope: Envelope) -> tuple[int, dict[str, Any]]:
        deadline, body = time.monotonic() + self._timeout, bytearray()
        try:
            with self._client.stream("POST", url, content=source, headers=self._headers(envelope)) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER or time.monotonic() > deadline:
                        raise EngineUnavailable("rspamd's answer is too long or too slow.")
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"rspamd did not answer: {type(error).__name__}.") from error
        try:
            answer = orjson.loads(bytes(body))
        except orjson.JSONDecodeError:
            answer = None
        return response.status_code, answer if isinstance(answer, dict) else {}

    def _headers(self, envelope: Envelope) -> list[tuple[str, str]]:
        headers = [("User", envelope.user), ("Deliver-To", envelope.user), ("From", envelope.sender)]
        headers += [("Rcpt", recipient) for recipient in envelope.recipients]
        if self._password is not None:
            headers.append(("Password", self._password.reveal()))
        return [(name, value) for name, value in headers if header_safe(value)]


def _symbols(found: Any) -> tuple[str, ...]:
    """Their names, those with the largest share in the score first."""
    if not isinstance(found, dict):
        return ()
    weights = {str(name): value.get("score") if isinstance(value, dict) else None for name, value in found.items()}
    return tuple(sorted(weights, key=lambda name: (-abs(weights[name] or 0.0), name)))
