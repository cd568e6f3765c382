"""Takes up what is unfinished: when the engine opens, and when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

from durable.errors import DurableError, EngineClosed, SerializationError
from durable.records import Status
from durable.runtime import execution
from durable.runtime.host import Host, log
from durable.runtime.registry import WorkflowSpec, find_target, registry
from durable.runtime.runs import Run
from durable.runtime.waiting import Callback
from durable.store import events, messages, queues, steps, workflows
from durable.store.steps import Place, Record
from durable.store.tx import Tx
from durable.store.workflows import Present, State

PAGE = 500
TRY_AGAIN_SECONDS = 1.0

# So many share the commit that takes them up. Few, as a process that dies right after it counts as
# a death of each, also of those that did not begin yet.
TOGETHER = 20

Wanted = Callable[[str], bool]


def sweep(host: Host, wanted: Wanted | None = None, *, last: int | None = None) -> None:
    """Take up all unfinished workflows that are `wanted`, by id, in the order of their creation.

    Up to the one of number `last`: those behind it were started since the engine opened. What goes
    wrong with one is logged and stops no other.
    """
    states = _unfinished(host, wanted, last)
    together = 1  # the first one does not wait for others
    while batch := list(islice(states, together)):
        take_up_or_park(host, batch)
        together = TOGETHER


def _unfinished(host: Host, wanted: Wanted | None, last: int | None) -> Iterator[State]:
    after = 0
    while not host.stopping:
        page = host.database.read(partial(workflows.unfinished, after=after, limit=PAGE))
        if not page:
            return
        for state in page:
            after = state.seq
            if host.stopping or (last is not None and state.seq > last):
                return
            if state.holder == host.session:
                continue  # a queue has started it since the engine opened
            if wanted is None or _is_wanted(wanted, state):
                yield state
            elif state.queue is not None and state.reason is None:
                _leave(host, state)


def _is_wanted(wanted: Wanted, state: State) -> bool:
    """What the user's predicate says; one that raises leaves this run alone, and no other."""
    try:
        return wanted(state.id)
    except Exception:
        log.exception("workflow %r (%s) is left unfinished: recover= raised", state.id, state.name)
        return False


def _leave(host: Host, state: State) -> None:
    """The run of a queue is left unfinished: it has no slot there until somebody recovers it."""
    reason = "recover=… of the engine did not choose it; engine.recover([id]) takes it up"
    leave = partial(workflows.release, seq=state.seq, epoch=state.epoch, reason=reason)
    try:
        host.database.write(f"leave {state.name}", leave)
    except EngineClosed:
        pass
    except DurableError as error:
        log.error("workflow %r (%s) keeps its slot: %s", state.id, state.name, error)


def ensure_running(host: Host, state: State) -> None:
    """Have the workflow taken up, on another thread, if it is unfinished and in nobody's hands."""
    if _is_loose(host, state):
        host.spawn_task(f"durable take up {state.id}", partial(take_up_if_loose, host, state.id))


def take_up_if_loose(host: Host, workflow_id: str) -> None:
    """Take up the workflow if it is unfinished and in nobody's hands."""
    state = host.database.read(partial(workflows.find, workflow_id=workflow_id))
    if _is_loose(host, state):
        take_up_or_park(host, [state])


def take_up_all_loose(host: Host, workflow_ids: Iterable[str]) -> None:
    """`take_up_if_loose` for each; what goes wrong with one is logged and stops no other."""
    for workflow_id in workflow_ids:
        try:
            take_up_if_loose(host, workflow_id)
        except EngineClosed:
            return
        except DurableError as error:
            log.error("workflow %r could not be taken up: %s", workflow_id, error)


def _is_loose(host: Host, state: State) -> bool:
    return state.status is Status.PENDING and not host.runs.has(state.id)


def take_up_or_park(host: Host, states: Sequence[State]) -> None:
    """Let the workflows go on: now, or when what they wait for has come."""
    ready: list[tuple[WorkflowSpec, State]] = []
    for state in states:
        with _or_try_again(host, state):
            spec = registry.workflow(state.name)
            missing = what_is_missing(host, spec, state)
            if spec is None or missing is not None:
                block(host, state, missing or "")
            elif state.queue is not None and state.holder is None and state.reason is not None:
                put_back = partial(queues.put_back, state=state)
                host.database.write(f"put back {state.name}", put_back)
                host.runs.forgive(state.id)
            elif _waits(state, host.clock.now()):
                _park(host, spec, state)
            else:
                ready.append((spec, state))
    if len(ready) > 1:
        try:
            take_up(host, ready)
            return
        except DurableError:
            pass  # of one of them, perhaps: each on its own
    for each in ready:
        with _or_try_again(host, each[1]):
            take_up(host, [each])


@contextmanager
def _or_try_again(host: Host, state: State) -> Iterator[None]:
    """What goes wrong in the block is logged, and the workflow is taken up later."""
    try:
        yield
    except EngineClosed:
        pass
    except DurableError as error:
        log.error("workflow %r (%s) is not taken up yet: %s", state.id, state.name, error)
        try_again(host, state)


def try_again(host: Host, state: State) -> None:
    """The file failed: it may be better soon, and the workflow must not wait for a restart."""

    def again() -> None:
        host.spawn_task(f"durable retry {state.id}", partial(take_up_if_loose, host, state.id))

    host.timers.at(host.clock.now() + TRY_AGAIN_SECONDS, again)


def take_up(
    host: Host, ready: Sequence[tuple[WorkflowSpec, State]], *, waited: bool = False
) -> None:
    """Let the workflows go on now, each on its thread, unless another thread was faster.

    One that `waited` when its process died did not bring it down. Between the write that takes one
    up and its place among the runs, only the claim tells other threads that it is in our hands.
    """
    ids = {state.id for _, state in ready}
    host.runs.claim(ids)
    try:
        _take_up_claimed(host, ready, waited=waited)
    finally:
        host.runs.unclaim(ids)


def _take_up_claimed(
    host: Host, ready: Sequence[tuple[WorkflowSpec, State]], *, waited: bool
) -> None:
    cancels = host.cancels

    def take(tx: Tx) -> list[Run | None]:
        seqs = [state.seq for _, state in ready]
        present, records = workflows.present(tx, seqs), steps.load_all(tx, seqs)
        return [
            _take_up(tx, host, spec, state, present[state.seq], records[state.seq], waited=waited)
            if state.seq in present
            else None
            for spec, state in ready
        ]

    names = sorted({state.name for _, state in ready})
    for run in host.database.write(f"recover {', '.join(names)}", take):
        if run is not None:
            host.runs.add(run)
            if host.cancels != cancels and not _is_current(host, run):
                run.stop()  # cancelled before we could be told
            execution.launch(host, run)


def _is_current(host: Host, run: Run) -> bool:
    return host.database.read(partial(workflows.is_current, seq=run.seq, epoch=run.epoch))


def _take_up(
    tx: Tx,
    host: Host,
    spec: WorkflowSpec,
    state: State,
    present: Present,
    records: dict[Place, Record],
    *,
    waited: bool,
) -> Run | None:
    now = host.clock.now()
    if present.epoch != state.epoch:
        return None
    if present.holder == host.session and _is_in_hands(host, state):
        return None
    if state.deadline_at is not None and state.deadline_at <= now:
        workflows.cancel(tx, state.id, children=True, reason="its deadline passed", now=now)
        return None
    progress = len([1 for record in records.values() if record.outcome is not None])
    died = present.holder not in (None, host.session) and not waited
    recoveries = count_recoveries(state, progress, died)
    if recoveries > spec.max_recoveries:
        reason = f"process after process died while it ran ({spec.max_recoveries} recoveries)"
        workflows.give_up(tx, state, reason=reason, recoveries=spec.max_recoveries, now=now)
        return None
    epoch = workflows.take_up(
        tx, state, holder=host.session, recoveries=recoveries, progress=progress, now=now
    )
    return None if epoch is None else make_run(host, spec, state, epoch, records)


def _is_in_hands(host: Host, state: State) -> bool:
    """Whether a run that this session holds goes on in this process, or begins in a moment.

    One of a queue begins after the commit that takes it from there; it is left alone unless it is
    known to have stopped.
    """
    about_to_begin = state.queue is not None and not host.runs.is_stopped(state.id)
    return about_to_begin or host.runs.has(state.id)


def count_recoveries(state: State, progress: int, died: bool) -> int:
    """How many processes in a row have now died while the workflow ran.

    One that has recorded something since it was last taken up is not stuck: it starts from one.
    """
    if not died:
        return state.recoveries
    return state.recoveries + 1 if progress <= state.progress else 1


def make_run(
    host: Host, spec: WorkflowSpec, state: State, epoch: int, records: dict[Place, Record]
) -> Run:
    """The run of what the file has, which is in the hands of this process now."""
    slot = None
    if state.queue is not None and host.queues is not None:
        slot = host.queues.slot(state.queue, state.partition)
    return Run(
        id=state.id,
        name=state.name,
        spec=spec,
        input=state.input,
        seed=state.seed,
        seq=state.seq,
        epoch=epoch,
        parent_id=state.parent_id,
        deadline_at=state.deadline_at,
        timeout=state.timeout,
        records=records,
        slot=slot,
        fate=host.fates.of(state.id),
    )


# ---------------------------------------------------------------------- what cannot go on


def what_is_missing(host: Host, spec: WorkflowSpec | None, state: State) -> str | None:
    """Why this program cannot run the workflow; None if it can."""
    if spec is None:
        return (
            f"no workflow {state.name!r} is declared in this program: import the module that "
            "declares it, or give the function that replaces it aliases=…"
        )
    try:
        _, _, target = host.decode_input(state.input)
    except SerializationError as error:
        return f"its input cannot be read: {error}"
    except (TypeError, ValueError):
        return "its input is damaged"
    return find_target(target)[1]


def block(host: Host, state: State, reason: str) -> None:
    """Leave it unfinished with a reason to be seen, and warn once for each name and reason."""
    host.blocked[state.id] = reason
    if state.reason != reason:
        host.database.write(
            f"block {state.name}",
            partial(workflows.release, seq=state.seq, epoch=state.epoch, reason=reason),
        )
    if state.name not in host.warned:
        host.warned.add(state.name)
        log.warning("workflow %r and others like it stay unfinished: %s", state.id, reason)


def retry_blocked(host: Host) -> None:
    """A workflow or an instance was declared: what lacked it may go on."""
    blocked: Iterable[str] = list(host.blocked)
    host.blocked.clear()
    take_up_all_loose(host, blocked)


# ---------------------------------------------------------------------- what waits


def _waits(state: State, now: float) -> bool:
    """Whether it has nothing to do but to wait: for a key, or for a moment to come."""
    return state.waits_for is not None or (state.wake_at is not None and state.wake_at > now)


def _park(host: Host, spec: WorkflowSpec, state: State) -> None:
    """Have it taken up, on a thread, when its key is notified or its moment comes.

    Coroutines need no thread to wait, and may have other reasons to go on: `asyncio.timeout`.
    """
    if state.waits_for == workflows.ANY_KEY or spec.is_async:
        _wake(host, spec, state)
        return
    host.runs.park(state.id, state.name)
    keys = (workflows.cancel_key(state.id),) + ((state.waits_for,) if state.waits_for else ())
    callback = Callback(keys, lambda: wake())

    def wake() -> None:
        host.waiting.remove(callback)
        if host.stopping:
            return
        host.spawn_task(f"durable wake {state.id}", partial(_unpark, host, spec, state))

    host.waiting.add(callback)
    moments = [at for at in (state.wake_at, state.deadline_at) if at is not None]
    if moments:
        host.timers.at(min(moments), wake)
    if state.waits_for is not None and _has_come(host, state.waits_for):
        wake()


def _unpark(host: Host, spec: WorkflowSpec, state: State) -> None:
    if host.runs.unpark(state.id) and not host.stopping:
        _wake(host, spec, state)


def _wake(host: Host, spec: WorkflowSpec, state: State) -> None:
    take_up(host, [(spec, state)], waited=True)


def _has_come(host: Host, key: str) -> bool:
    """Whether what a run waits for is there already."""
    kind, *rest = key.split("/", 2)
    if not rest or not rest[0].isdecimal():
        return True  # no key of ours: let the run look for itself
    number, name = int(rest[0]), rest[1] if len(rest) > 1 else None

    def look(tx: Tx) -> bool:
        if kind == "stream":
            return True  # there is no telling how far it has read: it looks itself
        if kind == "message":
            return messages.is_waiting(tx, number, name)
        if workflows.ending(tx, number) is not None:
            return True
        return kind == "event" and events.get(tx, number, name or "") is not None

    return host.database.read(look)
