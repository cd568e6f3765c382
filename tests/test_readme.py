"""The README tells the truth: its Python runs, its two commands are there, its names exist."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

import durable
from durable import Engine, workflow

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every block of Python runs, one after the other as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "tutorial.py"
    script.write_text("\n".join(blocks("python")))
    monkeypatch.setitem(sys.modules, "tutorial", types.ModuleType("tutorial"))
    names = {"__name__": "tutorial", "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), names)
    shown = capsys.readouterr().out
    assert "packed 17" in shown
    assert "Ann: None" in shown
    assert "crashes:" in shown


def test_exactly_two_commands() -> None:
    """On a fresh machine there are two commands: the main job, and the tests."""
    commands = blocks("sh")
    assert len(commands) == 2
    assert commands[0].strip() == "python3 -m examples.checkout"
    assert "pytest" in commands[1]


def test_all_public_names_are_told() -> None:
    """Each public function and class is in the README, and each error in the tree of errors."""
    tree = durable.errors.__doc__ or ""
    told_by_others = {
        "Cancellation",
        "Current",
        "Step",
        "Waited",
        "Workflow",
        "Opaque",
        "JsonCodec",
    }
    for name in set(durable.__all__) - told_by_others:
        assert re.search(rf"\b{name}\b", README) or re.search(rf"\b{name}\b", tree), name


def test_all_told_names_exist() -> None:
    """What the README calls durable.something is there."""
    for name in set(re.findall(r"\bdurable\.(\w+)", README)) - {"errors", "py"}:
        assert hasattr(durable, name), name


def test_what_the_file_tells_is_named_tuples(engine: Engine) -> None:
    """A program that prints JSON makes dicts of them."""

    @workflow(name="told")
    def told() -> int:
        return durable.run_step(int, "7")

    handle = told.start()
    handle.result()
    assert handle.info()._asdict()["name"] == "told"
    assert [each._asdict()["value"] for each in handle.steps()] == [7]
    assert [each._asdict()["result"] for each in engine.workflows()] == [7]
