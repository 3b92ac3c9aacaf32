"""What a run tells the caller while it goes on, by `run(config, on_event=...)`, on every rank.

| event | facts | when |
|---|---|---|
| begin, end | part | around each of `PARTS` of `training.run`, prepare, begin and model |
| alone | work | rank 0 begins what it does alone: split, begin, scores, metrics, report |
| step | stage, step, engine, batch, files | before an optimizer step, with its batch |
| batch | name, number | before a batch of inference, counted from 0 |
| progress | name, done, total | after a step, or a batch of inference that is shown |

A callable that raises ends the run as the part itself would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class OnEvent(Protocol):
    """Called with an event's name and its facts."""

    def __call__(self, event: str, **facts: Any) -> None:
        """Hear of one event."""


def ignore(event: str, **facts: Any) -> None:
    """Tells nobody."""


@contextmanager
def part(on_event: OnEvent, name: str) -> Iterator[None]:
    """Tell the beginning and the end of a part of a run, whichever way it ends."""
    on_event("begin", part=name)
    try:
        yield
    finally:
        on_event("end", part=name)
