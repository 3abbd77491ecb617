"""Work that waits until each of its reports is shown, so that no test depends on how fast it is.

The panel shows the latest report about fifty times a second. Of fast work that may be the last one alone, whose value
the bar may have already, as after the job before: then there is no moment at which a test could press a button.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from MITSGANLib.runtime.background import run_in_background


def run_in_lockstep(
    work: Callable[[Callable[..., None]], Any], progress: Callable[..., None] | None, keep_alive: Callable[[], None]
) -> Any:
    """As :func:`MITSGANLib.runtime.background.run_in_background`, one report after the other."""
    shown, nobody_looks = threading.Event(), threading.Event()

    def looking(look: Callable[..., None]) -> Callable[..., None]:
        def look_or_leave(*arguments: Any) -> None:
            try:
                look(*arguments)
            except BaseException:
                nobody_looks.set()
                shown.set()
                raise

        return look_or_leave

    def show(*report: Any) -> None:
        if progress:
            progress(*report)
        shown.set()

    def in_lockstep(report: Callable[..., None]) -> Any:
        def and_wait(*arguments: Any) -> None:
            shown.clear()
            report(*arguments)
            if not nobody_looks.is_set():
                shown.wait()

        return work(and_wait)

    return run_in_background(in_lockstep, looking(show), looking(keep_alive))
