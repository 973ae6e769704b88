"""The model's file: believed when every bit of it is as it was written, and otherwise as if it were not there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mail.spam.model import SHIPPED, Model, load_model, sigmoid


def small() -> Model:
    table = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    return Model(table, 3, (0.5, 0.25), 0.1, 1.5, -0.5, 0.9, "small")


def test_the_shipped_model_is_there_and_small() -> None:
    model = load_model()
    assert model is not None
    assert "made" in model.name
    assert 0.5 < model.threshold < 1
    assert SHIPPED.stat().st_size < 4_000_000


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(small().to_bytes())
    model = load_model(path)
    assert model is not None
    assert (model.table == small().table).all()
    assert (model.scales, model.bias, model.slope, model.offset, model.threshold, model.name) == ((0.5, 0.25), 0.1, 1.5, -0.5, 0.9, "small")
    assert load_model(path) is model


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut": data[:-1],
        "cut more": data[: len(data) // 2],
        "one bit": data[:60] + bytes([data[60] ^ 1]) + data[61:],
        "longer": data + b"\0",
        "other": b"PK\x03\x04" * 100,
    }


@pytest.mark.parametrize("damage", ["empty", "cut", "cut more", "one bit", "longer", "other"])
def test_a_damaged_file_is_no_model(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(damaged(small().to_bytes())[damage])
    assert load_model(path) is None


def test_a_file_with_a_table_of_the_wrong_size_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(Model(small().table, 4, (0.5, 0.25), 0, 1, 0, 0.9, "x").to_bytes())
    assert load_model(path) is None


def test_a_missing_file_is_no_model(tmp_path: Path) -> None:
    assert load_model(tmp_path / "model.bin") is None


def test_the_raw_score_is_the_sum_of_weights_over_the_roots() -> None:
    groups = [np.array([0, 1], np.uint32), np.array([7 | 1 << 29], np.uint32)]
    expected = 0.1 + 0.5 * (-8 - 7) / math.sqrt(2) + 0.25 * 7
    assert small().logit(groups) == pytest.approx(expected)
    assert small().logit([np.empty(0, np.uint32), groups[1]]) == pytest.approx(0.1 + 0.25 * 7)
    logit, weights = small().weigh([*groups, groups[0]])  # the third group is nobody's
    assert [logit, *weights] == pytest.approx([expected, -8 * 0.5 / math.sqrt(2), -7 * 0.5 / math.sqrt(2), 0.25 * 7])
    assert small().probability(0.0) == pytest.approx(sigmoid(-0.5))


def test_the_sigmoid_has_no_overflow() -> None:
    assert (sigmoid(-1e9), sigmoid(1e9), sigmoid(0)) == (0.0, 1.0, 0.5)
