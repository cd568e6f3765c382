"""How a workflow begins: its row is written, and whoever wrote it runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from durable.checks import LARGEST, check_count, check_id, check_optional_text, check_texts
from durable.clock import optional_seconds
from durable.errors import (
    DurableError,
    InvalidArgument,
    SerializationError,
    StorageError,
    WorkflowConflict,
)
from durable.runtime import execution, recovery
from durable.runtime.checkpoint import error_outcome, settle, value_outcome
from durable.runtime.children import result
from durable.runtime.context import Scope
from durable.runtime.fates import Fate
from durable.runtime.file import File
from durable.runtime.flows import Flow, Read, Write, actor, drive
from durable.runtime.host import Host
from durable.runtime.registry import WorkflowSpec, registry, target_of
from durable.runtime.runs import Run
from durable.store import steps, workflows
from durable.store.queues import DELAYED
from durable.store.steps import Outcome, Place
from durable.store.tx import Tx
from durable.store.workflows import Queued

# What ends a flow from outside: a generator whose caller is interrupted hears of it as its exit.
_INTERRUPTS = (KeyboardInterrupt, SystemExit, GeneratorExit)

# So many that are enqueued together share a commit.
MANY = 200


class Options(NamedTuple):
    """What `options` of a workflow function sets; `timeout` and `delay` are in seconds."""

    id: str | None = None
    timeout: float | None = None
    tags: tuple[str, ...] = ()
    queue: str | None = None
    priority: int | None = None
    dedup: str | None = None
    partition: str | None = None
    delay: float | None = None

    @property
    def queued(self) -> Queued | None:
        """In which queue the run is to wait; None if in none. InvalidArgument if it needs one."""
        if self.queue is None:
            for name in ("priority", "dedup", "partition"):
                if getattr(self, name) is not None:
                    raise InvalidArgument(f"{name} belongs to a queue: give options(queue=…) too")
            if self.delay is None:
                return None
        return Queued(
            queue=self.queue or DELAYED,
            priority=self.priority,
            dedup=self.dedup,
            partition=self.partition,
            delay=self.delay,
        )


def make_options(
    id: object = None,  # noqa: A002
    timeout: Any = None,
    tags: Any = None,
    queue: object = None,
    priority: object = None,
    dedup: object = None,
    partition: object = None,
    delay: Any = None,
) -> Options:
    """Options that were checked: InvalidArgument for what cannot be used."""
    labels = (tags,) if isinstance(tags, str) else () if tags is None else tags
    return Options(
        id=None if id is None else check_id(id),
        timeout=optional_seconds(timeout, "the timeout of a workflow"),
        tags=check_texts(labels, "tags"),
        queue=check_optional_text(queue, "the name of a queue"),
        priority=None if priority is None else check_count(priority, "a priority", least=-LARGEST),
        dedup=check_optional_text(dedup, "dedup"),
        partition=check_optional_text(partition, "a partition"),
        delay=optional_seconds(delay, "the delay of a workflow"),
    )


class Invocation(NamedTuple):
    """A workflow to be started: the function, what it is bound to, its arguments and options."""

    spec: WorkflowSpec
    bound_to: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    options: Options


class Begun(NamedTuple):
    """A workflow that exists now: `run` is this call's to execute.

    It is None where the workflow existed before, or was `enqueued`.
    """

    id: str
    run: Run | None
    enqueued: bool = False
    fate: Fate | None = None


def start(host: Host, scope: Scope | None, invocation: Invocation) -> Flow[Fate]:
    """The fate of the workflow, which runs in the background; as a child if there is a scope.

    An id that exists attaches to that run. WorkflowConflict if another workflow has it.
    """
    begun = yield from _begin(host, scope, invocation)
    fate = begun.fate or host.fates.expect(begun.id)
    if begun.run is not None:
        begun.run.fate = fate
        execution.launch(host, begun.run)
    return fate


def start_many(
    host: Host, scope: Scope | None, invocations: Iterable[Invocation]
) -> Flow[list[Fate]]:
    """The fates of workflows that are in a queue now; outside workflows, MANY share a commit."""
    fates: list[Fate] = []
    if scope is not None:
        for each in invocations:
            fates.append((yield from start(host, scope, each)))
        return fates
    rest = iter(invocations)
    while some := list(islice(rest, MANY)):
        host.check_open()
        news = [_new(host, each, _input(host, each), host.new_id(), None) for each in some]
        if some[0].options.id is not None or some[0].options.dedup is not None:
            raise InvalidArgument("one id or dedup cannot be that of many: enqueue one by one")
        fates += [host.fates.expect(new.id) for new in news]
        yield from _enqueue(host, *news)
    return fates


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
    fate = yield from start(host, scope, invocation)
    return (yield from result(host, scope, fate.workflow_id, None))


def _begin(host: Host, scope: Scope | None, invocation: Invocation) -> Flow[Begun]:
    """Write the run, or see that the one that exists goes on."""
    host.check_open()
    text = _input(host, invocation)
    if scope is not None:
        begun = yield from _begin_child(scope, invocation, text)
    else:
        begun = yield from _begin_outside(host, invocation, text)
    if begun.run is None and not begun.enqueued:
        state = yield Read(partial(workflows.find, workflow_id=begun.id))
        recovery.ensure_running(host, state)
    return begun


def _begin_outside(host: Host, invocation: Invocation, text: str) -> Flow[Begun]:
    new = _new(host, invocation, text, host.new_id(), None)
    if new.queued is not None:
        return (yield from _enqueue(host, new))
    run = _run(new, invocation.spec)
    return (yield from _create(host, run, lambda tx: _insert(tx, host, new), single=True))


def _begin_child(scope: Scope, invocation: Invocation, text: str) -> Flow[Begun]:
    host, parent = scope.host, scope.run
    name = f"durable.start:{invocation.spec.name}"
    place, record = scope.next(name)
    if record is not None and record.outcome is not None:
        return Begun(settle(record.outcome, host.codec), None)
    new = _new(host, invocation, text, f"{parent.id}.{place}", parent.id)
    if new.queued is not None:
        return (yield from _enqueue_child(scope, new, place, name))
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

    begun = yield from _create(host, run, write)
    settle(outcome, host.codec)
    return begun


def _enqueue(host: Host, *news: workflows.NewWorkflow) -> Flow[Begun]:
    """The first of them; all wait in one queue now, and in one partition of it."""
    first, fate = news[0], host.fates.expect(news[0].id)
    assert first.queued is not None and host.queues is not None
    try:
        taken = yield Write(f"enqueue {first.name}", lambda tx: _add(tx, host, news))
        host.queues.begin(taken)
    except _INTERRUPTS:
        host.queues.rescue(first.queued.queue)
        raise
    return Begun(first.id, None, enqueued=taken is not None, fate=fate)


def _enqueue_child(
    scope: Scope, new: workflows.NewWorkflow, place: Place, name: str
) -> Flow[Begun]:
    host, parent, now = scope.host, scope.run, scope.host.clock.now()
    fate = host.fates.expect(new.id)
    assert new.queued is not None and host.queues is not None

    def write(tx: Tx) -> tuple[Outcome, Any]:
        workflows.guard(tx, *parent.key)
        taken = None
        try:
            taken = _add(tx, host, [new])
            outcome = value_outcome(host.codec, new.id)
        except StorageError:
            raise
        except DurableError as error:  # Deduplicated, for one, is raised again on every replay
            outcome = error_outcome(error)
        steps.decide(tx, parent.key, place, name, outcome, started_at=now, now=now)
        return outcome, taken

    try:
        outcome, taken = yield Write(f"enqueue {new.name}", write)
        host.queues.begin(taken)
    except _INTERRUPTS:
        host.queues.rescue(new.queued.queue)
        raise
    settle(outcome, host.codec)
    return Begun(new.id, None, enqueued=taken is not None, fate=fate)


def _add(tx: Tx, host: Host, news: Sequence[workflows.NewWorkflow]) -> Any:
    """What may start in the queue now that the runs are in it; None if they exist already."""
    assert host.queues is not None
    taken = host.queues.add(tx, news, now=host.clock.now())
    if taken is None:
        refuse_other(tx, news[0])
    return taken


def _create(
    host: Host, run: Run, write: Callable[[Tx], int | None], *, single: bool = False
) -> Flow[Begun]:
    """Have the row written by `write`, which tells its number, or None if there is one already."""
    host.runs.add(run)
    created: int | None = None
    try:
        created = yield Write(f"start {run.name}", write, single=single)
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
        refuse_other(tx, new)
    return created


def refuse_other(tx: Tx, new: workflows.NewWorkflow) -> None:
    """WorkflowConflict if the run that has the id already is one of another workflow."""
    existing = workflows.find(tx, new.id)
    if existing.name != new.name and not _is_alias(new.name, existing.name):
        raise WorkflowConflict(
            new.id,
            f"is a run of {existing.name!r}, so it cannot be started as one of {new.name!r}: "
            "use another id",
        )


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
        queued=options.queued,
    )


def prepare(host: Host, invocation: Invocation, new_id: str) -> workflows.NewWorkflow:
    """The run that the invocation would start, for those who write it themselves."""
    return _new(host, invocation, _input(host, invocation), new_id, None)


def _check_arguments(invocation: Invocation) -> None:
    spec = invocation.spec
    bound = (invocation.bound_to,) if spec.is_bound else ()
    if not invocation.kwargs and len(bound) + len(invocation.args) in spec.plain_counts:
        return  # to bind them takes twenty times as long
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
    if not (invocation.args or invocation.kwargs or spec.is_bound):
        return file.no_arguments
    recorded: list[Any] = [list(invocation.args), invocation.kwargs]
    if (target := target_of(spec, bound_to)) is not None:
        recorded.append(target)
    try:
        return file.codec.encode(recorded)
    except SerializationError as error:
        path = error.path.replace("$[0]", "args", 1).replace("$[1]", "kwargs", 1)
        raise SerializationError(path, error.reason, f"the input of {spec.name!r}") from error
