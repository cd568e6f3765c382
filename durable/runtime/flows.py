"""Flows: durable calls as generators that yield what they want done, and the two that do it.

A flow yields commands (`Write`, `Read`, `Wait`, `Call`, …). `drive` does them on the calling
thread, `drive_async` in the calling task of an event loop. So each call is written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from types import CoroutineType
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from durable.errors import EngineClosed, StorageError, WaitTimeout, WorkflowCancelled
from durable.runtime.context import (
    Scope,
    StepCall,
    WasCancelled,
    enter,
    here,
    run_in_step,
)
from durable.runtime.file import File
from durable.runtime.lanes import begin_task, engine_loop, placed
from durable.runtime.loops import Inside, OnLoop, Signal
from durable.runtime.registry import StepSpec
from durable.runtime.runs import Stopped
from durable.runtime.waiting import AsyncListener, Listener
from durable.store.steps import Place
from durable.store.tx import Tx
from durable.store.workflows import RunIsOver

T = TypeVar("T")


class Actor(Protocol):
    """For whom a flow is driven: a `Scope` in a workflow, or `Outside`."""

    @property
    def file(self) -> File:
        """Where it reads, writes and waits."""

    @property
    def stop_keys(self) -> tuple[str, ...]:
        """What ends its waits, besides what it waits for."""

    def on_loop(self) -> OnLoop:
        """The running event loop."""

    def check(self) -> None:
        """Raise Stopped if it is to stop."""

    def begin(self) -> None:
        """The first command is about to be done; Stopped where nothing may be done any more."""

    def explain(self, error: Exception) -> BaseException:
        """What to raise where the run is over, or the file failed."""

    @property
    def replaying(self) -> bool:
        """Whether something is recorded that was not asked for."""

    async def begin_anew(self) -> None:
        """Wait for what is recorded, before something that is not is begun on an event loop."""

    @property
    def cancelled(self) -> dict[Place, str]:
        """Calls that the code has cancelled, and that are not recorded yet."""

    def record_cancelled(self, tx: Tx, calls: dict[Place, str]) -> None:
        """Record those."""


class Outside:
    """Code that runs in no workflow, or for no step of one: nothing stops it."""

    __slots__ = ("_on_loop", "file")

    stop_keys: tuple[str, ...] = ()

    def __init__(self, file: File) -> None:
        self.file = file
        self._on_loop: OnLoop | None = None

    def on_loop(self) -> OnLoop:
        """The running event loop, on which this code stays."""
        if self._on_loop is None:
            self._on_loop = self.file.on_loop()
        return self._on_loop

    def check(self) -> None:
        """It has no run that might stop."""

    def begin(self) -> None:
        """It may do anything at any time."""

    def explain(self, error: Exception) -> BaseException:
        """The error itself."""
        return error

    @property
    def replaying(self) -> bool:
        """It has no records."""
        return False

    async def begin_anew(self) -> None:
        """It has no records."""

    @property
    def cancelled(self) -> dict[Place, str]:
        """It has no calls that are recorded."""
        return {}

    def record_cancelled(self, tx: Tx, calls: dict[Place, str]) -> None:
        """There are none."""


def actor(file: File, scope: Scope | None) -> Actor:
    """The scope in the body of a workflow, else `Outside`."""
    return Outside(file) if scope is None or isinstance(scope, StepCall) else scope


class Command(Protocol):
    """What a flow may ask its driver to do."""

    def perform(self, actor: Actor) -> Any:
        """Do it on the calling thread."""

    def perform_async(self, actor: Actor) -> Awaitable[Any]:
        """Do it for the calling task, while the event loop goes on."""


Flow = Generator[Command, Any, T]


NO_MORE_WRITES = (RunIsOver, StorageError, EngineClosed)
"""What a write ends in where the run is over, or where the file can take nothing."""

NOTHING_CANCELLED: dict[Place, str] = {}  # of nearly all writes: nobody adds to it


class Write(Generic[T]):
    """Run `fn` in a transaction; `on_commit` and `single` are as in `Database.write`.

    What cancels its task meanwhile has `interrupted` it, and waits for the file's answer. After one
    that is `unhurried`, its thread or task waits for a while.
    """

    __slots__ = ("fn", "interrupted", "label", "on_commit", "single", "unhurried")

    def __init__(
        self,
        label: str,
        fn: Callable[[Tx], T],
        on_commit: Callable[[T], None] | None = None,
        single: bool = False,
        *,
        unhurried: bool = False,
    ) -> None:
        self.label = label
        self.fn = fn
        self.on_commit = on_commit
        self.single = single
        self.unhurried = unhurried
        self.interrupted: asyncio.CancelledError | None = None

    def perform(self, actor: Actor) -> T:
        """What `fn` returned; Stopped where the run, or anybody, cannot write any more."""
        database = actor.file.database
        try:
            write = database.write_by_writer if self.unhurried else database.write
            return write(self.label, self.fn, self.on_commit, self.single)
        except NO_MORE_WRITES as error:
            raise actor.explain(error) from None

    async def perform_async(self, actor: Actor) -> T:
        """As `perform`, on another thread."""
        on_loop, fn, database = actor.on_loop(), self.fn, actor.file.database
        if (turn := on_loop.take_turn()) is not None:
            await turn
        cancelled, single = NOTHING_CANCELLED, self.single
        if actor.cancelled:
            cancelled, single = dict(actor.cancelled), False
            fn = partial(_write_with_cancelled, actor, cancelled, fn)
        signal = Signal(on_loop)
        try:
            request = database.write_later(self.label, fn, signal.give, self.on_commit, single)
            while not signal.given:
                try:
                    await signal
                except asyncio.CancelledError as error:
                    self.interrupted = error
                    on_loop.look_again()
                    if request.told:  # a Ctrl-C on the loop may have lost the signal
                        break
            if database.observer is not None:
                database.observer.after(self.label)
            answer = request.outcome()
        except NO_MORE_WRITES as error:
            raise actor.explain(error) from None
        for place in cancelled:
            actor.cancelled.pop(place, None)
        return answer


def _write_with_cancelled(
    actor: Actor, cancelled: dict[Place, str], fn: Callable[[Tx], T], tx: Tx
) -> T:
    actor.record_cancelled(tx, cancelled)
    return fn(tx)


class LastWrite(Write[T]):
    """The last write of a flow, unless it fails: the thread need not wait for it."""

    def leave(self, actor: Actor, on_done: Callable[[Settled[T]], None]) -> None:
        """Have it done; `on_done` as in `Database.write_or_leave`."""
        file = actor.file
        try:
            file.database.write_or_leave(
                self.label,
                self.fn,
                lambda outcome: on_done(Settled(outcome)),
                self.on_commit,
                self.single,
            )
        except EngineClosed as error:
            on_done(Settled(partial(_raise, error)))


class Settled(Generic[T]):
    """A write that has ended without its thread."""

    def __init__(self, outcome: Callable[[], T]) -> None:
        self.outcome = outcome

    @property
    def failed(self) -> bool:
        """Whether it raises."""
        try:
            self.outcome()
        except BaseException:
            return True
        return False

    def perform(self, actor: Actor) -> T:
        """As `Write.perform`."""
        try:
            return self.outcome()
        except NO_MORE_WRITES as error:
            raise actor.explain(error) from None


def _raise(error: Exception) -> NoReturn:
    raise error


class Read(Generic[T]):
    """Look at the file."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[Tx], T]) -> None:
        self.fn = fn

    def perform(self, actor: Actor) -> T:
        """What `fn` returned; Stopped where the file cannot be read."""
        try:
            return actor.file.database.read(self.fn)
        except (StorageError, EngineClosed) as error:
            raise actor.explain(error) from None

    async def perform_async(self, actor: Actor) -> T:
        """As `perform`: a look waits for nobody, not even for those who write."""
        on_loop = actor.on_loop()
        if (turn := on_loop.take_turn()) is not None:
            await turn
        return self.perform(actor)


class Listen:
    """Register under keys, to look and wait afterwards; gives the listener, a context manager."""

    __slots__ = ("keys",)

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def perform(self, actor: Actor) -> Listener:
        """A listener for the calling thread."""
        return actor.file.waiting.listen(*self.keys, *actor.stop_keys)

    async def perform_async(self, actor: Actor) -> AsyncListener:
        """A listener for the calling task."""
        file = actor.file
        return file.waiting.listen_on(actor.on_loop(), *self.keys, *actor.stop_keys)


class Wait:
    """Wait until the listener is notified or the moment has come."""

    __slots__ = ("deadline", "listener")

    def __init__(self, listener: Any, deadline: float | None) -> None:
        self.listener = listener
        self.deadline = deadline

    def perform(self, actor: Actor) -> None:
        """Wait; Stopped if that is why it ended."""
        actor.check()
        self.listener.wait(self.deadline)
        actor.check()

    async def perform_async(self, actor: Actor) -> None:
        """As `perform`."""
        actor.check()
        await self.listener.wait(self.deadline)
        actor.check()


class Pause:
    """Wait until the moment has come.

    As `Listen` and `Wait` in turns, but not in the flow: what waits inside of a generator, for days
    perhaps, takes more of the thread's stack, and ten thousand may wait.
    """

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until

    def perform(self, actor: Actor) -> None:
        """Wait; Stopped if that is why it ended."""
        file, until = actor.file, self.until
        with file.waiting.listen(*actor.stop_keys) as listener:
            while file.clock.now() < until:
                actor.check()
                listener.wait(until)
                actor.check()

    async def perform_async(self, actor: Actor) -> None:
        """As `perform`."""
        file, until = actor.file, self.until
        with file.waiting.listen_on(actor.on_loop(), *actor.stop_keys) as listener:
            while file.clock.now() < until:
                actor.check()
                await listener.wait(until)
                actor.check()


class Call:
    """Run the body of a step."""

    __slots__ = ("fn", "spec", "step")

    def __init__(self, spec: StepSpec, step: StepCall, fn: Callable[[], Any]) -> None:
        self.spec = spec
        self.step = step
        self.fn = fn

    def perform(self, actor: Actor) -> Any:
        """What the body returned; a coroutine runs on the engine's loop meanwhile."""
        if self.spec.is_async:
            return run_on_loop(self.step, self._await_step)
        return run_in_step(self.step, self.fn)

    def perform_async(self, actor: Actor) -> Awaitable[Any]:
        """As `perform`; a plain function runs on a thread meanwhile."""
        if self.spec.is_async:
            return self._await_step()
        step = self.step
        host, name = step.host, f"durable {step.run.id} step {step.place}"
        return step.on_loop().run_beside(
            partial(host.spawn, name), partial(run_in_step, step, self.fn)
        )

    def _await_step(self) -> Coroutine[Any, Any, Any]:
        return await_step(self.spec, self.step, self.fn)


async def await_step(spec: StepSpec, step: StepCall, fn: Callable[[], Any]) -> Any:
    """What the body of the step returns, a coroutine, in time."""
    on_loop = step.run.loop  # asyncio would take a system call to find it
    task = asyncio.current_task(None if on_loop is None else on_loop.loop)
    assert task is not None
    asked = task.cancelling()
    before = here()
    try:
        enter(step)
        value = fn()
        if not isinstance(value, CoroutineType):  # something else was put in its place
            return value
        unguard, timeout = step.host.hooks.unguard, spec.timeout
        if unguard is not None:
            value = Inside(unguard, value)
        return await (value if timeout is None else _in_time(spec, value, timeout))
    except asyncio.CancelledError as error:
        if task.cancelling() > asked:
            raise
        raise WorkflowCancelled(
            step.run.id,
            f"its step {spec.name!r} awaited something that had been cancelled",
        ) from error
    finally:
        enter(before)


async def _in_time(spec: StepSpec, coroutine: Coroutine[Any, Any, Any], seconds: float) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await coroutine
    except TimeoutError:
        if not limit.expired():
            raise
        raise WaitTimeout(f"the result of step {spec.name!r}", seconds) from None


def run_on_loop(step: StepCall, coroutine: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a coroutine returns that runs on the engine's loop while the calling thread waits."""
    host, key = step.host, f"coroutine/{step.run.id}/{step.place}"
    tasks: list[asyncio.Task[T]] = []

    def begin() -> None:
        tasks.append(begin_task(loop, coroutine()))
        tasks[0].add_done_callback(lambda task: host.waiting.notify([key]))

    def cancel() -> None:
        tasks[0].cancel()

    with host.waiting.listen(key, step.run.stop_key) as listener:
        loop = engine_loop(host)
        loop.post(begin)
        while not (tasks and tasks[0].done()):
            if step.run.stopping:
                loop.post(cancel)
                raise Stopped(step.run.id)
            listener.wait(None)
    return tasks[0].result()


class Spawn:
    """Have a flow driven beside this one."""

    __slots__ = ("begin", "name", "scope")

    def __init__(self, name: str, begin: Callable[[], Flow[None]], scope: Scope) -> None:
        self.name = name
        self.begin = begin
        self.scope = scope

    def perform(self, actor: Actor) -> None:
        """Drive it on a thread of its own."""
        self.scope.host.spawn(self.name, self._run)

    def _run(self) -> None:
        run = self.scope.run
        run.beside.add(self)
        try:
            drive(self.begin(), self.scope)
        finally:
            run.beside.discard(self)

    async def perform_async(self, actor: Actor) -> None:
        """Drive it in a task of its own."""
        task = begin_task(actor.on_loop(), drive_async(self.begin(), self.scope))
        self.scope.run.beside.add(task)
        task.add_done_callback(self.scope.run.beside.discard)


# ---------------------------------------------------------------------- the two drivers


class Carried(Exception):
    """Takes a StopIteration out of a flow: as it is, a generator would make it a RuntimeError."""

    def __init__(self, error: StopIteration) -> None:
        self.error = error


def carried(error: BaseException) -> BaseException:
    """The error, as a flow may raise it."""
    return Carried(error) if isinstance(error, StopIteration) else error


def drive(flow: Flow[T], actor: Actor, asked_for: Any = None) -> T:
    """What the flow returns, when all that it asks for is done on the calling thread.

    One that has begun goes on with what it has `asked_for`. One that a Ctrl-C leaves in the middle
    is closed here: the error may hold it until the garbage is collected, which is no time and no
    thread to clean up on (it takes locks).
    """
    try:
        command = asked_for or next(flow)
        begun = False
        while True:
            try:
                if not begun:
                    begun = True
                    actor.begin()
                answer = command.perform(actor)
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(answer)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    except Carried as carried:
        raise carried.error from None
    except BaseException:
        flow.close()
        raise


def drive_to_last_write(flow: Flow[T], actor: Actor) -> LastWrite[Any] | T:
    """The last write that the flow asks for, to be done elsewhere; else what it returns."""
    try:
        command = next(flow)
        while not isinstance(command, LastWrite):
            try:
                answer = command.perform(actor)
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(answer)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    return command


async def drive_async(flow: Flow[T], actor: Actor) -> T:
    """What the flow returns, when all that it asks for is awaited in the calling task.

    A cancellation that comes during a write is raised after it, at the next wait of the flow or at
    its end: what is half done belongs to nobody.
    """
    interrupted: asyncio.CancelledError | None = None
    try:
        command = next(flow)
        begun = False
        while True:
            try:
                if not begun:
                    begun = True
                    await _begin_anew(actor)
                if isinstance(command, Write):
                    try:
                        answer = await command.perform_async(actor)
                    finally:
                        interrupted = command.interrupted or interrupted
                elif interrupted is not None:
                    raise interrupted
                else:
                    answer = await command.perform_async(actor)
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(answer)
    except StopIteration as done:
        if interrupted is not None:
            raise interrupted from None
        return done.value  # type: ignore[no-any-return]
    except Carried as carried:
        raise carried.error from None
    except BaseException:
        flow.close()  # as in `drive`
        raise


async def _begin_anew(actor: Actor) -> None:
    if actor.replaying:
        await actor.begin_anew()
    actor.begin()


def perform(
    file: File, scope: Scope | None, call: Callable[[Scope | None], Flow[T]], *, places: int = 1
) -> Coroutine[Any, Any, T]:
    """What the call returns, awaited; in the body of a workflow it has its number from now on.

    A call that is recorded at several `places` has as many numbers.
    """
    if scope is None or isinstance(scope, StepCall):
        return drive_async(call(scope), Outside(file))
    return perform_in(scope.take(places), call)


def perform_in(scope: Scope, call: Callable[[Scope], Flow[T]]) -> Coroutine[Any, Any, T]:
    """What the call returns, awaited at the next place of that scope."""
    return await_in(scope, lambda inner: drive_async(call(inner), inner))


async def await_in(scope: Scope, call: Callable[[Scope], Coroutine[Any, Any, T]]) -> T:
    """What the coroutine returns that is at the next place of that scope.

    If the code of the workflow cancels it (a timeout, a task group), that is an outcome as well: it
    is recorded with what the workflow does next, and a replay waits to be cancelled again. A run
    that is stopped sees it as a cancellation, too.
    """
    number = scope.number
    try:
        return await call(scope)
    except CUT_SHORT as error:
        return await end_cut_short(scope, number + 1, scope.name, error)


placed.add(await_in.__code__)


CUT_SHORT = (WasCancelled, Stopped, asyncio.CancelledError)
"""What ends a call in the body of a coroutine that has no outcome of its own."""


async def end_cut_short(scope: Scope, number: int, name: str, error: BaseException) -> NoReturn:
    """What becomes of the call of that number, as `await_in` says."""
    if isinstance(error, WasCancelled):
        await asyncio.get_running_loop().create_future()
    if isinstance(error, Stopped):
        scope.run.interrupted.update(filter(None, [asyncio.current_task()]))
        raise asyncio.CancelledError(*error.args) from None
    if not scope.run.stopping:
        scope.run.cancelled[Place(scope.lane, number)] = name
    raise error
