"""Which conversation a message belongs to, by References and In-Reply-To (RFC 5256, "REFERENCES"; JWZ's algorithm without its tree).

Two messages are of one conversation when one refers to the other, or both refer to a third, whether that one ever arrived or not. So a
conversation is a set of Message-IDs, and a message that names ids of two sets shows that they were one all along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

MAX_REFERENCES = 100
"""Ids of one message that are considered: a mail from a stranger must not tie a mailbox together."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a batch of messages makes of the conversations.

    `threads`: of each message, in order. `links`: ids that were unknown, and where they belong now. `merged`: conversations that turned
    out to be one, each a group of two or more in the order they were met; one of them has to stand for all.
    """

    threads: list[str]
    links: dict[str, str]
    merged: list[list[str]]


def keys_of(message_id: str, references: Iterable[str]) -> list[str]:
    """The ids a message names, itself first, each once, as SHA-256: an id may be of any length. Empty for one that names none."""
    named = list(dict.fromkeys(each for each in (message_id, *references) if each))
    kept = named if len(named) <= MAX_REFERENCES else [*named[:2], *named[2 - MAX_REFERENCES :]]
    return [hashlib.sha256(each.encode("utf-8", "replace")).hexdigest() for each in kept]


def join(messages: Sequence[Sequence[str]], known: Mapping[str, str], new_thread: Callable[[], str]) -> Joined:
    """`messages`: the keys of each. `known`: key to conversation, for all keys that have one."""
    parents: dict[str, str] = {}
    links: dict[str, str] = {}
    mine: list[str] = []
    for keys in messages:
        found = list(dict.fromkeys(thread for key in keys if (thread := known.get(key) or links.get(key)) is not None))
        thread = _root(parents, found[0]) if found else new_thread()
        for other in found[1:]:
            if (root := _root(parents, other)) != thread:
                parents[root] = thread
        links |= {key: thread for key in keys if key not in known and key not in links}
        mine.append(thread)
    return _settled(mine, links, parents, set(known.values()))


def _settled(mine: list[str], links: dict[str, str], parents: dict[str, str], stored: set[str]) -> Joined:
    """Conversations that began in this batch dissolve into those they met; stored ones that met are told as merged."""
    groups: dict[str, list[str]] = {}
    for thread in dict.fromkeys([*parents, *parents.values()]):
        groups.setdefault(_root(parents, thread), []).append(thread)
    stands_for = {thread: next((each for each in group if each in stored), root) for root, group in groups.items() for thread in group}
    merged = [both for group in groups.values() if len(both := [each for each in group if each in stored]) > 1]
    threads = [stands_for.get(thread, thread) for thread in mine]
    return Joined(threads, {key: stands_for.get(thread, thread) for key, thread in links.items()}, merged)


def _root(parents: Mapping[str, str], thread: str) -> str:
    while (parent := parents.get(thread)) is not None:
        thread = parent
    return thread
