"""The figures: what stands beside pictures does not run into one another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from MITSGANTrainingLib.evaluation.figures import Example, changes_figure

TITLES = (
    "inject, somebody-with-a-long-name-lungs, slice 57",
    "remove, planted nodule, CPTAC-C3N-00247-lungs, slice 57",
)


def slices() -> dict[str, np.ndarray]:
    clean = np.zeros((20, 30), np.int16)
    return {
        "clean": clean,
        "protected": clean + np.int16(3),
        "square": np.array([5, 10, 5, 10]),
        "spacing_kji": np.array([1.0, 0.7, 0.7]),
        "direction": np.eye(3),
    }


def test_long_names_of_rows_do_not_overlap():
    figure = changes_figure([Example(title, {"strong": slices()}) for title in TITLES])
    canvas = FigureCanvasAgg(figure)
    names = [text for text in figure.texts if text.get_rotation() == 90]
    assert [" ".join(name.get_text().split()) for name in names] == list(TITLES)
    boxes = [name.get_window_extent(canvas.get_renderer()) for name in names]
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)
