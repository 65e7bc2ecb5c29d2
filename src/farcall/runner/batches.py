"""A batch: inputs whose arguments become lists for one call, and whose results come back as a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farcall.runner.inbox import Input
from farcall.runner.outcomes import NOTHING, Outcome, Outcomes
from farcall.sdk import batches
from farcall.sdk.values import dumps, loads
from farcall.wire import messages

if TYPE_CHECKING:
    from farcall.runner.loading import Target


class Batch:
    """One run of a batched function: first `unpickle_batch`, then the call, then `pickle_batch` with its value, or
    `fail` where one of these raised. An input whose own arguments or result cannot be had fails alone."""

    def __init__(self, inputs: Sequence[Input], target: Target, outcomes: Outcomes) -> None:
        self._inputs = inputs
        self._names = target.batched
        self._outcomes = outcomes
        self._ended: dict[int, Outcome] = {}
        self._called: list[Input] = []  # those whose arguments the function is given

    def unpickle_batch(self) -> list[list[Any]] | None:
        """The lists to call the function with, None where no input is left for it."""
        rows: list[Sequence[Any]] = []
        for each in self._inputs:
            try:
                args, kwargs = loads(each.data, each.fds)
                row = batches.row(self._outcomes.name, self._names, args, kwargs)
            except Exception as error:
                self._ended[each.seq] = self._outcomes.failed(each, error)
            else:
                rows.append(row)
                self._called.append(each)
        return batches.columns(rows) if rows else None

    def pickle_batch(self, value: Any) -> None:
        """The function has returned `value`. Raises InvalidError where that is no list of one result for each."""
        results = batches.results(self._outcomes.name, value, len(self._called))
        for each, result in zip(self._called, results, strict=True):
            try:
                self._ended[each.seq] = messages.OK, dumps(result, name=self._outcomes.result_name)
            except Exception as error:
                self._ended[each.seq] = self._outcomes.failed(each, error)

    def fail(self, error: BaseException) -> None:
        """The batch has failed: so has each of its inputs that has not ended."""
        outcome: Outcome | None = None
        for each in self._inputs:
            if each.seq in self._ended:
                continue
            if outcome is None or outcome[0] != messages.EXCEPTION or outcome[1].fds:
                outcome = self._outcomes.failed(each, error)
            self._ended[each.seq] = outcome

    def finished(self) -> list[Outcome]:
        """The outcomes of all inputs, in their order."""
        return [self._ended.get(each.seq, (messages.OK, NOTHING)) for each in self._inputs]
