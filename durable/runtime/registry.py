"""What the program has declared: workflows, steps and schedules by name, instances by key."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import tzinfo
from functools import cached_property
from typing import Any

from durable.cron import Cron
from durable.errors import DuplicateName, InvalidArgument
from durable.names import find_class, module_name, qualified_name
from durable.retry import Retry
from durable.store.queues import QueueRow

STEP = "durable.step:"
"""What the name of a workflow begins with that is nothing but the step of the rest of the name."""


@dataclass(eq=False, repr=False)
class WorkflowSpec:
    """A declared workflow; `kind` says what the function is bound to when it is called.

    It is "function" or "static" (to nothing), "class" (a class method) or "instance". Or it is none
    of the program's but durable's own, around the `step` that somebody put in a queue.
    """

    name: str
    fn: Callable[..., Any]
    kind: str = "function"
    timeout: float | None = None
    max_recoveries: int = 100
    aliases: tuple[str, ...] = ()
    step: StepSpec | None = None
    signature: inspect.Signature = field(init=False)
    plain_counts: range = field(init=False)
    """How many arguments by position, and none by name, the function is known to take."""

    def __post_init__(self) -> None:
        signature = inspect.signature(self.fn)
        if self.step is not None and self.step.transaction:  # the cursor is not the caller's
            own = list(signature.parameters.values())[1:]
            signature = signature.replace(parameters=own)
        self.signature = signature
        self.plain_counts = _plain_counts(signature)

    @cached_property
    def is_async(self) -> bool:
        """Whether its body is a coroutine."""
        return inspect.iscoroutinefunction(self.fn)

    @property
    def is_bound(self) -> bool:
        """Whether its first argument is an instance or a class."""
        return self.kind in ("class", "instance")


def _plain_counts(signature: inspect.Signature) -> range:
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature.parameters.values()
    if any(each.kind not in plain for each in parameters):
        return range(0)
    required = sum(each.default is inspect.Parameter.empty for each in parameters)
    return range(required, len(parameters) + 1)


@dataclass(eq=False, repr=False)
class StepSpec:
    """A declared step; `transaction` steps get a cursor as their first argument."""

    name: str
    fn: Callable[..., Any]
    retry: Retry | None = None
    timeout: float | None = None
    transaction: bool = False
    is_async: bool = field(init=False)
    """Whether its body is a coroutine."""
    title: str = field(init=False)
    """What errors call it."""
    label: str = field(init=False)
    """What the write of its checkpoint is called."""

    def __post_init__(self) -> None:
        self.is_async = inspect.iscoroutinefunction(self.fn)
        self.title = f"step {self.name!r}"
        self.label = f"step {self.name}"


@dataclass(eq=False, repr=False)
class ScheduleSpec:
    """A declared schedule: a workflow to be run at the moments of an expression in a zone."""

    name: str
    workflow: WorkflowSpec
    cron: Cron
    tz: str
    zone: tzinfo
    missed: str

    def is_again(self, other: ScheduleSpec) -> bool:
        """Whether the other says the same of the same declaration: a notebook cell run twice."""
        return (self.workflow, self.cron, self.tz) == (other.workflow, other.cron, other.tz)


Spec = WorkflowSpec | StepSpec


class Registry:
    """Names of functions and queues, and keys of instances, for the whole process."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._workflows: dict[str, WorkflowSpec] = {}
        self._steps: dict[str, StepSpec] = {}
        self._around_steps: dict[str, WorkflowSpec] = {}
        self._instances: dict[tuple[str, str], Any] = {}
        self._schedules: dict[str, ScheduleSpec] = {}
        self._queues: dict[str, QueueRow] = {}
        self._listeners: list[Callable[[], None]] = []

    def add_workflow(self, spec: WorkflowSpec) -> None:
        """Make the workflow known; DuplicateName if another function has its name or an alias."""
        with self._mutex:
            for name in (spec.name, *spec.aliases):
                _refuse_duplicate(name, self._workflows.get(name), spec)
            for name in (spec.name, *spec.aliases):
                self._workflows[name] = spec
        self._tell()

    def add_step(self, spec: StepSpec) -> None:
        """Make the step known; DuplicateName if another function has its name."""
        with self._mutex:
            _refuse_duplicate(spec.name, self._steps.get(spec.name), spec)
            self._steps[spec.name] = spec
        self._tell()

    def workflow(self, name: str) -> WorkflowSpec | None:
        """The workflow of that name or alias, or the one around the step that the name tells."""
        spec = self._workflows.get(name)
        if spec is None and name.startswith(STEP):
            step = self._steps.get(name.removeprefix(STEP))
            return None if step is None else self.around_step(step)
        return spec

    def around_step(self, step: StepSpec) -> WorkflowSpec:
        """The workflow that is nothing but this step."""
        spec = self._around_steps.get(step.name)
        if spec is None or spec.step is not step:
            spec = WorkflowSpec(f"{STEP}{step.name}", step.fn, step=step)
            self._around_steps[step.name] = spec
        return spec

    def add_queue(self, queue: QueueRow) -> None:
        """Make the queue known; DuplicateName if it is known with other limits."""
        with self._mutex:
            known = self._queues.setdefault(queue.name, queue)
        if known != queue:
            raise DuplicateName(queue.name, _told(known), _told(queue))
        self._tell()

    def queues(self) -> list[QueueRow]:
        """All queues that the program has declared."""
        with self._mutex:
            return list(self._queues.values())

    def add_schedule(self, spec: ScheduleSpec) -> None:
        """Make the schedule known; DuplicateName if another one has its name."""
        known = self.schedules().get(spec.name)
        if known is not None and not known.is_again(spec):
            raise DuplicateName(spec.name, _where(known.workflow.fn), _where(spec.workflow.fn))
        with self._mutex:
            self._schedules[spec.name] = spec
        self._tell()

    def schedules(self) -> dict[str, ScheduleSpec]:
        """All schedules, by name, but for those of workflows that were declared again since."""
        with self._mutex:
            return {
                name: spec
                for name, spec in self._schedules.items()
                if self._workflows.get(spec.workflow.name) is spec.workflow
            }

    def add_instance(self, instance: Any) -> None:
        """Make the instance known under its class and its `durable_key`."""
        key = (qualified_name(type(instance)), durable_key(instance))
        with self._mutex:
            known = self._instances.get(key)
            self._instances[key] = instance
        if known is not instance:
            self._tell()

    def instance(self, class_name: str, key: str) -> Any | None:
        """The instance known under a class and a key."""
        return self._instances.get((class_name, key))

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after each function, queue, schedule or instance declared."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Undo `listen`; harmless if it is done already."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()


registry = Registry()


def durable_key(instance: Any) -> str:
    """The key by which the instance is found again; InvalidArgument if its class gives none."""
    key = getattr(instance, "durable_key", None)
    if not isinstance(key, str) or not key:
        raise InvalidArgument(
            f"a workflow that is a method of {qualified_name(type(instance))} finds its instance "
            "again by its attribute durable_key, a text that is not empty; this one has "
            f"{key!r}: give the class one, or make the method static"
        )
    return key


def target_of(spec: WorkflowSpec, bound_to: Any) -> list[str] | None:
    """What the file keeps of the object that a method is bound to."""
    if spec.kind == "class":
        return ["class", qualified_name(bound_to)]
    if spec.kind == "instance":
        return ["instance", qualified_name(type(bound_to)), durable_key(bound_to)]
    return None


def find_target(target: Iterable[str] | None) -> tuple[Any, str | None]:
    """The object that a recorded method is bound to, or why there is none."""
    if target is None:
        return None, None
    kind, class_name, *key = target
    found = find_class(class_name) if kind == "class" else registry.instance(class_name, key[0])
    if found is not None:
        return found, None
    if kind == "class":
        return None, f"its class {class_name} is not imported in this program"
    return None, (
        f"its instance {key[0]!r} of {class_name} is not known in this program: "
        "make it and call durable.register(instance)"
    )


def _refuse_duplicate(name: str, first: Spec | None, second: Spec) -> None:
    if first is not None and not _is_same(first.fn, second.fn):
        raise DuplicateName(name, _where(first.fn), _where(second.fn))


def _is_same(first: Callable[..., Any], second: Callable[..., Any]) -> bool:
    """Whether the second is the first declared again: a reload, a cell run twice, ``__main__``."""
    return (module_name(first.__module__), first.__qualname__) == (
        module_name(second.__module__),
        second.__qualname__,
    ) and (_file(first) == _file(second) or _file(second).startswith("<"))


def _file(fn: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return str(code.co_filename) if code is not None else "<unknown>"


def _told(queue: QueueRow) -> str:
    """The declaration of the queue, for people."""
    limits = queue.limits
    said = {
        "concurrency": limits.concurrency,
        "rate": limits.rate_limit and f"Rate({limits.rate_limit}, per={limits.rate_per:g})",
        "priority": queue.priority,
        "partitioned": queue.partitioned,
    }
    options = "".join(f", {name}={value}" for name, value in said.items() if value)
    return f"Queue({queue.name!r}{options})"


def _where(fn: Callable[..., Any]) -> str:
    return f"{qualified_name(fn)} in {_file(fn)}"
