"""The proving ground that all fault tests share: made once, mended after each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import missing
from tests.faults.campaign import own_ground
from tests.faults.ground import Ground
from tests.servers.process import MissingServerError

GRACE_SECONDS = "8"
"""After so long a lost message is looked for; 30 in production, and in ./manage.py faults."""


@pytest.fixture(scope="session")
def ground(pytestconfig: pytest.Config) -> Iterator[Ground]:
    try:
        making = own_ground({"FAULTS_GRACE": GRACE_SECONDS})
        made = making.__enter__()
    except MissingServerError as error:
        missing(pytestconfig, str(error))
    try:
        yield made
    finally:
        making.__exit__(None, None, None)
