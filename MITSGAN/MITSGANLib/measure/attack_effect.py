"""What one attack does to the arms of an experiment: the figures of the panel, the demonstration and the tables.

Arms are scans by name: :data:`CLEAN`, :data:`PROTECTED`, and controls such as :data:`NOISE` of the same RMSE. How far
protection moves the forgery is measured in the middle that the attacker's network makes up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..attack.regions import regions_at
from ..errors import InputError
from ..scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume
from ..scan.windows import LUNG, MEDIASTINUM
from ..watermark.checking import check_place
from ..watermark.places import Place
from .metrics import Comparison, compare
from .noise_controls import equal_rmse_noise

if TYPE_CHECKING:
    from ..attack.attacker import Attacker

CLEAN, PROTECTED, NOISE = "clean", "protected", "noise"

PROTECTION_PAIR = "protected − source"
ATTACK_PAIR = "source attacked − source"
ATTACK_ON_PROTECTED_PAIR = "protected attacked − protected"
FORGERY_PAIR = "protected attacked − source attacked"
CONTROL_PAIR = "noise attacked − source attacked"

_LPIPS_SLICES = 4
_WHOLE_LPIPS_SLICES = 8
_MARGIN_MM = 17.0  # half the attacked cube and its rounding

Progress = Callable[[int, int], None]
Voxels = CTVolume | np.ndarray


@dataclass(frozen=True)
class ForgeryEffect:
    """How far the outcome of one attack on each arm is from its outcome on the clean scan.

    :param own: what the attack itself changes, attacked clean scan against clean scan.
    :param moved: by arm, the attacked arm against the attacked clean scan.
    """

    own: Comparison
    moved: Mapping[str, Comparison]

    def share(self, arm: str) -> float | None:
        """RMSE between the outcomes on an arm and on the clean scan, as a share of the attack's own.

        None where the arm was not attacked, one of the two has no value, or the attack did nothing.
        """
        moved, own = self.moved[arm].rmse.value if arm in self.moved else None, self.own.rmse.value
        return None if moved is None or not own else moved / own


def forgery_effect(
    clean: Voxels, attacked: Mapping[str, Voxels], measure: Callable[[Voxels, Voxels], Comparison]
) -> ForgeryEffect:
    """Compare the outcomes of one attack.

    :param clean: the clean scan, or the part of it that the attacker's network makes up.
    :param attacked: the same of each arm after the attack; :data:`CLEAN` must be among them.
    :param measure: :func:`~.metrics.compare` with its options.
    """
    outcome = attacked[CLEAN]
    moved = {arm: measure(outcome, other) for arm, other in attacked.items() if arm != CLEAN}
    return ForgeryEffect(measure(clean, outcome), moved)


def compare_whole(clean: CTVolume, other: CTVolume, lpips: Any, **options: Any) -> Comparison:
    """Compare all slices, with SSIM in the lung and mediastinal windows too.

    LPIPS takes up to a second a slice on two cores, so eight evenly spaced ones, which the output names.

    :param options: further ones of :func:`~.metrics.compare`.
    """
    spread = np.unique(np.linspace(0, clean.shape[0] - 1, _WHOLE_LPIPS_SLICES).astype(int)).tolist()
    return compare(clean, other, windows=(LUNG, MEDIASTINUM), lpips=lpips, lpips_slices=spread, **options)


@dataclass(frozen=True)
class ComparedPair:
    """One comparison, and which two volumes it is of."""

    compared: str
    comparison: Comparison


@dataclass(frozen=True)
class Effect:
    """What the volumes of a scene say about each other.

    :param findings: the protection of the whole scan first; those at the target follow when there was an attack.
    :param rmse_by_slice: for the plot: RMSE in HU of every slice against the source.
    :param forgery: None without an attack.
    :param watermark: what is left of the open watermark at the target after the attack; None without an attack, or
        where the protected volume carries none.
    """

    findings: tuple[ComparedPair, ...]
    rmse_by_slice: dict[str, tuple[float, ...]] = field(default_factory=dict)
    forgery: ForgeryEffect | None = None
    watermark: Place | None = None

    @property
    def protection(self) -> Comparison:
        """The whole protected volume against the source."""
        return self.findings[0].comparison

    @property
    def attack_rmse_hu(self) -> float | None:
        """How much the attack on the source changed the 20 mm that the attacker made up; None without an attack."""
        return self.forgery and self.forgery.own.rmse.value

    @property
    def forgery_share(self) -> float | None:
        """How far protection moved the forgery, as a share of :attr:`attack_rmse_hu`."""
        return self.forgery and self.forgery.share(PROTECTED)

    @property
    def control_share(self) -> float | None:
        """How far noise of the protection's RMSE moved the forgery, as a share of :attr:`attack_rmse_hu`."""
        return self.forgery and self.forgery.share(NOISE)


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
    is_attacked = source_attacked is not None and protected_attacked is not None
    total = slices + 5 * is_attacked
    report = progress or (lambda _done, _total: None)
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
    if not is_attacked:
        return Effect(tuple(findings), curves)

    attack = _attack_of(source_attacked)
    if attack != _attack_of(protected_attacked):
        raise InputError("The two attacked volumes differ in target or action; attack both again at the same point.")
    curves[ATTACK_PAIR] = _rmse_by_slice(source, source_attacked)
    places = regions_at(source, attack.kji)
    pairs = (
        (PROTECTION_PAIR, source, protected),
        (ATTACK_PAIR, source, source_attacked),
        (ATTACK_ON_PROTECTED_PAIR, protected, protected_attacked),
        (FORGERY_PAIR, source_attacked, protected_attacked),
    )
    at_target: dict[str, Comparison] = {}  # the last one of each pair: in the middle
    for step, (compared, reference, other) in enumerate(pairs, start=slices + 1):
        for region in (places.square, places.middle)[: 1 if compared == PROTECTION_PAIR else 2]:
            at_target[compared] = compare(reference, other, region=region, lpips=lpips)
            findings.append(ComparedPair(compared, at_target[compared]))
        report(step, total)
    moved = {PROTECTED: at_target[FORGERY_PAIR]}
    control = _control(source, protected, source_attacked, attack, attacker, device, lpips)
    if control is not None:
        findings.append(ComparedPair(CONTROL_PAIR, control))
        moved[NOISE] = control
    place = check_place(protected_attacked, attack.kji) if _has_open_watermark(protected) else None
    report(total, total)
    return Effect(tuple(findings), curves, ForgeryEffect(at_target[ATTACK_PAIR], moved), place)


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


def _control(
    source: CTVolume,
    protected: CTVolume,
    source_attacked: CTVolume,
    attack: _Attack,
    attacker: str | Path | Attacker | None,
    device: str,
    lpips: Any,
) -> Comparison | None:
    """The forgery in noise of the protection's RMSE against that in the source, from slices around the target alone.

    None when that attacker is not at hand: another one would make another forgery, not a control of this.
    """
    from ..attack.attacker import Attacker, load_attacker, simulate_attack

    if attacker is None:
        return None
    ready = attacker if isinstance(attacker, Attacker) else load_attacker(attacker, attack.action)
    if (ready.action, ready.digest) != (attack.action, attack.attacker_sha256):
        return None
    k, j, i = attack.kji
    margin = math.ceil(_MARGIN_MM / source.spacing_kji[0]) + 1
    first, last = max(0, k - margin), min(source.shape[0], k + margin + 1)
    clean, changed, forged = (
        dataclasses.replace(scan, hu=scan.hu[first:last], origin=tuple(scan.voxel_to_lps((first, 0, 0))))
        for scan in (source, protected, source_attacked)
    )
    noise = simulate_attack(
        equal_rmse_noise(clean, changed), (k - first, j, i), attack.action, attacker=ready, device=device
    )
    return compare(forged, noise, region=regions_at(clean, (k - first, j, i)).middle, lpips=lpips)


def _rmse_by_slice(reference: CTVolume, other: CTVolume) -> tuple[float, ...]:
    return tuple(
        float(np.sqrt(np.mean(np.subtract(b, a, dtype=np.float32) ** 2)))
        for a, b in zip(reference.hu, other.hu, strict=True)
    )
