"""The commands that judge the code: `check` (a minute), `test` (everything, with real servers), `lock` (the dependency locks)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from core.errors import MailroomError

ROOT = Path(__file__).resolve().parent.parent
LINE_COVERAGE = {  # per cent, for every package of the house
    "core": 90,
    "mail": 90,
    "files": 90,
    "storage": 90,
    "brokers": 90,
    "runs": 90,
    "scheduler": 90,
    "actors": 90,
    "api": 90,
    "cli": 90,
    "demo": 90,
}
SERVERS = {  # Debian package: the file that shows it is there
    "rabbitmq-server": "usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server",
    "redis-server": "usr/bin/redis-server",
    "postgresql": "usr/lib/postgresql/*/bin/postgres",
    "dovecot-imapd": "usr/lib/dovecot/imap",
    "dovecot-pop3d": "usr/lib/dovecot/pop3",
    "rspamd": "usr/bin/rspamd",
    "spamd": "usr/sbin/spamd",
    "chromium": "usr/bin/chromium",
    "libfaketime": "usr/lib/*/faketime/libfaketimeMT.so.1",
}
POLICY = Path("/usr/sbin/policy-rc.d")
LOCK_OPTIONS = (
    "--quiet",
    "--generate-hashes",
    "--strip-extras",
    "--no-header",
    "--no-emit-index-url",
    "--no-emit-trusted-host",
    "--no-emit-find-links",
)

InstallOption = Annotated[bool, typer.Option("--install", help="Install missing servers from Debian's packages (root); skip nothing.")]


class QualityError(MailroomError):
    """A check or a test failed; what it said is above the sentence."""

    code = "quality"


@dataclass(frozen=True)
class Step:
    """One tool and its arguments; it passes with exit code 0."""

    name: str
    command: tuple[str, ...]


def tool(name: str, *args: str) -> tuple[str, ...]:
    """A tool of this environment, whatever PATH says."""
    return (str(Path(sys.executable).parent / name), *args)


def pytest_command(*args: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", *args)


STATIC_STEPS = (  # the slowest first: two run at a time
    Step("mypy --strict", tool("mypy", "--strict", ".")),
    Step("ruff check", tool("ruff", "check", ".")),
    Step("ruff format", tool("ruff", "format", "--check", ".")),
    Step("import-linter", tool("lint-imports")),
)
BOTH_CORES = ("-n", "2", "--dist", "loadfile")
UNIT_TESTS = Step("unit tests", pytest_command("-q", *BOTH_CORES, "tests/unit"))
WHOLE = (  # the parts of a whole run, one after the other
    (*BOTH_CORES, "tests/unit", "tests/conformance", "tests/integration"),
    ("tests/acceptance", "tests/faults"),  # each of these starts many processes: nothing else runs beside them
)
COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")
NOT_PASSED = re.compile(r"(FAILED|ERROR) (tests/\S+?\.py::.*?)(?: - .*)?$")
TRIED_AGAIN = 3
"""So many tests that did not pass are tried once more, alone: they start real servers and processes, and a machine may stumble."""
VERDICT = re.compile(r"FAILED tests/faults/")
"""What the auditor of the fault suite says is never asked twice: one lost run in ten trials is a lost run."""


def register(app: typer.Typer) -> None:
    app.command()(check)
    app.command("test", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run_tests)
    app.command()(lock)


def check() -> None:
    """Ruff, mypy --strict, import-linter and the unit tests, in about a minute."""
    run_steps((STATIC_STEPS[0], UNIT_TESTS, *STATIC_STEPS[1:]))


def run_tests(context: typer.Context, install: InstallOption = False) -> None:
    """The static checks, then all tests against the real servers. Other arguments go to pytest, which then runs alone.

    With --install nothing may be skipped, and every package must reach its line coverage. Of a whole run, up to three tests that did
    not pass are tried once more at the end, and named; the fault suite's verdicts are not.
    """
    chosen = list(context.args)
    if install:
        install_servers()
    if not chosen:
        run_steps(STATIC_STEPS)
    measured = install and not chosen
    with coverage_started(wanted=measured):
        options = ["--require-all"] if install else []
        closing_lines = run_pytest([chosen] if chosen else WHOLE, *options, second_try=not chosen)
    if measured:
        judge(line_coverage())
        say(summed(closing_lines))


def lock() -> None:
    """Re-make both lock files from pyproject.toml, keeping every version that still fits."""
    targets: dict[str, tuple[str, ...]] = {
        "requirements.lock": ("--extra=demo",),
        "requirements-dev.lock": ("--extra=demo", "--extra=dev", "--constraint=requirements.lock"),
    }
    for output, extras in targets.items():
        run_step(Step(output, tool("pip-compile", *LOCK_OPTIONS, *extras, f"--output-file={output}", "pyproject.toml")))


def run_steps(steps: Sequence[Step]) -> None:
    """Run all of them, two at a time, so that one call shows every problem."""
    failed = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done in as_completed([pool.submit(outcome_of, step) for step in steps]):
            step, seconds, output = done.result()
            report(step, seconds, output)
            if output is not None:
                failed.append(step.name)
    if failed:
        raise QualityError(f"failed: {', '.join(failed)}")


def run_step(step: Step) -> None:
    run_steps([step])


def outcome_of(step: Step) -> tuple[Step, float, str | None]:
    """The step, its seconds, and what it said when it failed."""
    began = time.monotonic()
    code, output = run(step.command)
    return step, time.monotonic() - began, output if code else None


def run(command: Sequence[str], **environment: str) -> tuple[int, str]:
    """Exit code and output of one tool, with additions to its environment."""
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    return done.returncode, done.stdout


def report(step: Step, seconds: float, output: str | None) -> None:
    say(f"{'ok' if output is None else 'FAILED':<7}{step.name:<24}{seconds:5.1f} s")
    if output is not None:
        say(output.rstrip())


@dataclass(frozen=True)
class Part:
    """What came of one pytest: its exit code, its closing line without the frame, and its lines about tests that did not pass."""

    code: int
    closing: str
    not_passed: tuple[str, ...] = ()

    def worth_another_try(self) -> list[str]:
        """The tests that did not pass, when they may be tried again; nothing otherwise."""
        found = [match[2] for line in self.not_passed if (match := NOT_PASSED.match(line)) and not VERDICT.match(line)]
        enough = self.code == 1 and len(found) == len(self.not_passed) <= TRIED_AGAIN
        return list(dict.fromkeys(found)) if enough else []


def run_pytest(parts: Sequence[Sequence[str]], *options: str, second_try: bool = False) -> list[str]:
    """Run pytest with the options once for each part, the last also when the first fails. Returns their closing lines.

    With a second try, a few tests that did not pass are tried once more after all, alone and by name; which, is said.
    Raises QualityError.
    """
    done = [pytest_part([*options, *part]) for part in parts]
    closing_lines = []
    for part in done:
        closing_lines.append(part.closing)
        if second_try and (again := part.worth_another_try()):
            say(f"tried again: {', '.join(again)}")
            second = pytest_part([*options, *again])
            if second.code == 0:
                say(f"UNSTEADY, passed the second time: {', '.join(again)}")
                closing_lines[-1:] = [re.sub(r"\d+ (failed|errors?)\b", "", part.closing), second.closing]
                continue
        if part.code < 0:
            raise QualityError(f"pytest was ended by signal {-part.code}")
        if part.code:
            raise QualityError(f"pytest: {part.closing}")
    return closing_lines


def pytest_part(args: Sequence[str]) -> Part:
    """Run one pytest and pass its output on."""
    closing, not_passed = "", []
    command = pytest_command(*args)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        for line in process.stdout:
            closing = line.strip(" =\n") or closing
            if line.startswith(("FAILED ", "ERROR ")):
                not_passed.append(line.rstrip("\n"))
            say(line.rstrip("\n"))
    return Part(process.returncode, closing, tuple(not_passed))


def summed(closing_lines: Sequence[str]) -> str:
    """What pytest said of several parts, as if it had been one."""
    counts = Counter({"passed": 0, "failed": 0})
    for number, word in COUNT.findall(" ".join(closing_lines)):
        counts["errors" if word == "error" else word] += int(number)
    return ", ".join(f"{number} {word}" for word, number in counts.items())


@contextmanager
def coverage_started(*, wanted: bool) -> Iterator[None]:
    """Measure every Python process started inside: coverage starts itself wherever it finds COVERAGE_PROCESS_START."""
    if not wanted:
        yield
        return
    run(tool("coverage", "erase"))
    measured = {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": str(ROOT / ".coverage")}
    os.environ.update(measured)
    try:
        yield
    finally:
        for name in measured:
            del os.environ[name]


def line_coverage() -> dict[str, tuple[int, int]]:
    """Covered and countable lines of every package, from the processes' data files."""
    report_file = ROOT / ".coverage.json"
    for command in (tool("coverage", "combine", "--quiet"), tool("coverage", "json", "--quiet", "-o", str(report_file))):
        code, output = run(command)
        if code:
            raise QualityError(f"coverage could not be read: {output.strip()}")
    answer = json.loads(report_file.read_text())
    report_file.unlink()
    return lines_by_package(answer)


def lines_by_package(answer: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]]) -> dict[str, tuple[int, int]]:
    """The sums of coverage's JSON report by top-level folder; a package without a line counts as covered."""
    lines = dict.fromkeys(LINE_COVERAGE, (0, 0))
    for path, file in answer["files"].items():
        package = Path(path).parts[0]
        if package in lines:
            covered, countable = lines[package]
            lines[package] = (covered + file["summary"]["covered_lines"], countable + file["summary"]["num_statements"])
    return lines


def judge(lines: Mapping[str, tuple[int, int]]) -> None:
    """Print the table; fail for the packages that are below their mark."""
    total = (sum(covered for covered, _ in lines.values()), sum(countable for _, countable in lines.values()))
    say("line coverage")
    short = []
    for package, (covered, countable) in [*lines.items(), ("total", total)]:
        percent = 100.0 * covered / countable if countable else 100.0
        say(f"  {package:<12}{covered:>6} of {countable:>6} lines {percent:6.1f} %")
        if percent < LINE_COVERAGE.get(package, 0):
            short.append(f"{package}/ has {percent:.1f} % of its lines covered and needs {LINE_COVERAGE[package]} %")
    if short:
        raise QualityError("; ".join(short))


def install_servers() -> None:
    """Install the servers that are missing, and start none of them: the tests run private ones."""
    missing = [package for package, file in SERVERS.items() if not any(Path("/").glob(file))]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        raise QualityError(f"only root can install the missing servers; run: sudo {' '.join(command)}")
    say(f"installing {' '.join(missing)}")
    with no_service_starts():
        for words in (["apt-get", "update"], command):
            code, output = run(words, DEBIAN_FRONTEND="noninteractive")
            if code:
                say(output[-3000:].rstrip())
                raise QualityError(f"{' '.join(words)} failed; install by hand: {', '.join(missing)}")


@contextmanager
def no_service_starts() -> Iterator[None]:
    """Debian asks policy-rc.d before a package starts its service; 101 forbids it. An existing policy stays."""
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def say(text: str) -> None:
    print(text, flush=True)
