"""How work that takes a while tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, all) in steps of some kind, such as slices. What it raises, as ``CancelledError``, ends it."""
