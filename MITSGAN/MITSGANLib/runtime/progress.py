"""How work that takes a while tells how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Progress = Callable[[int, int], None]
"""Called with (done, all) in steps of some kind, such as slices. What it raises, as ``CancelledError``, ends it."""


def counted(items: Sequence[Item], progress: Progress | None) -> Iterator[Item]:
    """The items one by one; before each, and after the last, ``progress`` hears how many are done."""
    for done, item in enumerate(items):
        if progress:
            progress(done, len(items))
        yield item
    if progress:
        progress(len(items), len(items))
