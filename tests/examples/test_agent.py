"""Promises of examples/agent.py, made to whoever runs it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from durable import Client, Engine, NotADurableFile
from examples import agent
from examples.agent import calculate, read_file, write_file
from tests.support import until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
QUESTION = "Read prices.txt, add them up, save it to sum.txt"
TALK = """\
Let me look into prices.txt. 
  [read_file prices.txt]
  -> 3 …
Let me work that out. 
  [calculate 3 + 4.5]
  -> 7.5
I would like to save that to sum.txt. 
  [write_file sum.txt]
  May it? python3 -m examples.agent approve sum, or reject sum
"""  # noqa: W291 - what the model says ends in a blank
SAVED = "  -> saved to sum.txt\nIt is 7.5; that is saved to sum.txt. \n"
REFUSED = (
    "  -> error: the person does not want that\n"
    "I am sorry, I could not do that: the person does not want that. \n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the agent works."""
    (tmp_path / "prices.txt").write_text("3\n4.5\n")
    return tmp_path


def options(folder: Path, pace: float) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        "AGENT_SECONDS_PER_TOKEN": str(pace),
    }
    return {"cwd": folder, "env": environment, "text": True}


@dataclass
class Done:
    """How a command ended."""

    code: int
    told: str
    complaints: str


Run = Callable[..., Done]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AGENT_SECONDS_PER_TOKEN", "0")

    def run(*arguments: str) -> Done:
        complaint = ""
        try:
            code = agent.main(list(arguments))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
            complaint = str(error)
        told, complaints = capsys.readouterr()
        return Done(code, told, complaints + complaint)

    return run


@contextmanager
def started(folder: Path, *arguments: str, pace: float = 0) -> Iterator[subprocess.Popen[str]]:
    """Start a command; it gets SIGKILL at the end of the block."""
    command = [sys.executable, "-m", "examples.agent", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options(folder, pace)
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def output(child: subprocess.Popen[str]) -> str:
    """What it wrote on its standard output, when it has ended well."""
    told, complaints = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, complaints
    return told


def asked(child: subprocess.Popen[str]) -> str:
    """What a talk says until it asks a person."""
    assert child.stdout is not None
    said = ""
    while "May it?" not in said:
        line = child.stdout.readline()
        assert line, child.communicate()
        said += line
    return said


def wait_for_question(folder: Path) -> None:
    """Wait until a person can answer: the question is shown a moment before."""
    with Client(folder / "agent.db") as client:
        while client.event("sum", "waits_for_approval", timeout=PATIENCE) is None:
            pass


def test_a_question(run: Run) -> None:
    """The tokens and the tools on the standard output, the id of the talk on the other."""
    done = run("ask", "What is 17 * 23?")
    expected = "Let me work that out. \n  [calculate 17 * 23]\n  -> 391\nIt is 391. \n"
    assert (done.code, done.told) == (0, expected)
    assert done.complaints.startswith("talk talk-")
    assert run("ask", "What is 17 * 23?") == done


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["while it talks", "while it waits for a person"])
def test_killed_in_the_middle(folder: Path, run: Run, killed: str) -> None:
    """Who watches from the beginning, in another process, reads each token once."""
    talking = killed == "while it talks"
    with started(folder, "ask", QUESTION, "--id", "sum", pace=0.1 if talking else 0) as child:
        if talking:
            assert child.stdout is not None
            child.stdout.read(5)  # the first turn is recorded, the second one is under way
        else:
            assert asked(child) == TALK
            wait_for_question(folder)
        with started(folder, "watch", "sum") as watcher:
            child.send_signal(signal.SIGKILL)
            child.wait(PATIENCE)
            if not talking:
                assert run("approve", "sum").code == 0  # nobody runs it: the answer is kept
            with started(folder, "ask", QUESTION, "--id", "sum") as again:
                said = asked(again)
                if talking:
                    wait_for_question(folder)
                    assert run("approve", "sum").code == 0
                assert said + output(again) == TALK + SAVED
            assert output(watcher) == TALK + SAVED
    assert (folder / "sum.txt").read_text() == "7.5\n"
    with Client(folder / "agent.db") as client:
        names = [each.name for each in client.handle("sum").steps()]
    assert sum(name.endswith(":write_file") for name in names) == 1


@pytest.mark.slow
def test_a_person_says_no(folder: Path, run: Run) -> None:
    """Nothing is written, and the model is told; `list` says who waits, and then that it ended."""
    with started(folder, "ask", QUESTION, "--id", "sum") as child:
        said = asked(child)
        wait_for_question(folder)
        assert run("list").told == "sum  PENDING  asks: write_file sum.txt\n"
        assert not (folder / "sum.txt").exists()
        assert run("reject", "sum").told == "rejected: write_file sum.txt\n"
        assert said + output(child) == TALK + REFUSED
    assert not (folder / "sum.txt").exists()
    assert run("list").told == "sum  SUCCESS\n"
    assert "does not wait for anybody" in run("approve", "sum").complaints


@pytest.mark.slow
def test_watching_live(folder: Path) -> None:
    """Tokens come before the turn that they belong to has ended."""
    with started(folder, "ask", "What is 1 + 1?", "--id", "sum", pace=0.4) as child:
        until(lambda: threading.Event().wait(0.05) or has_begun(folder))
        with started(folder, "watch", "--live", "sum") as watcher:
            assert watcher.stdout is not None
            assert watcher.stdout.read(3) == "Let"
            with Client(folder / "agent.db") as client:
                assert client.handle("sum").steps() == []
            assert output(watcher).endswith("It is 2. \n")
            assert output(child).startswith("Let me work that out. \n")


def has_begun(folder: Path) -> bool:
    try:
        with Client(folder / "agent.db") as client:
            return bool(client.workflows())
    except NotADurableFile:
        return False


@pytest.mark.slow
def test_ctrl_c(folder: Path, run: Run) -> None:
    """It says that the same command goes on, and that is true."""
    with started(folder, "ask", QUESTION, "--id", "sum") as child:
        assert asked(child) == TALK
        wait_for_question(folder)
        child.send_signal(signal.SIGINT)
        told, complaints = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130
    assert (told, complaints) == ("", "talk sum\n\nstopped: the same command goes on\n")
    assert run("reject", "sum").code == 0
    assert run("ask", QUESTION, "--id", "sum").told == TALK + REFUSED


def test_wrong_use(folder: Path, run: Run) -> None:
    """Each mistake has its line and its exit code; help has examples."""
    assert "examples:" in run("--help").told
    assert run().code == 2
    missing = run("watch", "sum")
    assert missing.code == 1
    assert "agent.db" in missing.complaints
    run("ask", "Hello")
    unknown = run("watch", "nobody")
    assert (unknown.code, unknown.told) == (1, "")
    assert "nobody" in unknown.complaints
    with Engine(folder / "agent.db"):
        second = run("ask", "Hello")
    assert second.code == 1
    assert f"process {os.getpid()} has agent.db open" in second.complaints


def test_tools_do_no_harm(folder: Path) -> None:
    """Arithmetic and nothing else; files in the folder and nowhere else."""
    for expression in ("__import__('os')", "9 ** 9", "1 / 0", "(", "-'x'", "1" + "+1" * 5000):
        assert asyncio.run(calculate.fn(expression)).startswith("error: ")
    assert asyncio.run(calculate.fn("-(2 + 3) * 4 / 8")) == "-2.5"
    outside = folder.parent / "outside.txt"
    outside.write_text("secret")
    (folder / "link").symlink_to(outside)
    for path in ("../outside.txt", str(outside), "link", "none.txt"):
        assert read_file(str(folder), path).startswith("error: ")
        if path != "none.txt":
            assert write_file(str(folder), path, "x").startswith("error: ")
    assert outside.read_text() == "secret"


def test_the_model_knows_its_limits() -> None:
    """Questions that it cannot answer, and tools that failed, get an answer in words."""
    ask = {"role": "user", "text": "Who are you?"}
    assert agent.answer([ask])[1] is None
    failed = {"role": "tool", "text": "error: x.txt cannot be read"}
    words, call = agent.answer([{"role": "user", "text": "Read x.txt"}, failed])
    assert call is None
    assert "x.txt cannot be read" in words
