"""Declaring workflows and steps, and calling them in every way there is."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import durable
from durable import Engine, Status, step, workflow
from tests.support import PATIENCE, Gate, dying


@step
def double(n: int) -> int:
    return 2 * n


@workflow
def quadruple(n: int) -> int:
    return double(double(n))


class Shop:
    def __init__(self, name: str) -> None:
        self.durable_key = name
        self.orders: list[str] = []

    @workflow
    def sell(self, order: str, *, gift: bool = False) -> str:
        return self.pack(order) + ("+ribbon" if gift else "")

    @step
    def pack(self, order: str) -> str:
        self.orders.append(order)
        return f"{self.durable_key}:{order}"

    @workflow
    @staticmethod
    def price(order: str) -> int:
        return double(len(order))

    @staticmethod
    @workflow
    def discount(order: str) -> int:
        return double(-len(order))

    @workflow
    @classmethod
    def describe(cls, order: str) -> str:
        return cls.label(order)

    @step
    @classmethod
    def label(cls, order: str) -> str:
        return f"{cls.__name__}/{order}"


class Boutique(Shop):
    pass


def test_call_returns_the_result(engine: Engine) -> None:
    """A workflow that is called runs here and returns its result."""
    assert quadruple(3) == 12


def test_start_returns_a_handle(engine: Engine) -> None:
    """`start` runs in the background; the handle gives the result."""
    handle = quadruple.start(3)
    assert handle.result(PATIENCE) == 12
    assert handle.info().status is Status.SUCCESS


def test_engine_run_and_start(engine: Engine) -> None:
    """`engine.run` and `engine.start` do the same on an engine that is named."""
    assert engine.run(quadruple, 3) == 12
    assert engine.start(quadruple, n=4).result(PATIENCE) == 16


def test_fn_is_the_plain_function() -> None:
    """`fn` is the function itself: no engine, nothing recorded."""
    assert quadruple.fn(3) == 12
    assert Shop("x").sell.fn("a") == "x:a"


def test_step_outside_a_workflow_is_a_plain_call() -> None:
    """A step called outside a workflow needs no engine."""
    assert double(2) == 4


def test_no_engine() -> None:
    """A workflow called without an open engine says what is missing."""
    with pytest.raises(durable.NoEngine, match="test_declare:quadruple"):
        quadruple(1)


def test_same_id_attaches(engine: Engine) -> None:
    """An id that exists attaches to that run, finished or not: the body runs once."""
    first = quadruple.options(id="one").start(1)
    again = quadruple.options(id="one").start(999)
    assert first.result(PATIENCE) == again.result(PATIENCE) == 4
    assert quadruple.options(id="one")(999) == 4


def test_other_workflow_under_that_id_is_a_conflict(engine: Engine) -> None:
    """An id that belongs to another workflow is refused, and that one is not touched."""
    quadruple.options(id="one")(1)
    with pytest.raises(durable.WorkflowConflict, match=r"one.*quadruple.*price"):
        Shop.price.options(id="one").start("a")
    assert engine.handle("one").result() == 4


def test_twenty_threads_one_id(engine: Engine) -> None:
    """N04: twenty threads that start one id make one run and get twenty equal results."""
    ran: list[int] = []

    @workflow
    def once() -> int:
        ran.append(1)
        return durable.run_step(lambda: len(ran))

    results: list[int] = []
    barrier = threading.Barrier(20)

    def start(inline: bool) -> None:
        barrier.wait(PATIENCE)
        function = once.options(id="one")
        results.append(function() if inline else function.start().result(PATIENCE))

    threads = [threading.Thread(target=start, args=(n % 2 == 0,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert ran == [1]
    assert results == [1] * 20


@pytest.mark.slow
def test_restarting_an_id_counts_nothing(engine: Engine) -> None:
    """N05: starting a running or finished id again and again is not an attempt of anything."""
    gate = Gate()

    @workflow(max_recoveries=1)
    def slow() -> str:
        gate.pass_through()
        return "done"

    handle = slow.options(id="one").start()
    gate.wait_reached()
    for _ in range(500):
        slow.options(id="one").start()
    gate.open()
    assert handle.result(PATIENCE) == "done"
    for _ in range(500):
        slow.options(id="one").start()
    assert handle.info().recoveries == 0


def test_user_parameters_may_have_any_name(engine: Engine) -> None:
    """N51: parameters called status, id, timeout, name, self and fn belong to the user."""

    @workflow
    def wf(
        status: str,
        id: str,  # noqa: A002
        timeout: int,
        name: str,
        fn: str,
        args: str,
    ) -> list[object]:
        return [status, id, timeout, name, fn, args]

    given = {"status": "a", "id": "b", "timeout": 1, "name": "c", "fn": "d", "args": "e"}
    assert wf(**given) == list(given.values())
    assert wf.start(**given).result(PATIENCE) == list(given.values())


def test_wrong_arguments_are_refused_before_anything_is_written(engine: Engine) -> None:
    """A call that the function does not take raises TypeError at once."""
    with pytest.raises(TypeError, match="argument"):
        quadruple.start(1, 2)  # type: ignore[call-arg]
    assert engine.workflows() == []


def test_methods(engine: Engine) -> None:
    """Instance, static and class methods work as workflows, in either order of decorators."""
    shop = Shop("north")
    assert shop.sell("a", gift=True) == "north:a+ribbon"
    assert shop.sell.start("b").result(PATIENCE) == "north:b"
    assert shop.orders == ["a", "b"]
    assert Shop.price("abc") == 6
    assert Shop.discount("abc") == -6
    assert Shop.describe("x") == "Shop/x"
    assert Boutique.describe.start("x").result(PATIENCE) == "Boutique/x"


def test_methods_are_recovered_on_their_instance_and_class(path: str) -> None:
    """After a crash, a method goes on with its own instance, a class method with its own class."""
    gate = Gate()

    class Counter:
        durable_key = "c"

        @workflow
        def count(self) -> str:
            durable.recv("go")
            return f"{self.durable_key}"

    with dying(path):
        Boutique.describe.options(id="class")("x")
        Counter().count.options(id="instance").start()
    del gate
    with Engine(path) as engine:
        engine.send("instance", None, "go")
        assert engine.handle("instance").result(PATIENCE) == "c"
        assert engine.handle("class").fork().result(PATIENCE) == "Boutique/x"


def test_instance_without_a_key(engine: Engine) -> None:
    """An instance that could not be found again is refused when the workflow is started."""

    class Keyless:
        @workflow
        def work(self) -> None: ...

    with pytest.raises(durable.InvalidArgument, match="durable_key"):
        Keyless().work()


def test_a_second_function_under_a_taken_name() -> None:
    """Two different functions under one name: an error when the second is declared."""

    @workflow(name="taken-name")
    def first() -> None: ...

    with pytest.raises(durable.DuplicateName, match=r"taken-name.*first.*second"):

        @workflow(name="taken-name")
        def second() -> None: ...


def test_declaring_the_same_function_again_is_a_reload() -> None:
    """The same function declared again replaces the first."""
    for value in (1, 2):

        @workflow
        def again(value: int = value) -> int:
            return value

    with Engine(":memory:"):
        assert again() == 2


def test_reload_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`importlib.reload` declares everything again, also where lines have moved."""
    file = tmp_path / "reloaded_module.py"
    file.write_text("import durable\n@durable.workflow\ndef wf(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_module")
    file.write_text("import durable\n# moved\n\n@durable.workflow\ndef wf(): return 22\n")
    importlib.invalidate_caches()
    with Engine(":memory:"):
        assert module.wf() == 1
        importlib.reload(module)
        assert module.wf() == 22


def test_same_function_name_in_two_modules(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N44: the same name in two modules: each resumes in its own code, in any import order."""
    for each in ("module_a", "module_b"):
        (tmp_path / f"{each}.py").write_text(
            "import durable\n@durable.workflow\ndef wf():\n"
            f"    durable.recv()\n    return '{each}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import module_a  # type: ignore[import-not-found]
    import module_b  # type: ignore[import-not-found]

    with dying(path):
        module_a.wf.options(id="a").start()
        module_b.wf.options(id="b").start()
    with Engine(path) as engine:
        for each in "ab":
            engine.send(each, None)
            assert engine.handle(each).result(PATIENCE) == f"module_{each}"


@pytest.mark.slow
def test_main_is_called_by_its_file(tmp_path: Path) -> None:
    """N45: `python app.py`, `python -m app` and `import app` know a workflow by the same name."""
    (tmp_path / "app.py").write_text(
        "import durable\n@durable.workflow\ndef wf(): ...\n"
        "if __name__ == '__main__': print(wf.name)\n"
    )
    calls = (["app.py"], ["-m", "app"], ["-c", "import app; print(app.wf.name)"])
    root = str(Path(__file__).parent.parent)
    for arguments in calls:
        shown = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout == "app:wf\n"


def test_aliases(path: str) -> None:
    """A run recorded under an old name goes on in the function that has it as an alias."""

    @workflow(name="old-name")
    def before() -> str:
        return str(durable.recv())

    with dying(path):
        before.options(id="one").start()
    durable.declare.registry._workflows.pop("old-name")

    @workflow(name="new-name", aliases=["old-name"])
    def after() -> str:
        return "new " + str(durable.recv())

    with Engine(path) as engine:
        engine.send("one", "code")
        assert after.options(id="one").start().result(PATIENCE) == "new code"


def test_tags_and_timeout_options(engine: Engine) -> None:
    """Options are kept with the run: tags to find it by, a deadline from its start."""
    handle = quadruple.options(id="one", tags=["red", "blue"], timeout=60).start(1)
    handle.result(PATIENCE)
    info = handle.info()
    assert info.tags == ("red", "blue")
    assert info.deadline_at is not None
    assert (info.deadline_at - info.created_at).total_seconds() == 60
    assert [each.id for each in engine.workflows(tag="blue")] == ["one"]
    assert engine.workflows(tag="green") == []


def test_run_step(engine: Engine) -> None:
    """`run_step` makes any callable a step, under its own name."""

    @workflow
    def wf() -> int:
        return durable.run_step(max, 3, 5) + durable.run_step(len, "abc")

    handle = wf.start()
    assert handle.result(PATIENCE) == 8
    assert [each.name for each in handle.steps()] == ["builtins:max", "builtins:len"]
