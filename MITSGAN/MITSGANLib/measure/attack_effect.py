"""What one attack does to the arms of an experiment: the figures of the panel, the demonstration and the tables.

Arms are scans by name: :data:`CLEAN`, :data:`PROTECTED`, and two controls: :data:`NOISE` of the same RMSE, and
:data:`INTO_ORIGINAL`, what the attacker paints when he reads the protected scan, put into the original. Where that
succeeds, a failure on the protected scan is the judges', whom the protection blinds. How far protection moves the
forgery is measured in the middle that the attacker's network makes up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..budget.noise import scan_noise
from ..errors import InputError
from ..judges.jury import Judgment, Jury
from ..runtime.devices import resolve_device
from ..runtime.progress import Progress
from ..runtime.threads import side_by_side
from ..scan.regions import Region, TargetRegions, regions_at
from ..scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume
from ..scan.windows import LUNG, MEDIASTINUM
from ..watermark.checking import Place, check_place
from ..watermark.pattern import OPEN_KEY, WatermarkKey
from .metrics import Comparison, compare
from .noise_controls import noise_in_boxes

if TYPE_CHECKING:
    from ..attack.attacker import Attacker

CLEAN, PROTECTED, NOISE, INTO_ORIGINAL = "clean", "protected", "noise", "into original"

PROTECTION_PAIR = "protected − source"
ATTACK_PAIR = "source attacked − source"
ATTACK_ON_PROTECTED_PAIR = "protected attacked − protected"
FORGERY_PAIR = "protected attacked − source attacked"
CONTROL_PAIR = "noise attacked − source attacked"

NOISE_SEEDS = (0, 1, 2, 3, 4)
"""Seeds of the noise control's draws: one draw says nothing about how much noise differs from noise."""

_ATTACK_STEPS = 1 + len(NOISE_SEEDS) + 8 + 1  # the watermark, the draws, four pairs in two regions, the other judging

Voxels = CTVolume | np.ndarray


@dataclass(frozen=True)
class ForgeryEffect:
    """How far the outcome of one attack on each arm is from its outcome on the clean scan.

    :param own: what the attack itself changes, attacked clean scan against clean scan.
    :param moved: by arm, the attacked arm against the attacked clean scan.
    :param draws: the same of each draw of the noise control.
    """

    own: Comparison
    moved: Mapping[str, Comparison]
    draws: tuple[Comparison, ...] = ()

    def share(self, arm: str) -> float | None:
        """RMSE between the outcomes on an arm and on the clean scan, as a share of the attack's own.

        For :data:`NOISE`, the median of the draws. None where the arm was not attacked, one of the two has no value, or
        the attack did nothing.
        """
        if arm == NOISE and self.draws:
            return float(np.median(self.noise_shares)) if self.noise_shares else None
        return self._share(self.moved.get(arm))

    @property
    def noise_shares(self) -> tuple[float, ...]:
        """The shares of all draws of the noise control, the smallest first."""
        return tuple(sorted(share for draw in self.draws if (share := self._share(draw)) is not None))

    def _share(self, comparison: Comparison | None) -> float | None:
        moved, own = comparison and comparison.rmse.value, self.own.rmse.value
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


def compare_protection(
    clean: CTVolume, protected: CTVolume, lpips: Any, *, lpips_slices: int = 4, **options: Any
) -> Comparison:
    """Compare all slices of a protected scan with its source, with SSIM in the lung and mediastinal windows too.

    :param lpips_slices: how many evenly spaced ones, which the output names: LPIPS takes up to a second a slice on two
        cores.
    :param options: further ones of :func:`~.metrics.compare`.
    """
    spread = np.unique(np.linspace(0, clean.shape[0] - 1, lpips_slices).astype(int)).tolist()
    return compare(clean, protected, windows=(LUNG, MEDIASTINUM), lpips=lpips, lpips_slices=spread, **options)


@dataclass(frozen=True)
class ComparedPair:
    """One comparison, and which two volumes it is of."""

    compared: str
    comparison: Comparison


@dataclass(frozen=True)
class AttackEffect:
    """What one attack does, with and without protection: measured here, and nowhere else.

    :param kji: the target, (slice, row, column).
    :param places: the regions at the target.
    :param pairs: in the square on the target's slice and in the in-painted middle.
    :param forgery: the attack's own change, and how far protection and noise move it, in the middle.
    :param noise_slice: the target's slice (rows, columns) int16 HU of the first noise draw, attacked; None without.
    :param watermark: what is left of the protected scan's watermark there; None where that carries none.
    :param verdicts: what judges say the attack came to, by arm; of noise one for each draw. None without an attacker.
    """

    kji: tuple[int, int, int]
    action: str
    places: TargetRegions
    pairs: tuple[ComparedPair, ...]
    forgery: ForgeryEffect
    noise_slice: np.ndarray | None = None
    watermark: Place | None = None
    verdicts: Mapping[str, tuple[Judgment, ...]] = field(default_factory=dict)

    def succeeded(self, arm: str) -> tuple[int, int] | None:
        """How many attacks on an arm reach their finding and pass the forensic judge, and of how many.

        None where none was judged, or there was nothing to reach: a nodule before an injection, none before a removal.
        """
        found = [verdict.succeeded for verdict in self.verdicts.get(arm, ())]
        return (sum(found), len(found)) if found and None not in found else None

    def in_middle(self, compared: str) -> Comparison:
        """The comparison of this pair in the middle that the attacker's network made up."""
        return next(
            pair.comparison
            for pair in self.pairs
            if pair.compared == compared and pair.comparison.region == self.places.middle
        )

    def __str__(self) -> str:
        shares = self.forgery.noise_shares
        noise = (
            f", {self.forgery.share(NOISE):.1%} ({shares[0]:.1%} to {shares[-1]:.1%}) by noise of the same RMSE"
            if shares
            else ""
        )
        own, moved = self.forgery.own.rmse.value, self.forgery.share(PROTECTED)
        words = {
            CLEAN: "unprotected",
            PROTECTED: "protected",
            NOISE: "with noise",
            INTO_ORIGINAL: "put into the original",
        }
        succeeded = {arm: pair for arm in words if (pair := self.succeeded(arm))}
        counts = ", ".join(f"{words[arm]} {hits} of {count}" for arm, (hits, count) in succeeded.items())
        return (
            f"the attack changed its middle 20 mm by RMSE {own:.1f} HU; of that the forgery was moved "
            f"{0 if moved is None else moved:.1%} by protection{noise}"
            f"{f'; for the judges it succeeds {counts}' if counts else ''}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, every figure with its definition."""
        return {
            "action": self.action,
            "kji": list(self.kji),
            "attack_rmse_hu": self.forgery.own.rmse.value,
            "relative_forgery_change": {arm: self.forgery.share(arm) for arm in (PROTECTED, NOISE)},
            "noise_draws": list(self.forgery.noise_shares),
            "verdicts": {arm: [verdict.to_dict() for verdict in found] for arm, found in self.verdicts.items()},
            "pairs": [{"compared": pair.compared, **pair.comparison.to_dict()} for pair in self.pairs],
            "watermark": self.watermark and self.watermark.to_dict(),
        }


@dataclass(frozen=True)
class Effect:
    """What the volumes of a scene say about each other.

    :param protection: the whole protected volume against the source.
    :param rmse_by_slice: for the plot: RMSE in HU of every slice against the source.
    :param noise_sd_hu: the scan's own noise; None where it has too little soft tissue to tell.
    :param attack: None without an attack.
    """

    protection: Comparison
    rmse_by_slice: dict[str, tuple[float, ...]] = field(default_factory=dict)
    noise_sd_hu: float | None = None
    attack: AttackEffect | None = None

    @property
    def comparisons(self) -> tuple[ComparedPair, ...]:
        """All comparisons: the protection of the whole scan first, then those at the target."""
        return (ComparedPair(PROTECTION_PAIR, self.protection), *(self.attack.pairs if self.attack else ()))

    @property
    def watermark(self) -> Place | None:
        """What is left of the watermark at the target after the attack; None without an attack or a watermark."""
        return self.attack and self.attack.watermark


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
    :param progress: called with (steps done, steps in all), a step being a slice or a comparison; may raise
        ``CancelledError``.
    :raises InputError: when the volumes do not share their grid, or the two attacks differ in target or action.
    """
    slices = source.shape[0]
    is_attacked = source_attacked is not None and protected_attacked is not None
    total = slices + _ATTACK_STEPS * is_attacked
    report = progress or (lambda _done, _total: None)
    whole = compare_protection(source, protected, lpips, progress=lambda done, _slices: report(done, total))
    curves = {PROTECTION_PAIR: tuple(value or 0.0 for value in whole.rmse.per_slice)}
    noise = scan_noise(source.hu, source.spacing_kji).sd_hu
    if not is_attacked:
        return Effect(whole, curves, noise)
    changes = (np.subtract(b, a, dtype=np.float32) for a, b in zip(source.hu, source_attacked.hu, strict=True))
    curves[ATTACK_PAIR] = tuple(float(np.sqrt(np.mean(change**2))) for change in changes)
    effect = measure_attack(
        source,
        protected,
        source_attacked,
        protected_attacked,
        attacker=attacker,
        device=device,
        lpips=lpips,
        progress=lambda done, _steps: report(slices + done, total),
    )
    return Effect(whole, curves, noise, effect)


def measure_attack(
    source: CTVolume,
    protected: CTVolume,
    source_attacked: CTVolume,
    protected_attacked: CTVolume,
    *,
    attacker: str | Path | Attacker | None = None,
    device: str = "auto",
    lpips: Any = None,
    key: WatermarkKey | None = None,
    progress: Progress | None = None,
) -> AttackEffect:
    """Measure one attack on a scan and on its protected copy, against noise of the protection's RMSE.

    The noise is drawn in all that the attack reads, once for each of :data:`NOISE_SEEDS`, and attacked at the same
    voxel of the whole scan: the attack copies noise from a fixed place of it.

    :param key: of the watermark that is looked for; None is the open one, where the protected volume carries it.

    Other parameters and errors as in :func:`measure_effect`.
    """
    attack = _attack_of(source_attacked)
    if attack != _attack_of(protected_attacked):
        raise InputError("The two attacked volumes differ in target or action; attack both again at the same point.")
    report = progress or (lambda _done, _total: None)
    places, spacing = regions_at(source, attack.kji), source.spacing_kji
    pairs = (
        (PROTECTION_PAIR, source, protected),
        (ATTACK_PAIR, source, source_attacked),
        (ATTACK_ON_PROTECTED_PAIR, protected, protected_attacked),
        (FORGERY_PAIR, source_attacked, protected_attacked),
    )
    jury = Jury.load() if attacker else None
    clean = jury and jury.look([source.hu], spacing, attack.kji)[0]
    ready = _control_attacker(attack, attacker)
    recorded = protected.provenance.last(PROTECTION)
    is_marked = key is not None or (recorded is not None and recorded.parameters.get("watermark") == "open")

    def look_for_mark() -> Place | None:
        return check_place(protected_attacked, attack.kji, key or OPEN_KEY) if is_marked else None

    def compare_in(compared: str, reference: CTVolume, other: CTVolume, region: Region) -> ComparedPair:
        return ComparedPair(compared, compare(reference, other, region=region, lpips=lpips))

    def judged(hu: np.ndarray) -> Judgment:
        return jury.verdict(attack.action, clean, jury.look([hu], spacing, attack.kji)[0])

    def attacked(hu: np.ndarray, read: np.ndarray | None = None) -> np.ndarray:
        import torch

        from ..attack.attacker import attack_patch

        scans = [None if one is None else torch.from_numpy(one).to(resolve_device(device)) for one in (hu, read)]
        where, values = attack_patch(scans[0], attack.kji, spacing, ready, scans[1])
        hu[where] = values
        return hu

    def draw(seed: int) -> tuple[Comparison, Judgment, np.ndarray]:
        from ..attack.chain import boxes_read

        boxes = boxes_read(source.shape, attack.kji, spacing)
        noise = attacked(noise_in_boxes(source, protected, boxes, seed))
        moved = compare(source_attacked.hu, noise, region=places.middle)
        return moved, judged(noise), noise[attack.kji[0]].copy()

    # The longest first, side by side on the cores.
    tasks: list[Callable[[], Any]] = [look_for_mark]
    tasks += [partial(draw, seed) for seed in NOISE_SEEDS if ready]
    tasks += [partial(compare_in, *pair, region) for pair in pairs for region in (places.square, places.middle)]
    results = []
    for result in side_by_side(lambda number: tasks[number](), len(tasks)):
        results.append(result)
        report(min(len(results), _ATTACK_STEPS - 1), _ATTACK_STEPS)
    place, draws, found = results[0], results[1 : -2 * len(pairs)], results[-2 * len(pairs) :]
    in_middle = {pair.compared: pair.comparison for pair in found}  # the last of each pair
    moved = tuple(comparison for comparison, _verdict, _slice in draws)
    found += [ComparedPair(f"{CONTROL_PAIR}, draw {number}", draw) for number, draw in enumerate(moved, start=1)]
    verdicts = {}
    if jury:
        verdicts = {CLEAN: (judged(source_attacked.hu),), PROTECTED: (judged(protected_attacked.hu),)}
    if ready:
        verdicts[INTO_ORIGINAL] = (judged(attacked(source.hu.copy(), protected.hu.copy())),)
        verdicts[NOISE] = tuple(verdict for _comparison, verdict, _slice in draws)
    report(_ATTACK_STEPS, _ATTACK_STEPS)
    forgery = ForgeryEffect(in_middle[ATTACK_PAIR], {PROTECTED: in_middle[FORGERY_PAIR]}, moved)
    noise_slice = draws[0][2] if draws else None
    return AttackEffect(attack.kji, attack.action, places, tuple(found), forgery, noise_slice, place, verdicts)


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


def _control_attacker(attack: _Attack, attacker: str | Path | Attacker | None) -> Attacker | None:
    """The attacker, loaded; None when it is not who attacked: another one would make another forgery, no control."""
    if attacker is None:
        return None
    from ..attack.attacker import Attacker, load_attacker

    ready = attacker if isinstance(attacker, Attacker) else load_attacker(attacker, attack.action)
    return ready if (ready.action, ready.digest) == (attack.action, attack.attacker_sha256) else None
