"""Mails whose content lets somebody in: what of them is erased, and when."""

from __future__ import annotations

from sqlalchemy import and_, or_, update

from storage import sending
from storage.expressions import db_now
from storage.models import OutboundEmail
from storage.repositories.base import Repository
from storage.states import OutboundStatus

OVER = (OutboundStatus.SENT, OutboundStatus.CANCELLED)
MAY_GO_ON = (OutboundStatus.FAILED, OutboundStatus.UNCERTAIN)
"""Somebody may send these once more, until they expire."""


class SealedMails(Repository):
    """Those of the identity."""

    def erase_settled(self, email_id: str | None = None) -> int:
        """Erases the source of the mail (of all: None) if nobody can need it: sent, cancelled, or expired. Returns how many."""
        settled = or_(OutboundEmail.status.in_(OVER), and_(OutboundEmail.status.in_(MAY_GO_ON), sending.is_expired()))
        erased = update(OutboundEmail).where(self.owns(OutboundEmail), OutboundEmail.is_sealed, settled)
        if email_id is not None:
            erased = erased.where(OutboundEmail.id == email_id)
        values = {"source": b"", "is_sealed": False, "erased_at": db_now()}
        done = self.session.scalars(erased.values(**values).returning(OutboundEmail.id), execution_options={"synchronize_session": False})
        return len(done.all())
