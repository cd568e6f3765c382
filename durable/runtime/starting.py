"""How a workflow begins: its row is written, and whoever wrote it runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from durable.checks import check_id, check_texts
from durable.clock import optional_seconds
from durable.errors import DurableError, SerializationError, WorkflowConflict
from durable.runtime import execution, recovery
from durable.runtime.checkpoint import (
    Flow,
    Read,
    Write,
    actor,
    drive,
    error_outcome,
    settle,
    value_outcome,
)
from durable.runtime.children import result
from durable.runtime.context import Scope
from durable.runtime.file import File
from durable.runtime.host import Host
from durable.runtime.registry import WorkflowSpec, registry, target_of
from durable.runtime.runs import Run
from durable.store import steps, workflows
from durable.store.database import Tx


@dataclass(frozen=True)
class Options:
    """What `options` of a workflow function sets; `timeout` is in seconds."""

    id: str | None = None
    timeout: float | None = None
    tags: tuple[str, ...] = ()


def make_options(id: object, timeout: Any, tags: Any) -> Options:  # noqa: A002
    """Options that were checked: InvalidArgument for what cannot be used."""
    labels = (tags,) if isinstance(tags, str) else () if tags is None else tags
    return Options(
        id=None if id is None else check_id(id),
        timeout=optional_seconds(timeout, "the timeout of a workflow"),
        tags=check_texts(labels, "tags"),
    )


@dataclass(frozen=True)
class Invocation:
    """A workflow to be started: the function, what it is bound to, its arguments and options."""

    spec: WorkflowSpec
    bound_to: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    options: Options


@dataclass(frozen=True)
class Begun:
    """A workflow that exists now: `run` is this call's to execute, None if it existed before."""

    id: str
    run: Run | None


def start(host: Host, scope: Scope | None, invocation: Invocation) -> Flow[str]:
    """The id of the workflow, which runs in the background; as a child if there is a scope.

    An id that exists attaches to that run. WorkflowConflict if another workflow has it.
    """
    begun = yield from _begin(host, scope, invocation)
    if begun.run is not None:
        execution.launch(host, begun.run)
    return begun.id


def run_here(host: Host, scope: Scope | None, invocation: Invocation) -> Any:
    """What the workflow returns, run on the calling thread, or raise what it raises."""
    by = actor(host, scope)
    if invocation.spec.is_async:
        return drive(run_in_background(host, scope, invocation), by)
    begun = drive(_begin(host, scope, invocation), by)
    if begun.run is None:
        return drive(result(host, scope, begun.id, None), by)
    try:
        ended = execution.run_here(host, begun.run)
    except DurableError:
        if scope is not None:
            scope.run.check()  # the engine or the file failed, so this run stops as well
        raise
    if scope is not None or ended is None:
        return drive(result(host, scope, begun.id, None), by)
    return ended.value(host.codec)


def run_in_background(host: Host, scope: Scope | None, invocation: Invocation) -> Flow[Any]:
    """What the workflow returns, or raise what it raises; the caller only waits."""
    workflow_id = yield from start(host, scope, invocation)
    return (yield from result(host, scope, workflow_id, None))


def _begin(host: Host, scope: Scope | None, invocation: Invocation) -> Flow[Begun]:
    """Write the run, or see that the one that exists goes on."""
    host.check_open()
    text = _input(host, invocation)
    if scope is not None:
        begun = yield from _begin_child(scope, invocation, text)
    else:
        new = _new(host, invocation, text, host.new_id(), None)
        run = _run(new, invocation.spec)
        begun = yield from _create(
            host, run, f"start {new.name}", lambda tx: _insert(tx, host, new)
        )
    if begun.run is None:
        state = yield Read(partial(workflows.find, workflow_id=begun.id))
        recovery.ensure_running(host, state)
    return begun


def _begin_child(scope: Scope, invocation: Invocation, text: str) -> Flow[Begun]:
    host, parent = scope.host, scope.run
    name = f"durable.start:{invocation.spec.name}"
    place, record = scope.next(name)
    if record is not None and record.outcome is not None:
        return Begun(settle(record.outcome, host.codec), None)
    new = _new(host, invocation, text, f"{parent.id}.{place}", parent.id)
    run = _run(new, invocation.spec)
    now = host.clock.now()
    outcome = error_outcome(AssertionError("not written"))

    def write(tx: Tx) -> int | None:
        nonlocal outcome
        workflows.guard(tx, *parent.key)
        created = None
        try:
            created = _insert(tx, host, new)
            outcome = value_outcome(host.codec, new.id)
        except WorkflowConflict as error:
            outcome = error_outcome(error)
        steps.decide(tx, parent.key, place, name, outcome, started_at=now, now=now)
        return created

    begun = yield from _create(host, run, f"start {new.name}", write)
    settle(outcome, host.codec)
    return begun


def _create(host: Host, run: Run, label: str, write: Callable[[Tx], int | None]) -> Flow[Begun]:
    """Have the row written by `write`, which tells its number, or None if there is one already."""
    host.runs.add(run)
    created: int | None = None
    try:
        created = yield Write(label, write)
    finally:
        if created is None:
            host.runs.remove(run)
    if created is None:
        return Begun(run.id, None)
    run.seq = created
    return Begun(run.id, run)


def _insert(tx: Tx, host: Host, new: workflows.NewWorkflow) -> int | None:
    """The number of the new row; None if it exists, WorkflowConflict if it is another's."""
    created = workflows.insert(tx, new, holder=host.session, now=host.clock.now())
    if created is None:
        existing = workflows.find(tx, new.id)
        if existing.name != new.name and not _is_alias(new.name, existing.name):
            raise WorkflowConflict(
                new.id,
                f"is a run of {existing.name!r}, so it cannot be started as one of {new.name!r}: "
                "use another id",
            )
    return created


def _is_alias(name: str, other: str) -> bool:
    spec = registry.workflow(name)
    return spec is not None and registry.workflow(other) is spec


def _run(new: workflows.NewWorkflow, spec: WorkflowSpec) -> Run:
    return Run(
        id=new.id,
        name=new.name,
        spec=spec,
        input=new.input,
        seed=new.id,
        parent_id=new.parent_id,
        timeout=new.timeout,
    )


def _new(
    host: Host, invocation: Invocation, text: str, derived_id: str, parent_id: str | None
) -> workflows.NewWorkflow:
    spec, options = invocation.spec, invocation.options
    return workflows.NewWorkflow(
        id=options.id or derived_id,
        name=spec.name,
        input=text,
        timeout=spec.timeout if options.timeout is None else options.timeout,
        parent_id=parent_id,
        version=host.version,
        tags=options.tags,
    )


def _check_arguments(invocation: Invocation) -> None:
    spec = invocation.spec
    bound = (invocation.bound_to,) if spec.is_bound else ()
    try:
        spec.signature.bind(*bound, *invocation.args, **invocation.kwargs)
    except TypeError as error:
        raise TypeError(f"{spec.name}(): {error}") from None


def _input(file: File, invocation: Invocation) -> str:
    """The recorded arguments; TypeError if the function does not take them."""
    spec, bound_to = invocation.spec, invocation.bound_to
    _check_arguments(invocation)
    if spec.kind == "instance":
        registry.add_instance(bound_to)
    recorded: list[Any] = [list(invocation.args), invocation.kwargs]
    if (target := target_of(spec, bound_to)) is not None:
        recorded.append(target)
    try:
        return file.codec.encode(recorded)
    except SerializationError as error:
        path = error.path.replace("$[0]", "args", 1).replace("$[1]", "kwargs", 1)
        raise SerializationError(path, error.reason, f"the input of {spec.name!r}") from error
