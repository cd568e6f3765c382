"""One run, from its first line to its outcome."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from durable.codec import Codec, decode_error, error_is_exact
from durable.errors import (
    DurableError,
    EngineClosed,
    NonDeterminism,
    SerializationError,
    StorageError,
    WorkflowCancelled,
)
from durable.interrupts import is_ctrl_c, on_main_thread
from durable.runtime import steps
from durable.runtime.checkpoint import error_outcome
from durable.runtime.context import body_scope, enter, enter_run, here
from durable.runtime.flows import (
    Actor,
    Flow,
    LastWrite,
    Outside,
    Settled,
    Write,
    drive,
    drive_async,
    drive_to_last_write,
)
from durable.runtime.hooks import Guard
from durable.runtime.host import Host, log
from durable.runtime.lanes import begin_task, engine_loop
from durable.runtime.loops import Inside
from durable.runtime.parallel import finish_all
from durable.runtime.registry import StepSpec, find_target
from durable.runtime.runs import Run, Stopped
from durable.store import workflows
from durable.store.steps import ERROR, VALUE, Outcome
from durable.store.tx import Tx


class Ended(NamedTuple):
    """A recorded outcome, and the very exception if there is one."""

    outcome: Outcome
    error: Exception | None = None

    def value(self, codec: Codec) -> Any:
        """What the workflow returned, or raise what it raised."""
        text = self.outcome.text or ""
        if self.error is None:
            return codec.decode(text)
        raise self.error if error_is_exact(text) else decode_error(text)


def launch(host: Host, run: Run, *, on_this_thread: bool = False) -> None:
    """Run the workflow on a thread or in a task of its own; it must be among `host.runs`.

    A plain one may run `on_this_thread`, as soon as that has done what it does now.
    """
    if run.fate is not None:
        run.fate.run = run
    try:
        if run.spec.is_async:
            run.loop = engine_loop(host)
            run.loop.post(partial(_begin_task, host, run))
        else:
            spawn = host.spawn_next if on_this_thread else host.spawn
            spawn(f"durable {run.id}", lambda: _in_background(host, run))
        run.thread = None
    except Exception:
        host.runs.remove(run)
        _tell(host, run)
        raise


def _in_background(host: Host, run: Run) -> None:
    """Run the workflow on this thread, where nobody waits for it: what goes wrong is logged.

    The thread does not wait for the commit of its end, but where it is to run what is next in a
    queue, or somebody observes each write.
    """
    try:
        if run.slot is None and host.database.observer is None:
            flow = _live(host, run)
            ended = drive_to_last_write(flow, Outside(host))
            if isinstance(ended, LastWrite):
                _Ending(host, run, flow).leave(ended)
                return
        else:
            ended = run_here(host, run)
    except BaseException as error:
        _report_failure(run, error)
    else:
        _report(run, ended)


class _Ending:
    """The end of a run whose thread has gone, or is about to: who commits it does the rest."""

    def __init__(self, host: Host, run: Run, flow: Flow[Ended | None]) -> None:
        self._host = host
        self._run = run
        self._flow = flow
        self._left = [run]

    def leave(self, last: LastWrite[bool]) -> None:
        """Have the end committed, by this thread if no other does."""
        last.leave(Outside(self._host), self._committed)

    def _committed(self, last: Settled[bool]) -> None:
        """Go on, on the thread that commits; elsewhere if a Ctrl-C may come there, or it failed."""
        if last.failed or on_main_thread():
            try:
                self._host.spawn(f"durable {self._run.id}", partial(self._end, last))
                return
            except RuntimeError:
                pass  # no thread can be started
        self._end(last)

    def _end(self, last: Settled[bool]) -> None:
        try:
            run = self._left.pop()
        except IndexError:
            return  # it may be told twice that it is committed
        try:
            ended = drive(self._flow, Outside(self._host), last)
        except BaseException as error:
            _report_failure(run, error)
        else:
            _report(run, ended)


def _begin_task(host: Host, run: Run) -> None:
    assert run.loop is not None
    begin_task(run.loop, _in_task(host, run))


async def _in_task(host: Host, run: Run) -> None:
    run.task = asyncio.current_task()  # not before: a task that has not begun would never begin
    try:
        ended = await drive_async(_live(host, run), Outside(host))
    except asyncio.CancelledError:
        pass  # the file says what became of it
    except BaseException as error:
        _report_failure(run, error)
        if is_ctrl_c(error):
            raise  # out of the event loop of the program, as from any other task
    else:
        _report(run, ended)


def _report(run: Run, ended: Ended | None) -> None:
    """Nobody may ever ask how it ended."""
    if ended is not None and ended.error is not None:
        kind = type(ended.error).__name__
        log.warning("workflow %r (%s) ended in %s: %s", run.id, run.name, kind, ended.error)


def _report_failure(run: Run, error: BaseException) -> None:
    if isinstance(error, EngineClosed):
        return
    what = error if isinstance(error, DurableError) else f"{type(error).__name__} {error}"
    log.error("workflow %r (%s) is unfinished: %s", run.id, run.name, what)


def run_here(host: Host, run: Run) -> Ended | None:
    """How the workflow ended, run on this thread; None if the file tells (it was cancelled).

    Raises what left it unfinished: KeyboardInterrupt and the like, EngineClosed, StorageError.
    """
    return drive(_live(host, run), Outside(host))


def _live(host: Host, run: Run) -> Flow[Ended | None]:
    """The run from its first line to its outcome; as `run_here`."""
    timer = None
    try:
        if run.deadline_at is None and run.timeout is not None:
            run.deadline_at = host.clock.now() + run.timeout
        if run.deadline_at is not None:
            timer = host.timers.at(run.deadline_at, partial(_expire, host, run))
        ended = _what_counts(run, (yield Body(host, run)))
        if ended is None:
            return None
        return ended if (yield from _finish(host, run, ended)) else None
    except GeneratorExit:  # nobody drives it any more
        run.stop(
            EngineClosed(
                f"workflow {run.id!r} is unfinished: a Ctrl-C interrupted it, or its event loop "
                "was closed; it goes on when an engine opens the file, or at engine.recover()"
            )
        )
        raise
    except BaseException as error:
        reason = error.error if isinstance(error, _BodyExit) else error
        run.stop(reason)
        yield from _leave_unfinished(host, run, reason)
        raise reason from reason.__cause__
    finally:
        if timer is not None:
            host.timers.cancel(timer)
        host.runs.remove(run)
        _tell(host, run)


def _tell(host: Host, run: Run) -> None:
    """The run goes on no more: let those look who wait for it to end, or to fail."""
    keys = [] if run.failure is None else [run.end_key]
    if run.fate is not None:
        run.fate.run = None
        keys.append(run.stop_key)
    if keys:
        host.waiting.notify(keys)


def _what_counts(run: Run, ended: Ended | None) -> Ended | None:
    """What is to be recorded, if anything; raise what left the run unfinished."""
    if ended is not None or run.failure is None:
        return ended
    if not isinstance(run.failure, NonDeterminism):
        raise run.failure
    failure, run.failure = run.failure, None
    return Ended(error_outcome(failure), failure)


class _BodyExit(BaseException):
    """Takes a GeneratorExit that a body raised through the flow, to which it means its own end."""

    def __init__(self, error: GeneratorExit) -> None:
        self.error = error


class Body:
    """Run the function of the workflow."""

    def __init__(self, host: Host, run: Run) -> None:
        self.host = host
        self.run = run

    def perform(self, actor: Actor) -> Ended | None:
        """How it ended; None if the run was stopped, whatever the function says."""
        return call_body(self.host, self.run)

    def perform_async(self, actor: Actor) -> Awaitable[Ended | None]:
        """As `perform`, for a coroutine."""
        return await_body(self.host, self.run)


def call_body(host: Host, run: Run) -> Ended | None:
    """The outcome of the function; None if the run was stopped, whatever the function says."""
    before = here()
    try:
        if host.stopping:
            run.stop(host.closed_error())
        try:
            scope = enter_run(host, run)
            run.check()
            try:
                value = _function_result(host, run)
            except Exception:
                finish_all(scope)
                raise
            finish_all(scope)
        finally:
            enter(before)
        run.check()
        return Ended(_encode(host, run, value))
    except Stopped:
        return None
    except Exception as error:
        return None if run.stopping else Ended(error_outcome(error), error)
    except GeneratorExit as error:
        raise _BodyExit(error) from None


async def await_body(host: Host, run: Run) -> Ended | None:
    """As `call_body`, for a coroutine; the tasks that it leaves are cancelled at its end."""
    task = asyncio.current_task()
    assert task is not None
    before = here()
    try:
        if host.stopping:
            run.stop(host.closed_error())
        try:
            enter_run(host, run)
            run.check()
            try:
                function, guard = _function(host, run)
                value = function()
                if inspect.iscoroutine(value):  # else something was put in its place
                    value = await (value if guard is None else Inside(guard, value))
            finally:
                await _end_tasks(run)
        finally:
            enter(before)
        run.check()
        return Ended(_encode(host, run, value))
    except (KeyboardInterrupt, SystemExit):
        raise
    except asyncio.CancelledError as error:
        if run.stopping:
            return None
        if task.cancelling():
            raise
        leaked = WorkflowCancelled(run.id, "it awaited something that had been cancelled")
        leaked.__cause__ = error
        return Ended(error_outcome(leaked), leaked)
    except Exception as error:
        return None if run.stopping else Ended(error_outcome(error), error)
    except BaseException:  # Stopped, or a group with it
        if run.stopping:
            return None
        raise


async def _end_tasks(run: Run) -> None:
    """Cancel the tasks that are left, and wait until they have cleaned up."""
    tasks = [each for each in run.beside if isinstance(each, asyncio.Task)]
    run.interrupt(tasks)
    if tasks:
        await asyncio.wait(tasks)


def _function_result(host: Host, run: Run) -> Any:
    function, guard = _function(host, run)
    if guard is None:
        return function()
    with guard():
        return function()


def _function(host: Host, run: Run) -> tuple[Callable[[], Any], Guard | None]:
    """What to call, and what surrounds it."""
    args, kwargs, target = host.decode_input(run.input)
    bound_to, _ = find_target(target)
    bound = () if bound_to is None else (bound_to,)
    replacement = host.hooks.replacements.get(run.spec.name)
    if replacement is not None:
        return partial(replacement, *args, **kwargs), None
    if run.spec.step is not None:
        return partial(_run_around_step, run.spec.step, args, kwargs), None
    return partial(run.spec.fn, *bound, *args, **kwargs), host.hooks.guard


def _run_around_step(step: StepSpec, args: Any, kwargs: Any) -> Any:
    """The body of a workflow that is nothing but a step; a coroutine if the step is one."""
    if not step.is_async:
        return steps.call_here(step, args, kwargs)
    scope = body_scope(step.title, blocks=False)
    return steps.call_in_task(step, args, kwargs, scope, scope.take_number(step.name))


def _encode(host: Host, run: Run, value: object) -> Outcome:
    try:
        return Outcome(VALUE, host.codec.encode(value))
    except SerializationError as error:
        what = f"the result of workflow {run.id!r} ({run.name})"
        raise SerializationError(error.path, error.reason, what) from error


def _finish(host: Host, run: Run, ended: Ended) -> Flow[bool]:
    """Record the outcome; False if the run had ended otherwise."""
    outcome = ended.outcome
    failed = outcome.kind == ERROR

    def write(tx: Tx) -> bool:
        now = host.clock.now()
        finished = workflows.finish(
            tx,
            run.seq,
            run.epoch,
            result=None if failed else outcome.text,
            error=outcome.text if failed else None,
            now=now,
        )
        if finished and run.slot is not None:
            run.slot.hand_over(tx, now)
        return finished

    def decide(finished: bool) -> None:
        # What ended so can be resumed: its fate is not decided for good.
        if finished and run.fate is not None and not isinstance(ended.error, NonDeterminism):
            run.fate.decide(outcome)

    single = run.slot is None
    finished: bool = yield LastWrite(f"finish {run.name}", write, decide, single=single)
    if finished and run.slot is not None:
        run.slot.handed_over()
    return finished


def _leave_unfinished(host: Host, run: Run, error: BaseException) -> Flow[None]:
    """Say in the file why the run does not go on, and stop the one that waits for it.

    Where the file or the engine is what failed, there is nothing to be said. One that was lost
    (`Host.let_go`) has nobody who waits for it: its parent may have been taken up since.
    """
    if run.parent_id is not None and run in host.runs.of(run.id):
        for parent in host.runs.of(run.parent_id):
            host.stop(parent, error)
    if isinstance(error, (StorageError, EngineClosed)):
        if run.slot is not None and not host.stopping:
            run.slot.abandoned(run)
        return
    reason = f"interrupted by {type(error).__name__}; it goes on when an engine opens the file"
    try:
        yield Write(
            f"interrupt {run.name}",
            lambda tx: workflows.release(tx, run.seq, run.epoch, reason),
        )
    except DurableError as failure:
        log.error("workflow %r: %s", run.id, failure)


def _expire(host: Host, run: Run) -> None:
    """The deadline has come: cancel the run, unless it has ended."""

    def write(tx: Tx) -> None:
        if workflows.is_current(tx, run.seq, run.epoch):
            workflows.cancel(
                tx, run.id, children=True, reason="its deadline passed", now=host.clock.now()
            )

    try:
        host.database.write(f"deadline {run.name}", write)
    except EngineClosed:
        pass  # the next engine sees that the deadline has passed
    except DurableError as error:
        log.error("workflow %r could not be stopped at its deadline: %s", run.id, error)
