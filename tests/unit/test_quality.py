"""The commands that judge the code: what they run, what they print, and when they fail. No tool is really started but Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

from cli import main as command_line
from cli import quality
from cli.quality import QualityError, Step
from core.errors import ConfigurationError, NotFoundError, UnavailableError


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quality, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every tool call, none of them made; all succeed and say nothing."""
    made: list[list[str]] = []

    def run(command: tuple[str, ...], **_environment: str) -> tuple[int, str]:
        made.append([Path(command[0]).name, *command[1:]])
        return 0, ""

    monkeypatch.setattr(quality, "run", run)
    return made


def invoke(*args: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit code of one command line."""
    monkeypatch.setattr(sys, "argv", ["manage.py", *args])
    try:
        return command_line.main()
    except SystemExit as end:
        return end.code


def test_all_steps_run_and_each_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Step("good", python("print('hidden')")), Step("bad", python("print('shown'); raise SystemExit(3)"))]
    with pytest.raises(QualityError, match=r"^failed: bad$"):
        quality.run_steps(steps)
    said = capsys.readouterr().out
    assert "ok     good" in said
    assert "FAILED bad" in said
    assert "shown" in said
    assert "hidden" not in said


def test_a_missing_tool_fails_its_step() -> None:
    with pytest.raises(QualityError, match="failed: tool"):
        quality.run_steps([Step("tool", ("/nonexistent/tool",))])


def test_check_runs_the_four_tools_and_the_unit_tests(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("check", monkeypatch=monkeypatch) == 0
    assert {call[0] for call in calls} == {"mypy", "ruff", "lint-imports", Path(sys.executable).name}
    assert ["ruff", "format", "--check", "."] in calls


def test_lock_makes_the_runtime_lock_first_and_the_other_from_it(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("lock", monkeypatch=monkeypatch) == 0
    runtime, dev = calls
    assert "--output-file=requirements.lock" in runtime
    assert {"--generate-hashes", "--no-emit-index-url", "--extra=demo"} <= set(runtime)
    assert {"--output-file=requirements-dev.lock", "--extra=dev", "--constraint=requirements.lock"} <= set(dev)


def test_arguments_of_pytest_pass_through_and_it_runs_alone(
    calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "pytest_command", lambda *args: python(f"print({list(args)!r}); print('== 3 passed in 1s ==')"))
    assert invoke("test", "-m", "integration", "-k", "x", "--maxfail=1", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == ["['-m', 'integration', '-k', 'x', '--maxfail=1']", "== 3 passed in 1s =="]
    assert calls == []


def test_a_failing_test_run_is_one_sentence(
    calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "pytest_command", lambda *args: python("print('== 1 failed in 1s =='); raise SystemExit(1)"))
    assert invoke("test", monkeypatch=monkeypatch) == 1
    assert capsys.readouterr().err == "manage.py: pytest: 1 failed in 1s\n"


def test_a_killed_test_run_says_so(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "pytest_command", lambda *args: python("import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(QualityError, match="ended by signal 9"):
        quality.run_pytest([[]])


def test_a_full_run_installs_checks_measures_and_ends_with_pytests_line(
    calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "install_servers", lambda: calls.append(["install"]))
    monkeypatch.setattr(quality, "line_coverage", lambda: {"core": (95, 100)})
    code = "import os, sys; print(os.environ['COVERAGE_PROCESS_START'][-14:], sys.argv[1:]); print('= 5 passed in 2s =')"
    monkeypatch.setattr(quality, "pytest_command", lambda *args: (*python(code), *args))
    monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)
    assert invoke("test", "--install", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out.splitlines()
    assert calls[0] == ["install"]
    alongside, alone = (line for line in said if line.startswith("pyproject.toml"))
    assert "'--require-all', '-n', '2'" in alongside
    assert alone == "pyproject.toml ['--require-all', 'tests/acceptance', 'tests/faults']"
    assert said[-1] == "10 passed, 0 failed"


def test_every_folder_of_tests_belongs_to_one_part_of_a_whole_run() -> None:
    folders = [word for part in quality.WHOLE for word in part if word.startswith("tests/")]
    assert sorted(folders) == sorted(f"tests/{path.name}" for path in (quality.ROOT / "tests").iterdir() if any(path.glob("test_*.py")))


def test_a_failure_of_the_first_part_hides_no_other(
    calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; bad = 'tests/unit' in sys.argv; print('= 1 failed in 1s =' if bad else '= 4 passed in 1s ='); raise SystemExit(bad)"
    monkeypatch.setattr(quality, "pytest_command", lambda *args: (*python(code), *args))
    assert invoke("test", monkeypatch=monkeypatch) == 1
    output = capsys.readouterr()
    assert "4 passed" in output.out
    assert output.err == "manage.py: pytest: 1 failed in 1s\n"


UNSTEADY = """
import pathlib, sys
again = pathlib.Path("again").exists()
pathlib.Path("again").touch()
tests = [word for word in sys.argv[1:] if "::" in word]
if again:
    print(sys.argv[1:])
    print(f"= {len(tests)} passed in 1s =")
else:
    print(NOT_PASSED)
    print("= 2 passed, 1 failed, 1 error in 1s =")
raise SystemExit(0 if again else 1)
"""


def unsteady(not_passed: str, root: Path, monkeypatch: pytest.MonkeyPatch, *, second_try: bool = True) -> list[str]:
    """The closing lines of a run in which these tests do not pass at first."""
    code = f"NOT_PASSED = {not_passed!r}\n{UNSTEADY}"
    monkeypatch.setattr(quality, "pytest_command", lambda *args: (*python(code), *args))
    return quality.run_pytest([["tests/unit"]], "--require-all", second_try=second_try)


def test_a_stumble_is_tried_again_by_name_and_said_aloud(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "FAILED tests/unit/test_a.py::test_b[c d] - AssertionError: e - f\nERROR tests/faults/test_g.py::test_h[i]"
    assert quality.summed(unsteady(lines, root, monkeypatch)) == "4 passed, 0 failed"
    said = capsys.readouterr().out
    assert "['--require-all', 'tests/unit/test_a.py::test_b[c d]', 'tests/faults/test_g.py::test_h[i]']" in said
    assert "UNSTEADY, passed the second time: tests/unit/test_a.py::test_b[c d], tests/faults/test_g.py::test_h[i]" in said


@pytest.mark.parametrize(
    "not_passed",
    [
        "FAILED tests/faults/test_a.py::test_b - a run is lost\nFAILED tests/unit/test_c.py::test_d",
        "ERROR tests/unit/test_that_cannot_be_imported.py",
        "\n".join(f"FAILED tests/unit/test_a.py::test_{number}" for number in range(quality.TRIED_AGAIN + 1)),
        "nothing that names a test",
    ],
    ids=["a verdict of the fault suite", "no test", "too many", "nothing"],
)
def test_what_is_not_tried_again(not_passed: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QualityError, match="2 passed, 1 failed, 1 error in 1s"):
        unsteady(not_passed, root, monkeypatch)


def test_who_chooses_tests_sees_what_they_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QualityError, match="1 failed"):
        unsteady("FAILED tests/unit/test_a.py::test_b", root, monkeypatch, second_try=False)


def test_what_fails_twice_has_failed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "print('FAILED tests/unit/test_a.py::test_b'); print('= 1 failed in 1s ='); raise SystemExit(1)"
    monkeypatch.setattr(quality, "pytest_command", lambda *_args: python(code))
    with pytest.raises(QualityError, match="1 failed"):
        quality.run_pytest([[]], second_try=True)


def test_the_parts_are_summed_for_the_closing_line() -> None:
    assert quality.summed(["3 passed in 1s", "1 failed, 2 passed, 1 skipped, 2 errors in 4s"]) == "5 passed, 1 failed, 1 skipped, 2 errors"


def test_coverage_is_summed_by_package_and_judged(capsys: pytest.CaptureFixture[str]) -> None:
    def file(covered: int, lines: int) -> dict[str, dict[str, int]]:
        return {"summary": {"covered_lines": covered, "num_statements": lines}}

    report = {"files": {"core/ids.py": file(9, 10), "core/clock.py": file(10, 10), "mail/imap.py": file(50, 100), "tests/x.py": file(0, 9)}}
    lines = quality.lines_by_package(report)
    assert (lines["core"], lines["mail"], lines["api"]) == ((19, 20), (50, 100), (0, 0))
    with pytest.raises(QualityError, match=r"^mail/ has 50\.0 % of its lines covered and needs 90 %$"):
        quality.judge(lines)
    assert "total" in capsys.readouterr().out


def test_coverage_of_this_house_is_read_from_the_tool(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "run", lambda command, **_: (1, "No data to combine"))
    with pytest.raises(QualityError, match="No data to combine"):
        quality.line_coverage()
    monkeypatch.setattr(quality, "run", lambda command, **_: (0, str((root / ".coverage.json").write_text('{"files": {}}'))))
    assert quality.line_coverage()["core"] == (0, 0)
    assert not (root / ".coverage.json").exists()


def test_only_missing_servers_are_installed_and_none_is_started(
    calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(quality, "POLICY", policy)
    monkeypatch.setattr(quality, "SERVERS", {"there": "usr/bin/env", "lacking": "nonexistent/server"})
    monkeypatch.setattr("os.geteuid", lambda: 0)
    quality.install_servers()
    assert calls == [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "lacking"]]
    assert not policy.exists()
    with quality.no_service_starts():
        assert policy.read_text().endswith("exit 101\n")


def test_who_is_not_root_is_told_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "SERVERS", {"lacking": "nonexistent/server"})
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(QualityError, match=r"run: sudo apt-get install -y --no-install-recommends lacking$"):
        quality.install_servers()


def test_a_failing_installation_names_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quality, "POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setattr(quality, "SERVERS", {"lacking": "nonexistent/server"})
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(quality, "run", lambda command, **_: (100, "no network"))
    with pytest.raises(QualityError, match="apt-get update failed; install by hand: lacking"):
        quality.install_servers()


def test_nothing_missing_installs_nothing(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "SERVERS", {"there": "usr/bin/env"})
    quality.install_servers()
    assert calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigurationError("a"), 1), (NotFoundError("b"), 3), (UnavailableError("c"), 5), (KeyboardInterrupt(), 130)],
)
def test_errors_are_one_line_and_an_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(**_options: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", failing)
    assert command_line.main() == code
    assert capsys.readouterr().err == (f"manage.py: {error}\n" if code != 130 else "")


def test_a_wrong_command_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("nonsense", monkeypatch=monkeypatch) == 2


def test_the_application_keeps_local_variables_to_itself() -> None:
    assert isinstance(command_line.app, typer.Typer)
    assert command_line.app.pretty_exceptions_enable is False
