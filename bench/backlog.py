"""Does a long queue slow down its own drain? The first runs of a backlog, with few and with very many waiting.

Mailroom's first thousand are enqueued by its call; the rest are copies of the last of them, made by one statement: held in the record,
without a message, as the call leaves what comes behind a tenant's window.
"""

from __future__ import annotations

from statistics import median

from bench.drain import rate
from bench.systems import TEXT, System, fill, known_systems, system, wait_for_marks, working
from bench.workbench import Workbench, names, parser_of, spread, table, workbench
from storage.models.runs import HELD

ENQUEUED = 1000
OWN = {"id", "created_at", "publish_at"}
"""Columns that no two rows have in common."""
COLUMNS = """
    SELECT column_name FROM information_schema.columns
    WHERE table_name = 'task_runs' AND is_generated = 'NEVER' AND is_identity = 'NO' AND coalesce(column_default, '') NOT LIKE 'nextval%%'
"""
COPY = """
    INSERT INTO task_runs (id, created_at, publish_at, {columns})
    SELECT (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7' || substr(md5(random()::text), 1, 3)
            || '8' || substr(md5(random()::text), 1, 15))::uuid,
           clock_timestamp(), clock_timestamp() + (publish_at - created_at), {columns}
    FROM (SELECT * FROM task_runs WHERE {held} ORDER BY id DESC LIMIT 1) AS template, generate_series(1, %s)
"""


def main() -> None:
    parser = parser_of("Drain with much and with little waiting.", first=10_000, few=10_000, many=1_000_000, rounds=3)
    parser.add_argument(
        "--systems", type=names, default=["mailroom"], help=f"of {', '.join(known_systems())}; a peer is filled by its own calls"
    )
    chosen = parser.parse_args()
    rows = []
    with workbench() as bench:
        measured = [system(name, bench) for name in chosen.systems]
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(chosen.rounds):
            for each in measured:
                for waiting in (chosen.few, chosen.many):
                    drained = drain(each, waiting, chosen.first)
                    print(f"  {each.name} with {waiting:,} waiting: {drained:,.0f}/s", flush=True)
                    rates.setdefault((each.name, waiting), []).append(drained)
    for name in chosen.systems:
        few, many = rates[name, chosen.few], rates[name, chosen.many]
        rows += [
            (f"{name}, {chosen.few:,} waiting", spread(few, "runs/s", 0)),
            (f"{name}, {chosen.many:,} waiting", spread(many, "runs/s", 0)),
        ]
        rows.append((f"{name}, ratio", f"{median(many) / median(few):.2f}"))
    table(f"The first {chosen.first:,} runs of a backlog, 2 processes x 8 threads, {chosen.rounds} rounds", rows)


def drain(measured: System, waiting: int, first: int) -> float:
    """Runs a second of the first so many."""
    measured.reset()
    if measured.name.startswith("mailroom"):
        fill_at_once(measured, measured.bench, waiting)
    else:
        fill(measured, waiting)
    with working(measured) as workers:
        wait_for_marks(measured.bench.marks, workers, first, patience=60)
    return rate(measured.bench.marks, first)


def fill_at_once(mailroom: System, bench: Workbench, runs: int, task: str = "noop", text: str = TEXT) -> None:
    """Rows as the call leaves them, and nothing left for autovacuum or the checkpointer to do meanwhile: a backlog comes over hours."""
    fill(mailroom, ENQUEUED, task, text)
    columns = ", ".join(f'"{name}"' for (name,) in bench.installation.query(COLUMNS) if name not in OWN)
    bench.installation.query(COPY.format(columns=columns, held=HELD), runs - ENQUEUED)
    bench.installation.query("VACUUM (ANALYZE) task_runs")
    bench.installation.query("CHECKPOINT")
    waiting = bench.installation.query("SELECT count(*) FROM task_runs")[0][0]
    assert waiting == runs, f"{waiting} runs wait and not {runs}: no run is held behind the window that could be copied"


if __name__ == "__main__":
    main()
