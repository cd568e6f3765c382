"""One run, from its first line to its outcome."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from durable.codec import Codec, decode_error, error_is_exact
from durable.errors import (
    DurableError,
    EngineClosed,
    NonDeterminism,
    SerializationError,
    StorageError,
)
from durable.runtime.checkpoint import error_outcome
from durable.runtime.context import enter_run
from durable.runtime.host import Host, log
from durable.runtime.parallel import finish_all
from durable.runtime.registry import find_target
from durable.runtime.runs import Run, Stopped
from durable.store import workflows
from durable.store.database import Tx
from durable.store.steps import ERROR, VALUE, Outcome


@dataclass(frozen=True)
class Ended:
    """A recorded outcome, and the very exception if there is one."""

    outcome: Outcome
    error: Exception | None = None

    def value(self, codec: Codec) -> Any:
        """What the workflow returned, or raise what it raised."""
        text = self.outcome.text or ""
        if self.error is None:
            return codec.decode(text)
        raise self.error if error_is_exact(text) else decode_error(text)


def launch(host: Host, run: Run) -> None:
    """Run the workflow on a thread of its own; the run must be among `host.runs`."""
    try:
        host.spawn(f"durable {run.id}", partial(_in_background, host, run))
        run.thread = None
    except Exception:
        host.runs.remove(run)
        raise


def _in_background(host: Host, run: Run) -> None:
    try:
        ended = run_here(host, run)
    except DurableError as error:
        if not isinstance(error, EngineClosed):
            log.error("workflow %r (%s) is unfinished: %s", run.id, run.name, error)
    except BaseException as error:
        kind = type(error).__name__
        log.error("workflow %r (%s) is unfinished: %s %s", run.id, run.name, kind, error)
    else:
        if ended is not None and ended.error is not None:
            log.warning(
                "workflow %r (%s) ended in %s: %s",
                run.id,
                run.name,
                type(ended.error).__name__,
                ended.error,
            )


def run_here(host: Host, run: Run) -> Ended | None:
    """How the workflow ended, run on this thread; None if the file tells (it was cancelled).

    Raises what left it unfinished: KeyboardInterrupt and the like, EngineClosed, StorageError.
    """
    timer = None
    try:
        if run.deadline_at is None and run.timeout is not None:
            run.deadline_at = host.clock.now() + run.timeout
        if run.deadline_at is not None:
            timer = host.timers.at(run.deadline_at, partial(_expire, host, run))
        return _run(host, run)
    except BaseException as error:
        run.stop(error)
        _leave_unfinished(host, run, error)
        raise
    finally:
        if timer is not None:
            host.timers.cancel(timer)
        host.runs.remove(run)
        if run.failure is not None:
            host.waiting.notify([workflows.key(run.seq)])


def _run(host: Host, run: Run) -> Ended | None:
    ended = call_body(host, run)
    if ended is None:
        if isinstance(run.failure, NonDeterminism):
            ended = Ended(error_outcome(run.failure), run.failure)
            run.failure = None
        elif run.failure is not None:
            raise run.failure
        else:
            return None
    return ended if _finish(host, run, ended.outcome) else None


def call_body(host: Host, run: Run) -> Ended | None:
    """The outcome of the function; None if the run was stopped, whatever the function says."""
    try:
        if host.stopping:
            run.stop(host.closed_error())
        with enter_run(host, run) as scope:
            run.check()
            try:
                value = _function_result(host, run)
            except Exception:
                finish_all(scope)
                raise
            finish_all(scope)
        run.check()
        return Ended(_encode(host, run, value))
    except Stopped:
        return None
    except Exception as error:
        return None if run.stopping else Ended(error_outcome(error), error)


def _function_result(host: Host, run: Run) -> Any:
    args, kwargs, *target = host.codec.decode(run.input)
    bound_to, _ = find_target(target[0] if target else None)
    bound = () if bound_to is None else (bound_to,)
    replacement = host.hooks.replacements.get(run.spec.name)
    if replacement is not None:
        return replacement(*args, **kwargs)
    with host.hooks.guard() if host.hooks.guard is not None else nullcontext():
        return run.spec.fn(*bound, *args, **kwargs)


def _encode(host: Host, run: Run, value: object) -> Outcome:
    try:
        return Outcome(VALUE, host.codec.encode(value))
    except SerializationError as error:
        what = f"the result of workflow {run.id!r} ({run.name})"
        raise SerializationError(error.path, error.reason, what) from error


def _finish(host: Host, run: Run, outcome: Outcome) -> bool:
    """Record the outcome; False if the run had ended otherwise."""
    failed = outcome.kind == ERROR

    def write(tx: Tx) -> bool:
        return workflows.finish(
            tx,
            run.seq,
            run.epoch,
            result=None if failed else outcome.text,
            error=outcome.text if failed else None,
            now=host.clock.now(),
        )

    return host.database.write(f"finish {run.name}", write)


def _leave_unfinished(host: Host, run: Run, error: BaseException) -> None:
    """Say in the file why the run does not go on, and stop the one that waits for it.

    Where the file or the engine is what failed, there is nothing to be said.
    """
    if run.parent_id is not None:
        for parent in host.runs.of(run.parent_id):
            host.stop(parent, error)
    if isinstance(error, (StorageError, EngineClosed)):
        return
    reason = f"interrupted by {type(error).__name__}; it goes on when an engine opens the file"
    try:
        host.database.write(
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
