"""The one root of Mailroom's errors, and the three kinds a run can end an attempt with.

An error is classified once, where it enters: a protocol module turns a reply into one of these, and nothing above it reads a
reply code again. The text of an error is shown to people and stored in the record, so it holds no secret, no address and no
part of a message.
"""

from __future__ import annotations

from typing import ClassVar


class MailroomError(Exception):
    """The root. `code` is the short, stable, machine-readable name of the error; `str()` is one clear sentence."""

    code: ClassVar[str] = "error"


class ConfigurationError(MailroomError):
    """A setting is missing or wrong. Stops the start; the sentence says which setting and how to mend it."""

    code = "configuration"


class PermanentError(MailroomError):
    """Trying again cannot help: the run ends in FAILURE at once."""

    code = "permanent"


class InvalidInputError(PermanentError):
    """What was asked for is not well-formed or not allowed; the sentence says what to send instead."""

    code = "invalid_input"


class NotFoundError(PermanentError):
    """No such thing in this tenant. A foreign one looks exactly the same."""

    code = "not_found"


class ConflictError(PermanentError):
    """The thing exists but is in a state that does not allow what was asked."""

    code = "conflict"


class TenantError(PermanentError):
    """Tenant data was reached for without a bound tenant, or from another one."""

    code = "tenant"


class TransientError(MailroomError):
    """Trying again later may help.

    `retry_after` (seconds) is the other side's own hint; without it the actor's backoff decides.
    """

    code = "transient"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(TransientError):
    """Something Mailroom itself stands on (the database, both brokers) cannot be reached just now."""

    code = "unavailable"


class Snooze(MailroomError):  # noqa: N818  (the field's word; it is a request, not a failure)
    """Run again after `delay` seconds without spending an attempt."""

    code = "snooze"

    def __init__(self, delay: float, message: str = "waits") -> None:
        super().__init__(message)
        self.delay = delay
