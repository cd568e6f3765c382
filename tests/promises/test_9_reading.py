"""Promise 9: reading a file never runs code that the file names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import durable
from durable import Engine, Opaque, step, workflow
from tests.support import until

EVIL = [
    '{"$dataclass": "os:system", "fields": {"command": "touch EVIL"}}',
    '{"$enum": ["subprocess:Popen", "touch EVIL"]}',
    '{"$error": "os:system", "args": ["touch EVIL"]}',
    '{"$namedtuple": ["this_module_is_evil:Boom", [1]]}',
    '{"$os.system": "touch EVIL"}',
]


@step
def plain() -> int:
    return 1


@workflow
def job() -> int:
    return plain()


@pytest.mark.parametrize("text", EVIL)
def test_nothing_named_in_the_file_is_run_or_imported(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """N32: records that name functions and modules are shown as text; nothing is called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "this_module_is_evil.py").write_text("open('EVIL', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with Engine(path) as engine:
        handle = job.options(id="one").start()
        handle.result()

        def poison(tx: object) -> None:
            for table, column in (
                ("durable_step", "value"),
                ("durable_workflow", "result"),
                ("durable_workflow", "input"),
            ):
                tx.execute(f"UPDATE {table} SET {column} = :text", {"text": text})  # type: ignore[attr-defined]

        engine._open_engine().database.write("poison", poison)
        info = handle.info()
        assert isinstance(info.result, Opaque)
        assert isinstance(handle.steps()[0].value, Opaque)
        assert engine.workflows()
        del handle  # which knows the result from before, as does its run
        until(lambda: engine._open_engine().fates.of("one") is None)
        with pytest.raises(durable.SerializationError):
            engine.handle("one").result()
    assert not (tmp_path / "EVIL").exists()
    assert "this_module_is_evil" not in sys.modules
