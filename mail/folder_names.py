"""Folder names as people see them: modified UTF-7 (RFC 3501 5.1.3) and the role a folder plays (RFC 6154)."""

from __future__ import annotations

import binascii
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

ROLES = ("inbox", "sent", "drafts", "junk", "trash", "archive", "all")

_BY_ATTRIBUTE = {r"\sent": "sent", r"\drafts": "drafts", r"\junk": "junk", r"\trash": "trash", r"\archive": "archive", r"\all": "all"}
_BY_NAME = {
    "sent": "sent",
    "sent items": "sent",
    "sent messages": "sent",
    "sent mail": "sent",
    "gesendet": "sent",
    "drafts": "drafts",
    "draft": "drafts",
    "entwürfe": "drafts",
    "junk": "junk",
    "spam": "junk",
    "junk e-mail": "junk",
    "junk email": "junk",
    "bulk mail": "junk",
    "trash": "trash",
    "deleted items": "trash",
    "deleted messages": "trash",
    "papierkorb": "trash",
    "archive": "archive",
    "archives": "archive",
    "archiv": "archive",
}


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder on the server. `name` is decoded, for people and the store; `raw_name` is what the server calls it.

    `role` is one of ROLES or None. A folder that is not `selectable` only holds others. `remote_id` outlives a renaming (MAILBOXID,
    RFC 8474).
    """

    name: str
    raw_name: str
    delimiter: str | None = None
    role: str | None = None
    selectable: bool = True
    remote_id: str | None = None


def decode_name(raw: str) -> str:
    """The readable form of a modified UTF-7 name. What is not well-formed is given back unchanged: it is still the folder's name."""
    if "&" not in raw:
        return raw
    pieces = raw.split("&")
    decoded = [pieces[0]]
    for piece in pieces[1:]:
        encoded, dash, rest = piece.partition("-")
        if not dash:
            return raw
        try:
            decoded.append((_from_base64(encoded) if encoded else "&") + rest)
        except (ValueError, binascii.Error):
            return raw
    return "".join(decoded)


def encode_name(name: str) -> str:
    """The modified UTF-7 form of a readable name."""
    encoded: list[str] = []
    pending: list[str] = []
    for character in name:
        if " " <= character <= "~":
            encoded += [_to_base64(pending), "&-" if character == "&" else character]
            pending = []
        else:
            pending.append(character)
    return "".join([*encoded, _to_base64(pending)])


def _from_base64(encoded: str) -> str:
    padded = encoded.replace(",", "/") + "=" * (-len(encoded) % 4)
    return binascii.a2b_base64(padded.encode("ascii"), strict_mode=True).decode("utf-16-be")


def _to_base64(characters: list[str]) -> str:
    if not characters:
        return ""
    encoded = binascii.b2a_base64("".join(characters).encode("utf-16-be"), newline=False)
    return "&" + encoded.decode("ascii").rstrip("=").replace("/", ",") + "-"


def folder_from_list(raw_name: bytes, delimiter: str | None, attributes: Collection[str]) -> RemoteFolder:
    """One LIST answer as a folder. INBOX is one name in any case (RFC 9051 5.1)."""
    flags = {attribute.lower() for attribute in attributes}
    selectable = not flags & {r"\noselect", r"\nonexistent"}
    try:
        raw = raw_name.decode("utf-8")
    except UnicodeDecodeError:  # it could be shown but not asked for again
        return RemoteFolder(raw_name.decode("latin-1"), raw_name.decode("latin-1"), delimiter, None, selectable=False)
    if raw.upper() == "INBOX":
        return RemoteFolder("INBOX", raw, delimiter, "inbox", selectable)
    role = next((_BY_ATTRIBUTE[flag] for flag in sorted(flags) if flag in _BY_ATTRIBUTE), None)
    name = decode_name(raw)
    return RemoteFolder(name.replace("\0", ""), raw, delimiter, role, selectable)


def with_roles_by_name(folders: Iterable[RemoteFolder]) -> list[RemoteFolder]:
    """For servers without SPECIAL-USE: a role nobody claimed goes to the first folder with a usual name, at the top or under INBOX."""
    result = list(folders)
    taken = {folder.role for folder in result}
    for index, folder in enumerate(result):
        role = _BY_NAME.get(_own_name(folder).casefold()) if folder.role is None and folder.selectable else None
        if role is not None and role not in taken:
            result[index] = replace(folder, role=role)
            taken.add(role)
    return result


def _own_name(folder: RemoteFolder) -> str:
    """The name without a leading INBOX; deeper ones keep their path and so have no usual name."""
    if folder.delimiter and folder.name.upper().startswith("INBOX" + folder.delimiter):
        return folder.name[len("INBOX" + folder.delimiter) :]
    return folder.name
