"""Sending under fire at any size: workers killed, connections dropped, and then the outbox compared with what the server has.

The long form of `tests/integration/test_send_chaos.py`. Ends with exit code 1 when a mail came twice, was lost or was given up.
"""

from __future__ import annotations

import sys

from bench.workbench import parser_of, table, workbench
from tests.integration.send_chaos import Chaos, Verdict, run_chaos
from tests.servers.smtp import SmtpSink


def main() -> int:
    """The size of the whole is `--mails 10000 --kills 500 --drop 0.04`; `--scale 0.1` is a tenth of the mails and of the kills."""
    parser = parser_of(__doc__ or "", mails=10_000, kills=500, processes=3, patience=900, seed=1)
    parser.add_argument("--drop", type=float, default=0.04, help="share of the mails whose connection is dropped, half after the dot")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds the server takes for a mail, half before the dot")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between two kills at least, give or take half")
    parser.add_argument("--scale", type=float, default=1.0, help="of mails and kills")
    chosen = parser.parse_args()
    mails, kills = round(chosen.mails * chosen.scale), round(chosen.kills * chosen.scale)
    chaos = Chaos(mails, kills, chosen.pause, chosen.drop, chosen.delay, chosen.processes, chosen.patience)
    with workbench(LOG_LEVEL="INFO") as bench, SmtpSink() as sink:
        bench.installation.start_api()
        bench.installation.start("scheduler")
        acme = bench.installation.new_tenant("acme")
        verdict = run_chaos(bench.installation, acme, sink, chaos, seed=chosen.seed, tell=lambda text: print(text, flush=True))
    table(f"{mails} mails, PostgreSQL, RabbitMQ", _rows(verdict))
    return 0 if verdict.is_kept else 1


def _rows(verdict: Verdict) -> list[tuple[str, str]]:
    return [
        ("workers killed", str(verdict.kills)),
        ("connections dropped before / after the dot", f"{verdict.early_drops} / {verdict.drops}"),
        ("how the mails ended", ", ".join(f"{name} {count}" for name, count in sorted(verdict.statuses.items()))),
        ("arrived", str(verdict.arrived)),
        ("came twice", str(verdict.duplicates)),
        ("recorded as sent, and never arrived", str(verdict.lost)),
        ("given up", str(verdict.unsent)),
        (
            "uncertain, and faults after the dot",
            f"{verdict.uncertain} (of which {verdict.uncertain_arrived} arrived), {verdict.most_uncertain}",
        ),
        ("seconds", f"{verdict.seconds:.0f}"),
    ]


if __name__ == "__main__":
    sys.exit(main())
