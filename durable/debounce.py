"""Debouncing: of many calls in a short time, one run, with the arguments of the last call."""

from __future__ import annotations

from datetime import timedelta
from typing import Generic, ParamSpec, TypeVar

from durable.checks import check_text
from durable.errors import InvalidArgument
from durable.functions import DeclaredWorkflow
from durable.handle import Handle
from durable.runtime import enqueuing, starting
from durable.runtime.context import Scope, current_host, find_scope
from durable.runtime.flows import Flow, actor, drive
from durable.runtime.host import Host
from durable.store.workflows import NewWorkflow

P = ParamSpec("P")
R = TypeVar("R")


class Debouncer(Generic[P, R]):
    """Calls a workflow once things are quiet: `delay` seconds after the last call for a key.

    It starts `max_wait` seconds after the first call at the latest, if that is given. What is to
    come is in the file: calls before and after a restart, and of other processes, are of one kind.

        reindex = Debouncer(index_page, delay=5, max_wait=60)

        reindex.call(page.id, page.text)      # at each key press
    """

    def __init__(
        self,
        wf: DeclaredWorkflow[P, R],
        *,
        delay: float | timedelta,
        max_wait: float | timedelta | None = None,
    ) -> None:
        if not isinstance(wf, DeclaredWorkflow):
            raise InvalidArgument(f"a Debouncer calls a workflow, not {wf!r}")
        span, self._max_wait = enqueuing.check_spans(delay, max_wait)
        self._wf = wf.with_delay(span)

    def call(self, key: str, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """The run to come for this key, which gets these arguments unless another call comes.

        In the body of a workflow the call is recorded; the run is not its child.
        """
        name = f"the debouncer of {self._wf.name!r}"
        host, scope = current_host(name), find_scope(name)
        return drive(self.flow(host, scope, key, *args, **kwargs), actor(host, scope))

    def flow(
        self, host: Host, scope: Scope | None, key: str, /, *args: P.args, **kwargs: P.kwargs
    ) -> Flow[Handle[R]]:
        """`call`, for those who drive it otherwise."""
        check_text(key, "the key of a Debouncer")
        new = starting.prepare(host, self._wf.invocation(*args, **kwargs), "any")

        def make(new_id: str) -> NewWorkflow:
            return new._replace(id=new_id)

        run_id = yield from enqueuing.debounce(host, scope, make, key, self._max_wait)
        return Handle(host, run_id)
