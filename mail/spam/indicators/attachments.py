"""What is attached: by its name, by its first bytes, and by the list of contents of an archive. Nothing is unpacked to disk."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator

from mail.spam.archives.listing import MAX_ENTRIES, Listing
from mail.spam.archives.recognise import list_archive
from mail.spam.indicators.table import found
from mail.spam.verdict import Indicator
from mail.spam.view import View
from mail.spam.wordlists import listed

MAX_ATTACHMENTS = 100
MAX_INNER = 4 * 1024 * 1024
"""Bytes of an archive inside an archive that is looked into."""
MAX_DEPTH = 3
BOMB = 200
"""Times its packed size, above a hundred megabytes."""

_DANGEROUS = listed(
    """
    exe scr pif com bat cmd vbs vbe js jse wsf wsh ps1 hta cpl msi msp lnk jar reg iso img vhd vhdx dll sys chm application gadget inf
    scf url appx xll one ace cab apk dmg pkg command"""
)
_NOT_AS_MIME = frozenset({"com", "url", "one", "application", "pkg", "command", "inf", "js"})
"""Extensions that end ordinary names too: `example.com`; they count when the file's type does not say otherwise."""
_HARMLESS_LOOK = listed("pdf doc docx xls xlsx ppt pptx txt jpg jpeg png gif mp3 mp4 avi zip csv rtf htm html")
_MACRO = listed("docm dotm xlsm xltm xlam pptm potm ppam")
_ARCHIVES = listed("zip rar 7z gz tgz bz2 xz tar arj lzh ace cab z")
_PAGES = listed("htm html shtml xhtml svg mht mhtml")
_OFFICE = "[Content_Types].xml"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_SURE = frozenset({"rar", "7z"})
"""Names of archives that are looked for behind whatever stands before them."""
_NOT_TO_BE_LOOKED_INTO = frozenset({"jar", "apk"})
_MAGICS = {"pdf": (b"%PDF",), "jpg": (b"\xff\xd8",), "jpeg": (b"\xff\xd8",), "png": (b"\x89PNG",), "gif": (b"GIF8",), "zip": (b"PK",)}
_SPACED = re.compile(r"\s{5,}\.?\w{2,4}$")


def attachments(view: View) -> Iterator[Indicator]:
    """Each code at most once, with the first file that shows it."""
    seen: set[str] = set()
    for code, evidence in _findings(view):
        if code not in seen:
            seen.add(code)
            yield found(code, evidence)


def _findings(view: View) -> Iterator[tuple[str, str]]:
    for leaf in view.attachments[:MAX_ATTACHMENTS]:
        yield from _named(leaf.filename, leaf.content_type, leaf.content)
        for code, evidence in _inside(leaf.content, leaf.filename, 1):
            if code != "unlisted_archive" or "truncated" not in view.notes:  # what was cut may have been cut by us
                yield code, evidence
    for name in view.late_names[:MAX_ATTACHMENTS]:
        yield from _named(name, "", b"")


def extension(name: str) -> str:
    """In lower case, without trailing blanks and dots, which Windows drops."""
    return name.rstrip(". ").rpartition(".")[2].lower() if "." in name else ""


def is_dangerous(name: str) -> bool:
    """Whether a file of this name runs, or mounts what runs, when it is opened."""
    return extension(name) in _DANGEROUS


def _named(name: str, content_type: str, content: bytes) -> Iterator[tuple[str, str]]:
    last = extension(name)
    is_program = content[:2] == b"MZ" or content[:4] == b"\x7fELF"
    if is_program or (last in _DANGEROUS and not (last in _NOT_AS_MIME and content_type.startswith(("text/", "message/", "image/")))):
        before = extension(name.rstrip(". ")[: -len(last) - 1]) if last else ""
        yield ("double_extension" if before in _HARMLESS_LOOK or _SPACED.search(name) else "dangerous_attachment"), name
    elif last in _PAGES or content_type in {"text/html", "image/svg+xml", "application/xhtml+xml"}:
        yield "html_attachment", name
    elif last in _MACRO or (content[:8] == _OLE and b"_\x00V\x00B\x00A\x00" in content[: 512 * 1024]):
        yield "macro_document", name
    expected = _MAGICS.get(last)
    if expected and len(content) > 8 and not content.lstrip().startswith(expected):
        yield "attachment_type_mismatch", name


def _inside(content: bytes, name: str, depth: int) -> Iterator[tuple[str, str]]:
    if content[:4] == b"PK\x03\x04":
        yield from _zip(content, name, depth)
        return
    listing = list_archive(content, is_named_so=depth == 1 and extension(name) in _SURE)
    if listing is not None:
        yield from _listed(listing, name, len(content))
        if listing.is_cut and not listing.is_encrypted:
            yield "unlisted_archive", name


def _zip(content: bytes, name: str, depth: int) -> Iterator[tuple[str, str]]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        entries = archive.infolist()[:MAX_ENTRIES]
    except Exception:  # a damaged archive is no archive
        return
    names = [each.filename for each in entries]
    listing = Listing(names, sum(each.file_size for each in entries), is_encrypted=any(each.flag_bits & 1 for each in entries))
    yield from _listed(listing, name, len(content))
    if _OFFICE in names:
        return
    for entry in [each for each in entries if extension(each.filename) in _ARCHIVES][:3]:
        if depth < MAX_DEPTH:
            yield from _inside(_member(archive, entry), name, depth + 1)


def _listed(listing: Listing, name: str, size: int) -> Iterator[tuple[str, str]]:
    """Of an archive of whatever kind, of that many bytes."""
    if listing.unpacked > 100_000_000 and listing.unpacked > BOMB * size:
        yield "archive_bomb", name
    if listing.is_encrypted:
        yield "encrypted_archive", name
    if _OFFICE in listing.names:  # an Office document, not an archive
        if any(each.endswith("vbaProject.bin") for each in listing.names):
            yield "macro_document", name
        return
    dangerous = next(filter(is_dangerous, listing.names), None)
    if dangerous is not None and extension(name) not in _NOT_TO_BE_LOOKED_INTO:
        yield "dangerous_in_archive", f"{name}: {dangerous}"
    inner = next((each for each in listing.names if extension(each) in _ARCHIVES), None)
    if inner is not None:
        yield "nested_archive", f"{name}: {inner}"


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """At most MAX_INNER bytes, whatever the entry says of itself; nothing of one that says more."""
    if entry.file_size > MAX_INNER or entry.flag_bits & 1:
        return b""
    try:
        with archive.open(entry) as file:
            return file.read(MAX_INNER)
    except Exception:  # zipfile, zlib, bz2 and lzma each have errors of their own at a stranger's bytes
        return b""
