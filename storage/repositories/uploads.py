"""The stored files that rows still name: whoever cleans up asks here, and whoever is given a name."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, select, true

from storage.models import EmailAttachment
from storage.repositories.base import Repository


class Uploads(Repository):
    """The tenant's, all its users' alike: what one of them has uploaded must not be cleaned up by another."""

    def needed(self, names: Sequence[str]) -> set[str]:
        """Those of the stored names that an attachment refers to."""
        found = self.session.scalars(
            select(EmailAttachment.stored_filename).where(self._tenants(), EmailAttachment.stored_filename.in_(list(names)))
        )
        return {name for name in found if name is not None}

    def is_anothers(self, name: str) -> bool:
        """Whether the stored name is an upload that the identity may not see."""
        named = EmailAttachment.stored_filename == name
        owners = self.session.execute(select(EmailAttachment.id, self.owns(EmailAttachment)).where(self._tenants(), named)).all()
        return bool(owners) and not any(is_mine for _, is_mine in owners)

    def _tenants(self) -> ColumnElement[bool]:
        return true() if self.identity.is_system else EmailAttachment.tenant_id == self.identity.tenant_id
