"""Long work that many tests repeat on the same scans, done once; its reports are given again each time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from MITSGANLib.scan.volume import CTVolume


def scan_and_history(volume: CTVolume) -> Hashable:
    """All that a scan is: voxels, grid, and where it came from, with dates."""
    return (*_scan(volume), repr(volume.provenance))


def scan_and_deeds(volume: CTVolume) -> Hashable:
    """Voxels, grid, and what was done to them, whenever that was."""
    return (*_scan(volume), *(repr((step.kind, step.parameters)) for step in volume.provenance.steps))


def _scan(volume: CTVolume) -> tuple[Hashable, ...]:
    return volume.hu.tobytes(), volume.shape, volume.spacing, volume.origin, volume.direction.tobytes()


class Memory:
    """Results and reports of functions, by what the functions were asked."""

    def __init__(self) -> None:
        self._done: dict[Hashable, tuple[Any, list[tuple]]] = {}

    def forget(self) -> None:
        """Do all anew from now on."""
        self._done.clear()

    def of(self, function: Callable[..., Any], asked: Callable[..., Hashable | None]) -> Callable[..., Any]:
        """A function that takes results from memory, with all reports, any of which may cancel it as ever.

        :param asked: makes of the arguments, without ``progress``, what the result depends on; None: do it each time.
        """

        def remembered(*arguments: Any, progress: Callable[..., None] | None = None, **options: Any) -> Any:
            question = asked(*arguments, **options)
            if question is None:
                return function(*arguments, progress=progress, **options)
            question = (function.__name__, question)
            if question in self._done:
                result, reports = self._done[question]
                for report in reports if progress else ():
                    progress(*report)
                return result
            reports = []

            def note(*report: Any) -> None:
                reports.append(report)
                if progress:
                    progress(*report)

            result = function(*arguments, progress=note, **options)
            self._done[question] = result, reports
            return result

        return remembered
