"""Messages as they came, compressed, for as long as somebody wants them kept."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import delete, select, tuple_

from mail.sync import FetchedMessage
from storage import mail_batches
from storage.mail_batches import chunks
from storage.models import EmailSource
from storage.repositories.base import Repository

LEVEL = 1
"""Mail is mostly base64 and quoted text: more effort saves a few per cent and costs three times as long."""


class EmailSources(Repository):
    """The sources of the tenant's messages. Whoever calls has looked the message up, and so passed its user's wall too."""

    def keep(self, tenant_id: str, messages: Mapping[str, FetchedMessage]) -> None:
        """By the ids of their rows. Of a message that was too large only the header was read: that is no source."""
        whole = {row_id: message.raw for row_id, message in messages.items() if "oversized" not in message.parsed.defects}
        rows = [{"tenant_id": tenant_id, "email_id": row_id, "source": zlib.compress(raw, LEVEL)} for row_id, raw in whole.items()]
        mail_batches.add_rows(self.session, EmailSource, rows)

    def one(self, email_id: str) -> bytes | None:
        """None when it was not kept."""
        kept = self.session.scalar(select(EmailSource.source).where(self.owns(EmailSource), EmailSource.email_id == email_id))
        return zlib.decompress(kept) if kept is not None else None

    def forget(self, before: datetime, limit: int) -> int:
        """Deletes the oldest that are older than that. Returns how many."""
        old = select(EmailSource.tenant_id, EmailSource.email_id).where(self.owns(EmailSource), EmailSource.created_at < before)
        keys = [tuple(row) for row in self.session.execute(old.order_by(EmailSource.created_at).limit(limit))]
        for chunk in chunks(keys):
            named = tuple_(EmailSource.tenant_id, EmailSource.email_id).in_(chunk)
            self.session.execute(delete(EmailSource).where(self.owns(EmailSource), named).execution_options(synchronize_session=False))
        return len(keys)
