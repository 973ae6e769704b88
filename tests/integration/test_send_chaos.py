"""No mail twice, none silently lost, and no more uncertain ones than faults between the final dot and its reply."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.installation import Installation, installed, new_virtual_host, tell
from tests.integration.send_chaos import Chaos, run_chaos
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMq
from tests.servers.smtp import SmtpSink

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def installation(tmp_path: Path, rabbitmq: RabbitMq, postgres: Postgres) -> Iterator[Installation]:
    url = new_virtual_host(rabbitmq, "send_chaos")
    with installed(tmp_path, postgres, "send_chaos", RABBITMQ_URL=url) as made:
        made.start_api()
        yield made


def test_killed_workers_and_lost_replies_send_nothing_twice_and_lose_nothing(installation: Installation) -> None:
    with SmtpSink() as sink:
        verdict = run_chaos(installation, installation.new_tenant("acme"), sink, Chaos())
    tell(str(verdict))
    assert verdict.kills >= 3
    assert verdict.drops >= 3
    assert (verdict.duplicates, verdict.lost, verdict.unsent) == (0, 0, 0)
    assert verdict.uncertain <= verdict.most_uncertain
    assert verdict.arrived >= sum(verdict.statuses.values()) - verdict.uncertain
