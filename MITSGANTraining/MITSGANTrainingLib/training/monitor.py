"""What a run shows while it goes on: a progress bar with the losses, a log line, and TensorBoard's files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_log = logging.getLogger(__name__)


class Monitor:
    """A progress bar on a terminal, a log line per report elsewhere, and TensorBoard's files in the folder ``logs``.

    Without the package tensorboard the run goes on, and says how to get it.

    :param shown: off in all processes but the leading one: nothing is shown, and nothing written.
    """

    def __init__(self, logs: Path | None = None, shown: bool = True) -> None:
        self._logs, self._shown = logs, shown
        self._bar: Any = None
        self._writer: Any = None

    def start(self, first: int, steps: int) -> None:
        """Steps ``first`` to ``steps`` are about to run."""
        # Off a terminal (a batch system's log file) a bar is a line per update.
        off = None if self._shown else True
        self._bar = tqdm(total=steps, initial=first, unit="step", file=sys.stderr, dynamic_ncols=True, disable=off)
        if self._logs is not None:
            self._writer = _summary_writer(self._logs, first)

    def report(self, step: int, kind: Literal["training", "validation"], values: Mapping[str, float]) -> None:
        """The losses of a step, or the figures of a validation."""
        shown = {name: f"{value:.4g}" for name, value in values.items()}
        if kind == "training":
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix(shown)
        if self._shown and (self._bar.disable or kind == "validation"):
            with logging_redirect_tqdm():
                _log.info("step %d, %s: %s", step, kind, ", ".join(map(" ".join, shown.items())))
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Sample images, float (rows, columns) from 0 to 1."""
        if self._writer is not None:
            for name, image in images.items():
                self._writer.add_image(name, image, step, dataformats="HW")

    def close(self) -> None:
        """The run has ended, whatever for."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _summary_writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.warning(
            "The package tensorboard is not installed, so no TensorBoard log is kept; pip install tensorboard."
        )
        return None
    # Without purging, what a stopped run logged after its last checkpoint would be there twice.
    return SummaryWriter(str(folder), purge_step=first + 1 if first else None)
