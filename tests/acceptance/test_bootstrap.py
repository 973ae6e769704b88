"""manage.py on a machine that has nothing: what it makes, when it does nothing, and what it says when it cannot."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).resolve().parent.parent.parent
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
COMMAND_LINE = """\
import os, sys
print("ran", sys.argv[1:], os.getcwd() == os.environ["PYTHONPATH"], sys.prefix != sys.base_prefix)
sys.exit(7 if "fail" in sys.argv else 0)
"""


def make_project(root: Path, lock: str = "") -> Path:
    """A project with the real manage.py, a lock that installs nothing, and a command line that says how it was called."""
    (root / "cli").mkdir(parents=True)
    (root / "cli" / "__init__.py").touch()
    (root / "cli" / "main.py").write_text(COMMAND_LINE)
    for name in ("requirements.lock", "requirements-dev.lock"):
        (root / name).write_text(lock or "# nothing\n")
    shutil.copy(ROOT / "manage.py", root)
    shutil.copy(ROOT / "manage.sh", root)
    return root


def manage(root: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [BASE_PYTHON, str(root / "manage.py"), *args]
    environment = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose .venv exists. The pip inside is real; making it takes two seconds, so the tests share it."""
    root = make_project(tmp_path_factory.mktemp("project") / "root")
    done = manage(root, "hello", HOME="")
    assert done.returncode == 0, done.stderr
    assert "making .venv with Python 3." in done.stderr
    assert "installing requirements.lock (hash-locked)" in done.stderr
    return root


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    """manage.py as a module, looking at an empty directory."""
    root = make_project(tmp_path / "root")
    spec = importlib.util.spec_from_file_location("manage_under_test", root / "manage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_parses_on_python_3_6() -> None:
    ast.parse((ROOT / "manage.py").read_text(), feature_version=(3, 6))


def test_its_annotations_need_no_new_python() -> None:
    tree = ast.parse((ROOT / "manage.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    annotations = [each for node in functions for each in (node.returns, *(arg.annotation for arg in node.args.args)) if each is not None]
    assert all(isinstance(each, ast.Constant | ast.Name) for each in annotations)


def test_it_needs_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / "manage.py").read_text())
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= sys.stdlib_module_names


def test_it_hands_over_arguments_and_exit_code(made: Path) -> None:
    done = manage(made, "fail", "--now", "a b")
    assert done.stdout == "ran ['fail', '--now', 'a b'] True True\n"
    assert done.returncode == 7


def test_a_second_start_sets_nothing_up(made: Path) -> None:
    assert manage(made, "hello").stderr == ""


def test_the_shell_alias_does_the_same(made: Path) -> None:
    command = ["sh", str(made / "manage.sh"), "hello"]
    done = subprocess.run(command, env=dict(os.environ, HOME=""), capture_output=True, text=True, timeout=60, check=True)
    assert "ran ['hello'] True True" in done.stdout


def test_tests_want_the_other_lock(made: Path) -> None:
    assert "installing requirements-dev.lock" in manage(made, "--quiet", "test", "-x").stderr
    for command in ("test", "check", "lock"):
        assert manage(made, command).stderr == ""


def test_a_changed_lock_is_installed_at_the_next_start(made: Path) -> None:
    with (made / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert "installing requirements.lock" in manage(made, "hello").stderr
    assert manage(made, "hello").stderr == ""


def test_a_killed_installation_is_made_anew(made: Path) -> None:
    half_written = made / ".venv" / "half-written"
    half_written.touch()
    (made / ".venv" / ".unfinished").touch()
    assert "making .venv" in manage(made, "hello").stderr
    assert manage(made, "hello").stderr == ""
    assert not half_written.exists()


def test_two_starts_at_once_set_up_once(made: Path) -> None:
    (made / ".venv" / ".stamp-runtime").unlink()
    command = [BASE_PYTHON, str(made / "manage.py"), "hello"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("installing" in errors for _, errors in answers) == 1


def test_a_package_that_is_not_there_is_one_sentence(made: Path) -> None:
    lock = made / "requirements.lock"
    before = lock.read_text()
    lock.write_text("--no-index\nno-such-package==1.0 --hash=sha256:" + "0" * 64 + "\n")
    done = manage(made, "hello", PIP_FIND_LINKS=str(made))
    lock.write_text(before)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "manage.py: the installation of requirements.lock failed"
    assert "Traceback" not in done.stderr
    assert not (made / ".venv" / ".unfinished").exists()


def test_the_lock_is_installed_as_it_stands(made: Path) -> None:
    """What a package asks for is in the lock or nowhere: a newer release of it, published since, changes nothing."""
    wheel = made / "asking-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "asking-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: asking\nVersion: 1.0\nRequires-Dist: asked[extra]\n"
        )
        archive.writestr("asking-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("asking-1.0.dist-info/RECORD", "")
    lock = made / "requirements.lock"
    before = lock.read_text()
    lock.write_text(f"--no-index\nasking==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    done = manage(made, "hello", PIP_FIND_LINKS=str(made))
    lock.write_text(before)
    assert done.returncode == 0, done.stderr


def test_a_missing_lock_is_one_sentence(made: Path) -> None:
    lock = made / "requirements.lock"
    text = lock.read_text()
    lock.unlink()
    done = manage(made, "hello")
    lock.write_text(text)
    assert (done.returncode, done.stderr) == (1, "manage.py: requirements.lock is missing: restore it from the repository\n")


def test_an_old_python_says_what_to_install(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "OLDEST", (9, 9))
    monkeypatch.setattr(module, "NEWER", ("sh", "no-such-python"))  # one that is no Python, one that is not there
    assert module.main(["hello"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("manage.py: Mailroom needs Python 9.9 or newer, this is 3.")
    assert "apt-get install python3 python3-venv" in said


def test_a_python_without_any_installer_says_what_to_install(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "has_module", lambda name: False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert module.main(["hello"]) == 1
    assert "apt-get install python3-venv" in capsys.readouterr().err.splitlines()[-1]


def test_without_ensurepip_the_base_pip_installs(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has_module = module.has_module
    monkeypatch.setattr(module, "has_module", lambda name: name != "ensurepip" and has_module(name))
    module.set_up("runtime")
    assert not list(Path(module.VENV).glob("lib/*/site-packages/pip"))
    assert module.is_ready("runtime")
    assert "--python" in module.installer()
    assert module.is_whole()
    Path(module.PYTHON).unlink()
    assert not module.is_whole()
    assert not module.is_ready("runtime")


def test_a_directory_that_cannot_be_written_is_one_sentence(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(module.ROOT) / ".mailroom").write_text("a file where a directory should be")
    assert module.main(["hello"]) == 1
    assert capsys.readouterr().err.startswith("manage.py: ")


def test_pips_settings_are_kept_but_not_those_that_lead_elsewhere(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example/simple")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    environment = module.clean()
    assert environment["PIP_INDEX_URL"] == "https://packages.example/simple"
    assert not {"PIP_TARGET", "PYTHONHOME"} & set(environment)
