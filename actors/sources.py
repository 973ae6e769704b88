"""A stored message's bytes from its server, for whoever asks for them now: an attachment, or the source that was not kept."""

from __future__ import annotations

from actors.endpoints import endpoint_of, with_fresh_token
from actors.hosts import talking_to
from core.errors import PermanentError
from core.settings import get_settings
from mail.folder_names import RemoteFolder, decode_name
from mail.imap import ImapMailbox
from storage.engine import session_scope
from storage.repositories.email_clients import EmailClients


def fetch_source(email_client_id: str, raw_folder_name: str, uid_validity: int, uid: int) -> bytes | None:
    """The message as its server has it; None when it is not there any more under that number.

    For the bound identity and on the caller's thread, which waits for the server. Raises PermanentError and TransientError, and Snooze
    while the server has a pause.
    """
    with_fresh_token(email_client_id)
    with session_scope() as session:
        clients = EmailClients(session, get_settings().credential_keys)
        client = clients.one(email_client_id)
        if not client.imap_host:
            raise PermanentError("A POP3 server gives a message once; set RAW_RETENTION to keep the sources of this account.")
        endpoint = endpoint_of(clients.imap_login(client))
    with talking_to(endpoint), ImapMailbox(endpoint) as mailbox:
        state = mailbox.examine(RemoteFolder(decode_name(raw_folder_name), raw_folder_name))
        return mailbox.fetch_raw(uid) if state.uid_validity == uid_validity else None
