"""Trials in a row on one proving ground: what `./manage.py faults` does, and what the tests do at a smaller size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

from tests.faults.ground import Ground, proving_ground
from tests.faults.scenarios import Scenario
from tests.faults.trial import Report, Size, Trial
from tests.servers.postgres import Postgres
from tests.servers.process import server_directory
from tests.servers.rabbitmq import RabbitMq
from tests.servers.redis import Redis


def attempt(ground: Ground, scenario: Scenario, size: Size, seed: int) -> Report:
    """One scenario, and everything mended after it."""
    trial = Trial(ground, size, scenario.name, seed)
    trial.allowed = scenario.allowed
    try:
        return trial.run(scenario.fault)
    finally:
        ground.heal()


@contextmanager
def own_ground(settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Ground]:
    """A proving ground on servers of its own, all gone at the end. Raises MissingServerError."""
    with ExitStack() as stack:
        directory = stack.enter_context(server_directory("faults"))
        servers = RabbitMq(directory / "rabbitmq"), Redis(directory / "redis"), Postgres(directory / "postgres")
        with ThreadPoolExecutor() as pool:
            for server in pool.map(stack.enter_context, servers):
                assert server.running
        yield stack.enter_context(proving_ground(directory / "ground", *servers, settings))


def campaign(scenarios: Sequence[Scenario], size: Size, seed: int, rounds: int, tell: Callable[[Report], None]) -> list[Report]:
    """Every scenario so many times, each round with a seed of its own; `tell` hears of each as it ends."""
    reports = []
    with own_ground() as ground:
        for each in range(rounds):
            for scenario in scenarios:
                report = attempt(ground, scenario, size, seed + each)
                reports.append(report)
                tell(report)
    return reports
