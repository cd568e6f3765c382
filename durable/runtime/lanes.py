"""Tasks of async workflows: each takes numbers in a lane of its own, given when it is made.

So whatever finishes first, ``asyncio.gather`` and task groups ask for the same places on a replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from types import CodeType
from typing import Any

from durable.runtime import context
from durable.runtime.host import Host
from durable.runtime.loops import Inside, LoopThread, OnLoop
from durable.runtime.runs import Run

MakeTask = Callable[..., "asyncio.Future[Any]"]

placed: set[CodeType] = set()
"""The code of coroutines that have a place of their own already, and need no lane."""


# ---------------------------------------------------------------------- loops


def engine_loop(host: Host) -> OnLoop:
    """Where the coroutines of the engine run; the first call makes a loop if there is none."""
    with host.loop_mutex:
        if host.loop is None:
            host.check_open()
            host.loop_thread = LoopThread(host.clock)
            host.loop = OnLoop(host.loop_thread.loop)
            adopt(host.loop_thread.loop)
        return host.loop


def use_running_loop(host: Host) -> None:
    """Run the coroutines of the engine on the loop of the calling program."""
    host.loop = host.on_loop()
    adopt(host.loop.loop)


def leave_loop(host: Host, patience: float) -> None:
    """The engine closes: its own loop ends, and the loop of a program is as it was before."""
    with host.loop_mutex:
        if host.loop is None:
            return
        release(host.loop.loop)
        if host.loop_thread is not None:
            host.loop_thread.close(patience)


_users: dict[asyncio.AbstractEventLoop, int] = {}
"""How many engines run coroutines on each loop."""


def adopt(loop: asyncio.AbstractEventLoop) -> None:
    """From now on, tasks of workflows have lanes there, and what would block it is refused."""
    _users[loop] = _users.get(loop, 0) + 1
    if _users[loop] == 1:
        context.engine_loops.add(loop)
        factory = partial(_make_task, loop.get_task_factory())
        loop.set_task_factory(factory)
        vars(loop)["run_in_executor"] = partial(_run_in_executor, loop.run_in_executor)


def release(loop: asyncio.AbstractEventLoop) -> None:
    """Undo `adopt`."""
    _users[loop] -= 1
    if _users[loop]:
        return
    del _users[loop]
    context.engine_loops.discard(loop)
    factory = loop.get_task_factory()
    if isinstance(factory, partial) and factory.func is _make_task:
        loop.set_task_factory(factory.args[0])
    vars(loop).pop("run_in_executor", None)


def _run_in_executor(
    run_in_executor: Callable[..., asyncio.Future[Any]],
    executor: Any,
    function: Callable[..., Any],
    *args: Any,
) -> asyncio.Future[Any]:
    """Let the thread know in which workflow it is: a durable call there is refused, not lost."""
    if context.in_coroutine():
        return run_in_executor(executor, copy_context().run, function, *args)
    return run_in_executor(executor, function, *args)


# ---------------------------------------------------------------------- tasks


def begin_task(on_loop: OnLoop, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has nothing to do with the code that asks for it."""
    return Context().run(on_loop.loop.create_task, coroutine)


def _make_task(
    before: MakeTask | None,
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any],
    **options: Any,
) -> asyncio.Future[Any]:
    """A task; one that the body of a workflow makes has a lane, and ends with the workflow."""
    make: MakeTask = before or _plain_task
    scope = context.in_coroutine()
    if scope is None:
        return make(loop, coroutine, **options)
    if getattr(coroutine, "cr_code", None) not in placed:
        given = options.get("context")
        options["context"] = copy_context() if given is None else given.copy()
        options["context"].run(context.enter, scope.open_lane())
        if scope.host.hooks.guard is not None:
            coroutine = Inside(scope.host.hooks.guard, coroutine)
    task = make(loop, coroutine, **options)
    scope.run.beside.add(task)
    task.add_done_callback(partial(_task_ended, scope.host, scope.run))
    return task


def _task_ended(host: Host, run: Run, task: asyncio.Future[Any]) -> None:
    """Note when; what would end the program is no outcome of the workflow either."""
    run.beside.discard(task)
    run.ended_at[task] = host.clock.now()
    # To ask for the exception by `exception()` would count as if the workflow had seen it.
    error = None if task.cancelled() else task._exception
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        host.stop(run, task.exception())


def _plain_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    return asyncio.Task(coroutine, loop=loop, **options)
