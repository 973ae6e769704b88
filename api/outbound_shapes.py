"""The JSON shapes of the outbox: what may be sent, and what became of it. Envelope keys are camelCase."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictBool, field_validator
from pydantic.alias_generators import to_camel

from api.shapes import Shape
from core.clock import now
from core.errors import InvalidInputError
from mail.addresses import parse_address, unique_recipients
from mail.mime_build import AUTOMATIC, bulk_headers
from runs.control import PRIORITIES
from storage.drafts import Draft
from storage.models import OutboundEmail, OutboundRecipient

MOST_RECIPIENTS = 1000
Id = Annotated[str, Field(max_length=36)]
Typed = Annotated[str, Field(min_length=1, max_length=1000)]


class Request(BaseModel):
    """A request's body: nothing extra."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Unsubscribe(Request):
    """How a recipient gets off the list, for bulk mail (RFC 8058). `url` takes a POST and needs no page."""

    url: Annotated[str, Field(max_length=900)] | None = None
    mailto: Typed | None = None


class NewOutbound(Request):
    """A mail to send. `scheduledAt`: not before. `expiresAt`: not later; it is cancelled then. `automatic`: no person wrote it."""

    email_client_id: Id
    to: list[Typed] = Field([], max_length=MOST_RECIPIENTS)
    cc: list[Typed] = Field([], max_length=MOST_RECIPIENTS)
    bcc: list[Typed] = Field([], max_length=MOST_RECIPIENTS)
    subject: Annotated[str, Field(max_length=2000)] = ""
    body_text: str = ""
    body_html: str | None = None
    attachment_ids: list[Id] = Field([], max_length=100)
    reply_to: Typed | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    scheduled_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    list_unsubscribe: Unsubscribe | None = None
    automatic: StrictBool = False

    @field_validator("scheduled_at", "expires_at")
    @classmethod
    def _in_our_time(cls, value: datetime | None) -> datetime | None:
        if value is not None and not 2000 <= value.year <= 2200:
            raise ValueError("the year must lie between 2000 and 2200")
        return value

    def draft(self) -> Draft:
        """As the outbox takes it. Raises InvalidInputError."""
        if self.expires_at is not None and self.expires_at <= max(now(), self.scheduled_at or now()):
            raise InvalidInputError("expiresAt lies in the past, or before scheduledAt.")
        unsubscribe = self.list_unsubscribe
        headers = bulk_headers(unsubscribe.url, unsubscribe.mailto) if unsubscribe is not None else []
        return Draft(
            unique_recipients(self.to, self.cc, self.bcc),
            self.subject,
            self.body_text,
            self.body_html,
            self.attachment_ids,
            parse_address(self.reply_to, field="replyTo") if self.reply_to is not None else None,
            [*headers, *([AUTOMATIC] if self.automatic or unsubscribe is not None else [])],
            int(PRIORITIES[self.priority]),
            self.scheduled_at,
            self.expires_at,
        )


class Resolution(Request):
    """What an operator knows, or decides, about an uncertain mail."""

    outcome: Annotated[str, Field(max_length=20)] = ""


class RecipientView(Shape):
    """One recipient and what the server said of it; `enhancedCode` is that of RFC 3463."""

    address: str
    status: str
    reply_code: int | None
    enhanced_code: str | None
    error: str | None
    attempts: int
    next_retry_at: datetime | None
    bounced_at: datetime | None


class OutboundSummary(Shape):
    """A mail on its way out, in a list. `to` are its recipients, the first twenty. `kind`: which transactional mail it is, if it is one.

    `erasedAt`: since when its secret content is not kept any more.
    """

    id: str
    kind: str | None
    to: str = Field(validation_alias="to_addresses")
    client_id: str | None
    run_id: str | None
    message_id: str
    subject: str
    sender: str = Field(serialization_alias="from")
    status: str
    priority: str
    scheduled_at: datetime | None
    attempts: int
    max_attempts: int
    next_retry_at: datetime | None
    expires_at: datetime | None
    sent_at: datetime | None
    saved_to_sent: str | None
    last_error: str | None
    erased_at: datetime | None
    created_at: datetime

    @field_validator("priority", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return next((name for name, level in PRIORITIES.items() if level == value), value)


class OutboundView(OutboundSummary):
    """A mail on its way out with its recipients."""

    recipients: list[RecipientView]

    @classmethod
    def whole(cls, row: OutboundEmail, recipients: Sequence[OutboundRecipient]) -> OutboundView:
        """As recorded."""
        summary = OutboundSummary.model_validate(row).model_dump()
        return cls(**summary, recipients=[RecipientView.model_validate(each) for each in recipients])


class OutboundPage(Shape):
    """A page of the outbox, newest first."""

    items: list[OutboundSummary]
    next_cursor: str | None
