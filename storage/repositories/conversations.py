"""Which conversation stored messages belong to: the links of an account, asked and extended a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import case, func, select, update

from core.ids import new_id
from mail.sync import FetchedMessage
from mail.threads import join, keys_of
from storage import mail_batches
from storage.expressions import among
from storage.mail_batches import chunks
from storage.message_rows import thread_references
from storage.models import EmailFolder, EmailMessage, ThreadLink
from storage.repositories.base import Repository


class Conversations(Repository):
    """The conversations of one account. Whoever calls has looked the account up."""

    def assign(self, folder: EmailFolder, messages: Sequence[FetchedMessage]) -> list[str]:
        """The conversation of each message, in order. Conversations that these show to be one are one from now on."""
        named = [keys_of(*thread_references(message)) for message in messages]
        known = self._known(folder, sorted({key for keys in named for key in keys}))
        joined = join(named, known, new_id)
        moved = self._merge(folder, joined.merged)
        links = {key: moved.get(thread, thread) for key, thread in joined.links.items()}
        mail_batches.add_links(self.session, folder.tenant_id, folder.client_id, links)
        return [moved.get(thread, thread) for thread in joined.threads]

    def _known(self, folder: EmailFolder, keys: Sequence[str]) -> dict[str, str]:
        known: dict[str, str] = {}
        for chunk in chunks(keys, 2000):
            of_account = (self.owns(ThreadLink), ThreadLink.client_id == folder.client_id, among(ThreadLink.message_id, chunk))
            rows = self.session.execute(select(ThreadLink.message_id, ThreadLink.thread_id).where(*of_account))
            known |= {row.message_id: row.thread_id for row in rows}
        return known

    def _merge(self, folder: EmailFolder, groups: Sequence[Sequence[str]]) -> dict[str, str]:
        """Moves the messages of all but the largest of each group into that one. Returns where each went."""
        moved: dict[str, str] = {}
        sizes = self._sizes(folder, [thread for group in groups for thread in group])
        for group in groups:
            largest = max(group, key=lambda thread: sizes.get(thread, 0))
            moved |= {thread: largest for thread in group if thread != largest}
        for model in (EmailMessage, ThreadLink):
            for chunk in chunks(sorted(moved)):
                goes_to = case({thread: moved[thread] for thread in chunk}, value=model.thread_id, else_=model.thread_id)
                of_account = (self.owns(model), model.client_id == folder.client_id, among(model.thread_id, chunk))
                self.session.execute(
                    update(model).where(*of_account).values(thread_id=goes_to).execution_options(synchronize_session=False)
                )
        return moved

    def _sizes(self, folder: EmailFolder, threads: Sequence[str]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for chunk in chunks(threads):
            of_account = (self.owns(EmailMessage), EmailMessage.client_id == folder.client_id, among(EmailMessage.thread_id, chunk))
            counted = select(EmailMessage.thread_id, func.count()).where(*of_account).group_by(EmailMessage.thread_id)
            sizes |= {thread: count for thread, count in self.session.execute(counted) if thread is not None}
        return sizes
