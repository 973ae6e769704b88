"""One installation on the real servers for all acceptance tests, and others for those that must have their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pika
import pytest

from tests.acceptance.installation import Installation, Program, Tenant, installed, new_virtual_host
from tests.servers.postgres import Postgres
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis


@dataclass
class Mailroom:
    """RabbitMQ, Redis and PostgreSQL, an API, two worker processes under their supervisor, a tenant and an admin."""

    installation: Installation
    api: Program
    worker: Program
    acme: Tenant
    admin: Tenant
    rabbitmq_url: str

    def peek(self, queue: str) -> list[bytes]:
        """The bodies of all messages of a queue; they stay there."""
        with pika.BlockingConnection(pika.URLParameters(self.rabbitmq_url)) as connection:
            channel = connection.channel()
            bodies = []
            while (got := channel.basic_get(queue))[0] is not None:
                bodies.append(got[2])
            return bodies  # the connection ends without an acknowledgement: everything goes back


@pytest.fixture(scope="session")
def mailroom(tmp_path_factory: pytest.TempPathFactory, rabbitmq: RabbitMq, redis_server: Redis, postgres: Postgres) -> Iterator[Mailroom]:
    """Started once; tests add accounts of their own."""
    url = new_virtual_host(rabbitmq, "acceptance")
    redis_url = redis_server.url.removesuffix("/0") + "/7"
    directory: Path = tmp_path_factory.mktemp("mailroom")
    with installed(directory, postgres, "acceptance", RABBITMQ_URL=url, REDIS_URL=redis_url) as installation:
        api = installation.start_api()
        worker = installation.start_worker(processes=2)
        yield Mailroom(installation, api, worker, installation.new_tenant("acme"), installation.new_admin(), url)
