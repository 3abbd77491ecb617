"""Judges: frozen classifiers that say whether a place of a scan shows a nodule, or whether it was forged.

They decide whether an attack counts as a success: a nodule judge sees a cube at 1 mm, a forgery judge a few slices at
the scan's own resolution. Each is a safetensors file in ``Resources/Models/judges`` beside its card, which holds what
the judge looks at and the threshold that was set on validation patients. Arrays are (slice, row, column), HU.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import weights
from ..errors import InputError, ModelError
from ..scan.cubes import Box, rescale
from ..scan.volume import CTVolume

if TYPE_CHECKING:
    import torch

Question = Literal["nodule", "forgery"]
QUESTIONS: tuple[Question, ...] = ("nodule", "forgery")
DEFAULT_JUDGES: dict[Question, str] = {"nodule": "nodule-residual", "forgery": "forensic"}
THRESHOLD = "threshold"
_KIND = "judge of "
_PART = 64  # places that are looked at together


@dataclass(frozen=True)
class Sight:
    """What a judge sees of a place.

    :param kind: "cube": ``edge`` mm around the place at 1 mm, as CT-GAN cuts and rescales its cube; "squares": ``edge``
        voxels in the plane and ``slices`` slices of the scan's own grid.
    """

    kind: Literal["cube", "squares"] = "cube"
    edge: int = 32
    slices: int = 5

    def __post_init__(self) -> None:
        if self.kind not in ("cube", "squares"):
            raise InputError(f"A view is a 'cube' or 'squares', not {self.kind!r}.")
        if self.edge < 8 or self.slices < 1:
            raise InputError(
                f"A view needs an edge of at least 8 and at least one slice, not {self.edge} and {self.slices}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of what :meth:`cut` gives, (slices, rows, columns)."""
        return (self.edge if self.kind == "cube" else self.slices, self.edge, self.edge)

    def box(self, shape: Sequence[int], spacing_kji: Sequence[float], kji: Sequence[int]) -> Box:
        """The part of a scan of this shape (slices, rows, columns) that :meth:`cut` reads.

        A place seen in this part, with its voxel counted from the part's start, looks as it does in the whole scan.
        """
        return tuple(slice(int(axis[0]), int(axis[-1]) + 1) for axis in self._indices(shape, spacing_kji, kji))

    def cut(self, hu: np.ndarray, spacing_kji: Sequence[float], kji: Sequence[int]) -> np.ndarray:
        """What the judge sees of the place ``kji`` (slice, row, column) of a scan, float32 in HU; see :attr:`shape`.

        :param hu: (slices, rows, columns) in HU; beyond it its border repeats.
        :param spacing_kji: mm in the same order.
        """
        part = np.asarray(hu[np.ix_(*self._indices(hu.shape, spacing_kji, kji))], dtype=np.float32)
        if self.kind == "squares":
            return part
        import torch

        return rescale(torch.from_numpy(part), self.shape).float().numpy()

    def _indices(self, shape: Sequence[int], spacing_kji: Sequence[float], kji: Sequence[int]) -> Iterator[np.ndarray]:
        """Voxels of a scan along each axis; beyond the scan its border repeats."""
        seen = self.shape
        if self.kind == "cube":
            seen = np.maximum(np.round(self.edge / np.asarray(spacing_kji, dtype=np.float64)), 1)
        for center, count, size in zip(kji, seen, shape, strict=True):
            yield np.clip(int(center - np.round(count / 2)) + np.arange(int(count)), 0, size - 1)


@dataclass(frozen=True, eq=False)
class Judge:
    """A frozen classifier, ready to be asked.

    :param threshold: scores from here on mean yes.
    :param digest: SHA-256 of the weights.
    """

    name: str
    question: Question
    view: Sight
    network: torch.nn.Module
    threshold: float
    digest: str = ""

    def to(self, device: torch.device | str) -> Judge:
        """This judge with its network on a device."""
        self.network.to(device)
        return self

    def score(self, volume: CTVolume, places: Sequence[Sequence[int]]) -> np.ndarray:
        """How sure the judge is of yes at each place (slice, row, column), from 0 to 1, float64 (places,)."""
        return self.score_views([self.view.cut(volume.hu, volume.spacing_kji, place) for place in places])

    def score_views(self, views: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """As :meth:`score`, for what :meth:`Sight.cut` gave, or other cubes of that shape in HU.

        :raises InputError: when a view has another shape.
        """
        import torch

        for view in views:
            if view.shape != self.view.shape:
                raise InputError(f"The judge {self.name} looks at {self.view.shape} voxels, not {view.shape}.")
        if not len(views):
            return np.empty(0)
        device = next(self.network.parameters()).device
        scores = []
        with torch.no_grad():
            for start in range(0, len(views), _PART):
                part = np.stack([np.asarray(view, dtype=np.float32) for view in views[start : start + _PART]])
                scores.append(torch.sigmoid(self.network(torch.from_numpy(part).to(device)).double()).cpu().numpy())
        return np.concatenate(scores)

    def says_yes(self, scores: np.ndarray | float) -> np.ndarray:
        """Which scores reach the threshold."""
        return np.asarray(scores) >= self.threshold


def available_judges(question: Question | None = None, folder: Path = weights.MODELS_FOLDER) -> list[str]:
    """Names of the installed judges, of one question or of all, the default of each question first."""
    cards = weights.installed_cards(folder / "judges", DEFAULT_JUDGES.values())
    return [card.name for card in cards if question is None or card.kind == kind_of(question)]


def load_judge(name: str | os.PathLike[str], folder: Path = weights.MODELS_FOLDER) -> Judge:
    """A judge by name, or by the path of a .safetensors file with its card beside it.

    :raises ModelError: when it is unknown, corrupt, no judge, or its card lacks view or threshold.
    """
    path = weights.weights_path(name, folder / "judges", "judge", lambda: available_judges(folder=folder))
    tensors, card = weights.read_weights(path)
    question = card.kind.removeprefix(_KIND)
    if question not in QUESTIONS:
        raise ModelError(f"Model '{card.name}' is a {card.kind}, not a judge; choose another.")
    try:
        make = maker(card.architecture["class"], card.architecture["config"])
        view = Sight(**card.architecture["view"])
        threshold = float(card.figures[THRESHOLD])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, InputError) as error:
        raise ModelError(
            f"The card of judge '{card.name}' lacks or has an unusable architecture, view or threshold ({error}); "
            "reinstall the extension, or train the judge again."
        ) from error
    return Judge(card.name, question, view, weights.fill(make, tensors, card), threshold, card.sha256)


def kind_of(question: Question) -> str:
    """The kind that a judge's model card names."""
    return f"{_KIND}{question}"


def maker(name: str, values: Mapping[str, Any]) -> Callable[[], torch.nn.Module]:
    """Makes a judge's network with random weights, from the class and the configuration that its card names.

    :raises KeyError: for an unknown class; otherwise as :func:`.weights.configured`.
    """
    from .networks import NETWORKS

    network, kind = NETWORKS[name]
    return functools.partial(network, weights.configured(kind, values))
