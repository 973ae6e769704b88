"""Every scenario at a size for a few minutes; `./manage.py faults` runs the same ones at any size."""

from __future__ import annotations

import pytest

from tests.acceptance.installation import tell
from tests.conftest import missing
from tests.faults.campaign import attempt
from tests.faults.ground import Ground
from tests.faults.scenarios import KNOWN_FAILURES, SCENARIOS, Scenario
from tests.faults.trial import Size
from tests.servers.process import MissingServerError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
SIZE = Size(runs=300, rate=150.0, scale=0.25, patience=45.0)
SEED = 1


def parameter(scenario: Scenario) -> object:
    reason = KNOWN_FAILURES.get(scenario.name)
    return pytest.param(scenario, id=scenario.name, marks=[pytest.mark.xfail(reason=reason, strict=False)] if reason else [])


@pytest.mark.parametrize("scenario", [parameter(each) for each in SCENARIOS])
def test_nothing_accepted_is_lost(scenario: Scenario, ground: Ground, pytestconfig: pytest.Config) -> None:
    try:
        report = attempt(ground, scenario, SIZE, SEED)
    except MissingServerError as error:
        missing(pytestconfig, str(error))
    tell(report.line())
    assert report.problems == []
