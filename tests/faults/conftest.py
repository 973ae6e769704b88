"""The trials of a session: those that its tests ask for, made on two proving grounds at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import missing
from tests.faults.lanes import Job, Lanes
from tests.faults.trial import Report
from tests.servers.process import MissingServerError

GRACE_SECONDS = "8"
"""After so long a lost message is looked for; 30 in production, and in ./manage.py faults."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "trial(name, job): what the test wants a report of")


@pytest.fixture(scope="session")
def lanes(request: pytest.FixtureRequest) -> Iterator[Lanes]:
    """All trials begin with the first test that waits for one; what is not selected is not tried."""
    jobs: dict[str, Job] = {mark.args[0]: mark.args[1] for item in request.session.items for mark in item.iter_markers("trial")}
    working = Lanes(jobs, {"FAULTS_GRACE": GRACE_SECONDS})
    yield working
    working.close()


@pytest.fixture
def report(request: pytest.FixtureRequest, lanes: Lanes) -> Report:
    """What came of the test's trial."""
    mark = request.node.get_closest_marker("trial")
    try:
        return lanes.report(mark.args[0])
    except MissingServerError as error:
        missing(request.config, str(error))
