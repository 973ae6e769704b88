"""Every scenario at a size for a few minutes; `./manage.py faults` runs the same ones at any size."""

from __future__ import annotations

from functools import partial

import pytest

from tests.acceptance.installation import tell
from tests.faults.campaign import attempt
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.trial import Report, Size

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
SIZE = Size(runs=300, rate=150.0, scale=0.25, patience=45.0)
SEED = 1


def parameter(scenario: Scenario) -> object:
    trial = pytest.mark.trial(scenario.name, partial(attempt, scenario=scenario, size=SIZE, seed=SEED))
    return pytest.param(id=scenario.name, marks=trial)


@pytest.mark.parametrize((), [parameter(each) for each in SCENARIOS])
def test_nothing_accepted_is_lost(report: Report) -> None:
    tell(report.line())
    assert report.problems == []
