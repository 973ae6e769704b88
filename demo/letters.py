"""A letter of the demo as data: who wrote what, in which character set, with which attachments, in answer to what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Letter:
    """One message. `key` becomes the left side of its Message-ID; `answers` is the key of the message it replies to."""

    key: str
    sender: str
    address: str
    subject: str
    text: str
    charset: str = "utf-8"
    html: bool = False
    attachments: tuple[str, ...] = ()
    answers: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    seen: bool = False
    broken: bool = False
    """The headers promise a character set that does not exist, and one line of them is no header at all."""


def newsletter(list_id: str, unsubscribe: str) -> tuple[tuple[str, str], ...]:
    return (
        ("List-Id", f"<{list_id}>"),
        ("List-Unsubscribe", f"<{unsubscribe}>, <mailto:leave@{list_id}>"),
        ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ("Precedence", "bulk"),
    )
