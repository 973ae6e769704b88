"""`./manage.py faults`: what it tries, what it prints and when it fails. No server is started."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

import pytest

from cli import main as command_line
from tests.faults import campaign, scenarios
from tests.faults.scenarios import Scenario
from tests.faults.trial import Report, Size
from tests.servers.process import MissingServerError

Tried = list[tuple[list[str], Size, int, int]]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Tried:
    """What would have been tried. `queues-purged` fails, everything else is well."""
    calls: Tried = []

    def pretend(chosen: Sequence[Scenario], size: Size, seed: int, rounds: int, tell: Callable[[Report], None]) -> list[Report]:
        calls.append(([each.name for each in chosen], size, seed, rounds))
        reports = [Report(each.name, seed, accepted=10) for each in chosen]
        for report in reports:
            report.problems += ["1 accepted and not in the record: x"] if report.scenario == "queues-purged" else []
            tell(report)
        return reports

    monkeypatch.setattr(campaign, "campaign", pretend)
    return calls


def invoke(*words: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["manage.py", "faults", *words])
    try:
        return command_line.main()
    except SystemExit as end:
        return end.code


def test_one_scenario_at_a_size(tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--tasks", "5000", "--seed", "7", "--scenario", "pair", monkeypatch=monkeypatch) == 0
    assert tried == [(["pair"], Size(runs=5000, rate=200.0, scale=1.0, patience=90.0), 7, 1)]
    said = capsys.readouterr()
    assert said.out.startswith("ok     pair")
    assert "10 runs accepted in 1 trials, 0 scenarios failed" in said.err


def test_everything_unless_told_and_a_failure_is_exit_code_one(
    tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("--json", monkeypatch=monkeypatch) == 1
    assert tried[0][0] == [each.name for each in scenarios.SCENARIOS]
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["scenario"] for line in lines if not line["ok"]] == ["queues-purged"]
    assert "the books do not balance after: queues-purged" in said.err


def test_a_name_that_is_none_is_refused(tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("-s", "earthquake", monkeypatch=monkeypatch) == command_line.NOT_FOUND
    assert "There is no scenario named earthquake" in capsys.readouterr().err
    assert tried == []


def test_the_list_names_all(tried: Tried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--list", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert all(each.name in said and each.does in said for each in scenarios.SCENARIOS)
    assert tried == []


def test_a_missing_server_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: object) -> list[Report]:
        raise MissingServerError("redis-server is not installed: apt-get install redis-server")

    monkeypatch.setattr(campaign, "campaign", missing)
    assert invoke(monkeypatch=monkeypatch) == 1
    assert "./manage.py test --install installs what is missing" in capsys.readouterr().err


def test_the_table_is_in_order() -> None:
    names = [each.name for each in scenarios.SCENARIOS]
    assert len(set(names)) == len(names)
