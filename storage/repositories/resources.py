"""Whether an id names a row of the identity, for checking a run's arguments before anything is recorded."""

from __future__ import annotations

from sqlalchemy.orm import Session

from core.errors import NotFoundError
from storage.models import Base, EmailAttachment, EmailClient, EmailFolder, EmailMessage, OutboundEmail
from storage.repositories.base import Repository
from storage.repositories.email_clients import EmailClients

KINDS: dict[str, type[Base]] = {
    "email_client": EmailClient,
    "email_folder": EmailFolder,
    "email_message": EmailMessage,
    "email_attachment": EmailAttachment,
    "outbound_email": OutboundEmail,
}


class Resources(Repository):
    """Rows that arguments may name. What was required stays loaded in the session for as long as this is kept."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._found: list[Base] = []

    def require(self, argument: str, kind: str, row_id: str) -> None:
        """Raises NotFoundError naming the argument; a foreign row is as unknown as none."""
        try:
            row = self.get(KINDS[kind], row_id, kind)
            if isinstance(row, EmailFolder | EmailMessage):  # they have no user of their own: they are their account's
                EmailClients(self.session).one(row.client_id)
            self._found.append(row)
        except NotFoundError:
            raise NotFoundError(f"{argument}: there is no {kind.replace('_', ' ')} with this id.") from None
