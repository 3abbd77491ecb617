"""What the volumes of one simulated attack say about each other: the figures of the panel's table, plot and summary.

The same comparisons as in the demonstration's report: protection against the source, each attack against what it
attacked, and how far protection moves the forgery, beside the control of noise of the same RMSE.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..attack.regions import MIDDLE, regions_at
from ..errors import InputError
from ..scan.regions import Region
from ..scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume
from ..scan.windows import LUNG, MEDIASTINUM
from ..watermark.checking import check_place
from ..watermark.places import Place
from .metrics import Comparison, compare

if TYPE_CHECKING:
    from ..attack.attacker import Attacker

PROTECTION_PAIR = "protected − source"
ATTACK_PAIR = "source attacked − source"
ATTACK_ON_PROTECTED_PAIR = "protected attacked − protected"
FORGERY_PAIR = "protected attacked − source attacked"
CONTROL_PAIR = "noise attacked − source attacked"

_LPIPS_SLICES = 4
_MARGIN_MM = 17.0  # half the attacked cube and its rounding

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ComparedPair:
    """One comparison, and which two volumes it is of."""

    compared: str
    comparison: Comparison


@dataclass(frozen=True)
class Effect:
    """All findings of a scene.

    :param findings: the protection of the whole scan first; those at the target follow when there was an attack.
    :param rmse_by_slice: for the plot: RMSE in HU of every slice against the source.
    :param watermark: what is left of the open watermark at the target after the attack; None without an attack, or
        where the protected volume carries none.
    """

    findings: tuple[ComparedPair, ...]
    rmse_by_slice: dict[str, tuple[float, ...]] = field(default_factory=dict)
    watermark: Place | None = None

    @property
    def protection(self) -> Comparison:
        return self.findings[0].comparison

    @property
    def attack_rmse_hu(self) -> float | None:
        """How much the attack on the source changed the 20 mm that the attacker made up; None without an attack."""
        own = self._in_middle(ATTACK_PAIR)
        return own.rmse.value if own else None

    @property
    def forgery_share(self) -> float | None:
        """How far protection moved the forgery, as a share of :attr:`attack_rmse_hu`."""
        return self._share(FORGERY_PAIR)

    @property
    def control_share(self) -> float | None:
        """How far noise of the protection's RMSE moved the forgery, as a share of :attr:`attack_rmse_hu`."""
        return self._share(CONTROL_PAIR)

    def _in_middle(self, compared: str) -> Comparison | None:
        return next(
            (
                finding.comparison
                for finding in self.findings
                if finding.compared == compared and finding.comparison.region.name == MIDDLE
            ),
            None,
        )

    def _share(self, compared: str) -> float | None:
        change, own = self._in_middle(compared), self._in_middle(ATTACK_PAIR)
        return relative_change(change, own) if change and own else None


def measure_effect(
    source: CTVolume,
    protected: CTVolume,
    source_attacked: CTVolume | None = None,
    protected_attacked: CTVolume | None = None,
    *,
    attacker: str | Path | Attacker | None = None,
    device: str = "auto",
    lpips: Any = None,
    progress: Progress | None = None,
) -> Effect:
    """Measure protection, and the attack where both attacked volumes are given.

    :param attacker: who made the attacked volumes, to attack the noise control as well; None leaves that out.
    :param lpips: as in :func:`~MITSGANLib.measure.metrics.compare`.
    :param progress: called with (steps done, steps in all), a step being a slice or a place; may raise
        ``CancelledError``.
    :raises InputError: when the volumes do not share their grid, or the two attacks differ in target or action.
    """
    slices = source.shape[0]
    targets = 5 if source_attacked is not None and protected_attacked is not None else 0
    report = progress or (lambda _done, _total: None)
    total = slices + targets

    whole = compare(
        source,
        protected,
        windows=(LUNG, MEDIASTINUM),
        lpips=lpips,
        lpips_slices=np.unique(np.linspace(0, slices - 1, _LPIPS_SLICES + 2).astype(int)[1:-1]).tolist(),
        progress=lambda done, _slices: report(done, total),
    )
    findings = [ComparedPair(PROTECTION_PAIR, whole)]
    curves = {PROTECTION_PAIR: tuple(value or 0.0 for value in whole.rmse.per_slice)}
    if not targets:
        return Effect(tuple(findings), curves)

    attack = _attack_of(source_attacked)
    if attack != _attack_of(protected_attacked):
        raise InputError("The two attacked volumes differ in target or action; attack both again at the same point.")
    curves[ATTACK_PAIR] = _rmse_by_slice(source, source_attacked)
    places = regions_at(source, attack.kji)
    square, middle = places.square, places.middle

    def find(compared: str, reference: CTVolume, other: CTVolume, *regions: Region) -> None:
        for region in regions:
            findings.append(ComparedPair(compared, compare(reference, other, region=region, lpips=lpips)))

    find(PROTECTION_PAIR, source, protected, square)
    report(slices + 1, total)
    find(ATTACK_PAIR, source, source_attacked, square, middle)
    find(ATTACK_ON_PROTECTED_PAIR, protected, protected_attacked, square, middle)
    report(slices + 2, total)
    find(FORGERY_PAIR, source_attacked, protected_attacked, square, middle)
    report(slices + 3, total)
    first, last = _slab_bounds(source, attack.kji[0])
    control = _attacked_control(
        _slab(source, first, last), _slab(protected, first, last), attack, first, attacker, device
    )
    if control is not None:
        here = dataclasses.replace(middle, k0=middle.k0 - first, k1=middle.k1 - first)
        find(CONTROL_PAIR, _slab(source_attacked, first, last), control, here)
    report(slices + 4, total)
    place = check_place(protected_attacked, attack.kji) if _has_open_watermark(protected) else None
    report(total, total)
    return Effect(tuple(findings), curves, place)


def _has_open_watermark(volume: CTVolume) -> bool:
    step = volume.provenance.last(PROTECTION)
    return step is not None and step.parameters.get("watermark") == "open"


@dataclass(frozen=True)
class _Attack:
    kji: tuple[int, int, int]
    action: str
    attacker_sha256: str


def _attack_of(volume: CTVolume) -> _Attack:
    """The last simulated attack on a volume, from its provenance."""
    step = volume.provenance.last(SIMULATED_ATTACK)
    try:
        parameters = step.parameters if step else {}
        kji = tuple(int(index) for index in parameters["target_kji"])
        return _Attack(kji, str(parameters["action"]), str(parameters.get("attacker_sha256", "")))
    except KeyError as error:
        raise InputError(
            "An attacked volume does not say where it was attacked; simulate the attack in this module again."
        ) from error


def _slab_bounds(volume: CTVolume, k: int) -> tuple[int, int]:
    margin = math.ceil(_MARGIN_MM / volume.spacing_kji[0]) + 1
    return max(0, k - margin), min(volume.shape[0], k + margin + 1)


def _slab(volume: CTVolume, first: int, last: int) -> CTVolume:
    return dataclasses.replace(volume, hu=volume.hu[first:last], origin=tuple(volume.voxel_to_lps((first, 0, 0))))


def _attacked_control(
    source: CTVolume,
    protected: CTVolume,
    attack: _Attack,
    first: int,
    attacker: str | Path | Attacker | None,
    device: str,
) -> CTVolume | None:
    """Slices around the target with noise of the protection's RMSE, attacked in the same way by the same attacker.

    None when that attacker is not at hand: another one would make another forgery, not a control of this.
    """
    from ..attack.attacker import Attacker, load_attacker, simulate_attack
    from .noise_controls import equal_rmse_noise

    if attacker is None:
        return None
    ready = attacker if isinstance(attacker, Attacker) else load_attacker(attacker, attack.action)
    if (ready.action, ready.digest) != (attack.action, attack.attacker_sha256):
        return None
    k, j, i = attack.kji
    noise = equal_rmse_noise(source, protected)
    return simulate_attack(noise, (k - first, j, i), attack.action, attacker=ready, device=device)


def _rmse_by_slice(reference: CTVolume, other: CTVolume) -> tuple[float, ...]:
    return tuple(
        float(np.sqrt(np.mean(np.subtract(b, a, dtype=np.float32) ** 2)))
        for a, b in zip(reference.hu, other.hu, strict=True)
    )


def relative_change(change: Comparison, own: Comparison) -> float | None:
    """RMSE of ``change`` as a share of the attack's own RMSE; None where either has no value or the attack did nothing.

    :param change: an attacked protected (or noisy) scan against the attacked clean scan, in the middle.
    :param own: the attacked clean scan against the clean scan, in the middle.
    """
    moved, forged = change.rmse.value, own.rmse.value
    return None if moved is None or not forged else moved / forged
