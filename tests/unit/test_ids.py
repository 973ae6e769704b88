"""Identifiers: what RFC 9562 asks of a UUIDv7, and an order that can be relied on."""

from __future__ import annotations

import itertools
import uuid

import pytest

from core.ids import is_id, new_id

MOMENT = 1_700_000_000_123_000_000


def test_an_id_is_a_uuid_of_version_7_with_its_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.ids.time.time_ns", lambda: MOMENT + 999_999)
    made = [uuid.UUID(new_id()) for _ in range(100)]
    assert {(each.version, each.variant, each.int >> 80) for each in made} == {(7, uuid.RFC_4122, MOMENT // 1_000_000)}
    assert len({each.int & (2**62 - 1) for each in made}) == 100


def test_what_is_made_later_sorts_later_also_within_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = itertools.count(MOMENT, 250)
    monkeypatch.setattr("core.ids.time.time_ns", lambda: next(moments))
    made = [new_id() for _ in range(10_000)]
    assert made == sorted(made)


def test_only_canonical_text_is_an_id() -> None:
    assert is_id(new_id())
    assert is_id(new_id().upper())
    assert not any(map(is_id, ["", "1", new_id().replace("-", ""), f"{{{new_id()}}}", f"{new_id()}0"]))
