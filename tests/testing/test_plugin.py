"""The pytest plugin: its fixtures, its seed, and what a test that failed tells; and no pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WORKFLOWS = """
import pytest
import durable
from durable import step, workflow

@step
def echo(value):
    return value

@workflow
def greets(name):
    return echo(f"hello {name}")

@workflow
def waits():
    return durable.recv("answer")

"""

Result = subprocess.CompletedProcess[str]


def run_python(*arguments: str, folder: Path) -> Result:
    """A Python of its own, with this durable and no settings of the surrounding tests."""
    hidden = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_CURRENT_TEST", "PYTHONHASHSEED")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


TESTS = """
from durable import testing

def test_engine(durable_engine):
    assert greets.options(id="unseen").start("Ann").result() == "hello Ann"

def test_clock(durable_engine, durable_clock):
    assert durable_engine.workflows() == []
    assert durable_engine.clock is durable_clock
    assert durable_clock.seed == 42
    durable_clock.advance(days=30)

def test_clock_alone(durable_clock):
    durable_clock.advance(days=1)

def test_fails(durable_engine):
    greets.options(id="seen").start("Ann").result()
    waits.options(id="waiting").start().result()

def test_own_engine():
    with testing.engine() as engine:
        greets.options(id="own").start("Ann").result()
        assert False

def test_closes(durable_engine):
    durable_engine.close()
    assert False

def test_errs(durable_engine):
    greets.options(id="innocent").start("Ann").result()
    durable_engine._open_engine().spawn("durable helper", lambda: {}["nothing"])

def test_leaves(durable_engine):
    waits.options(id="left").start()
    print("without output of its own, pytest does not show the log of a test that passes")

def test_without():
    assert False
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of those tests."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "test_it.py").write_text(WORKFLOWS + TESTS)
    plugin = ("-p", "durable.testing.plugin", "-p", "no:cacheprovider", "-W", "error")
    result = run_python("-m", "pytest", *plugin, "-rA", "--durable-seed=42", folder=folder)
    assert result.stderr == ""
    return result.stdout


def part(output: str, test: str) -> str:
    """What it says of one of them."""
    _, _, rest = output.partition(f" {test} _")
    return rest.partition("\n______")[0].partition("\n======")[0]


def test_the_fixtures(output: str) -> None:
    """An open engine and its clock, new for each test, with the seed that was asked for."""
    for name in ("test_engine", "test_clock", "test_clock_alone"):
        assert f"PASSED test_it.py::{name}\n" in output
    assert "4 failed, 5 passed, 1 error" in output


def test_a_test_that_fails_shows_its_workflows(output: str) -> None:
    """The timeline, the writes and the seed are in its report; nothing of other tests is."""
    report = part(output, "test_fails")
    assert "Deadlock: nothing can happen any more:" in report
    assert "durable waiting: waits in waits (" in report
    section = report.partition("- durable: workflows and steps (--durable-seed=42) -")[2]
    assert "  seen test_it:greets SUCCESS -> 'hello Ann'\n" in section
    assert "   1 test_it:echo -> 'hello Ann'\n" in section
    assert "  waiting test_it:waits PENDING\n" in section
    writes = section.partition("- durable: writes -")[2]
    assert "MainThread                    start test_it:greets\n" in writes
    assert "durable seen                  step test_it:echo\n" in writes
    assert "unseen" not in output


def test_an_engine_of_the_test_s_own_shows_its_workflows(output: str) -> None:
    """Also where the engine is no fixture."""
    report = part(output, "test_own_engine")
    assert "E           what the workflows did:\n" in report
    assert "E             own test_it:greets SUCCESS -> 'hello Ann'" in report


def test_a_test_that_closes_its_engine_and_fails(output: str) -> None:
    """There is no timeline any more, and that breaks nothing."""
    assert "cannot be told" in part(output, "test_closes")
    assert "INTERNALERROR" not in output


def test_an_error_on_a_background_thread_fails_the_test(output: str) -> None:
    """It comes when the engine is torn down, with what the workflows did."""
    report = part(output, "ERROR at teardown of test_errs")
    assert "errors on background threads of the engine" in report
    assert "KeyError: 'nothing'" in report
    assert "innocent test_it:greets SUCCESS" in report


def test_what_is_left_running_is_in_the_log(output: str) -> None:
    """The table of what was unfinished is logged when the engine is torn down."""
    report = part(output, "test_leaves")
    assert "still unfinished at the end of the test:" in report
    assert "  left test_it:waits PENDING" in report


def test_a_test_without_the_fixtures_is_left_alone(output: str) -> None:
    """Nothing is added to its report."""
    report = part(output, "test_without")
    assert "assert False" in report
    assert "durable" not in report


def test_it_is_registered() -> None:
    """Whoever installs durable has the plugin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"durable": "durable.testing.plugin"}


def test_without_pytest(tmp_path: Path) -> None:
    """Everything but the fixtures works where pytest is not installed."""
    script = tmp_path / "no_pytest.py"
    script.write_text(
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        + WORKFLOWS.replace("import pytest\n", "")
        + textwrap.dedent("""
            from durable import testing

            def program(engine):
                assert greets.start("Ann").result() == "hello Ann"

            with testing.engine() as engine:
                with testing.replace(echo, returns="fake"), testing.strict():
                    assert greets("Ann") == "fake"
                print(testing.timeline(engine))
                assert testing.replay(engine.path).replayed == ["workflow-1-1"]
            print(testing.crashes(program))
            print(testing.orders(program, runs=3))
            try:
                import durable.testing.plugin
            except ImportError:
                print("no plugin")
            """)
    )
    result = run_python("-W", "error", str(script), folder=tmp_path)
    assert result.stderr == ""
    assert "greets SUCCESS -> 'fake'" in result.stdout
    assert "3 tried in" in result.stdout
    assert result.stdout.endswith("no plugin\n")
