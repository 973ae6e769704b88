"""Three schedulers with wrong clocks, killed at random: a tick is never lost and never doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.installation import installed, tell
from tests.acceptance.tick_chaos import campaign
from tests.conftest import missing
from tests.servers.postgres import Postgres
from tests.servers.process import MissingServerError, find_program
from tests.servers.redis import Redis

pytestmark = pytest.mark.acceptance
TICKS = 100  # `python -m tests.acceptance.tick_chaos` does it with thousands


def test_no_tick_is_lost_or_doubled_by_killed_schedulers_with_wrong_clocks(
    pytestconfig: pytest.Config, tmp_path: Path, postgres: Postgres, redis_server: Redis
) -> None:
    try:
        find_program("libfaketime", "/usr/lib/*/faketime/libfaketimeMT.so.1")
    except MissingServerError as error:
        missing(pytestconfig, str(error))
    redis_url = redis_server.url.removesuffix("/0") + "/11"
    with installed(tmp_path, postgres, "tick_chaos", REDIS_URL=redis_url) as installation:
        books = campaign(installation, TICKS, seed=1)
        output = "\n".join(installation.logs().values())
    tell(str(books))
    assert (books.missing, books.double, books.without_run) == (0, 0, 0), output[-3000:]
    assert books.ticks >= TICKS
    assert books.kills > 1
