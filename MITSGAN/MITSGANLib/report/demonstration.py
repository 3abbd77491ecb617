"""The demonstration on one scan: protect it, attack original and protected scan at the same places, measure all arms.

Arms are named as in every table: clean, protected, noise (the control of equal RMSE), and each of them attacked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..attack.attacker import Attacker, simulate_attack
from ..attack.regions import TargetRegions, regions_at
from ..budget.noise import NoiseEstimate, estimate_noise
from ..measure.attack_effect import CLEAN, NOISE, PROTECTED, ForgeryEffect, compare_whole, forgery_effect
from ..measure.lpips_distance import load_lpips
from ..measure.metrics import Comparison, compare
from ..measure.noise_controls import equal_rmse_noise
from ..protection.protector import Protector, protect
from ..scan.targets import Target
from ..scan.volume import CTVolume
from ..watermark.checking import check_place, check_watermark
from ..watermark.places import Place

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TargetResult:
    """What happened at one target.

    :param places: the regions at the target.
    :param slices: the target's slice (rows, columns) int16 HU of each arm, before ("clean") and after the attack
        ("clean attacked").
    :param against_clean: each arm compared with the clean scan within the cube.
    :param forgery: the attack's own change, and how far protection and noise move it, in the middle.
    :param watermark: what is left there of the protected scan's watermark, before the attack and after; None where the
        protection has none, or it cannot be found in this scan.
    """

    target: Target
    places: TargetRegions
    slices: dict[str, np.ndarray]
    against_clean: dict[str, Comparison]
    forgery: ForgeryEffect
    watermark: tuple[Place, Place] | None = None


@dataclass(frozen=True)
class Demonstration:
    """All that the report shows. ``whole`` compares the protected and the noise arm with the clean scan, all slices."""

    clean: CTVolume
    protected: CTVolume
    noise_estimate: NoiseEstimate
    whole: dict[str, Comparison]
    targets: tuple[TargetResult, ...]
    protector: Protector
    attackers: tuple[Attacker, ...]
    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The few figures that a sentence or a model card quotes; definitions as in :meth:`to_dict`.

        Medians are over the targets of one action; shares are of the attack's own RMSE in the in-painted middle.
        """
        whole, noise = self.whole["protected"], self.noise_estimate.sd_hu
        figures: dict[str, Any] = {
            "rmse_hu": _rounded(whole.rmse.value),
            "worst_slice_rmse_hu": _rounded(whole.rmse.worst_slice.value),
            "worst_slice_psnr_db": _rounded(whole.psnr.worst_slice.value) if whole.psnr.worst_slice else None,
            "largest_change_hu": _rounded(whole.max_abs_difference.value),
            "worst_slice_bias_hu": _rounded(whole.mean_bias.worst_slice.value),
            "noise_hu": _rounded(noise),
            "rmse_per_noise": _rounded(whole.rmse.value / noise) if noise else None,
        }
        for action in ("inject", "remove"):
            results = [result for result in self.targets if result.target.action == action]
            if results:
                figures[action] = {
                    "targets": len(results),
                    "median_attack_rmse_hu": _rounded(_median([r.forgery.own.rmse.value for r in results])),
                    **{
                        f"median_share_changed_by_{'protection' if arm == 'protected' else arm}": _rounded(
                            _median([r.forgery.share(arm) for r in results])
                        )
                        for arm in ("protected", "noise")
                    },
                }
        checked = [result.watermark for result in self.targets if result.watermark]
        if checked:
            before, after = (sum(place.is_missing for place in places) for places in zip(*checked, strict=True))
            figures["watermark"] = {"places": len(checked), "missing_before": before, "missing_after_attack": after}
        return figures

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form with every figure's definition; no pictures."""
        return {
            "summary": self.summary(),
            "protector": {
                "name": self.protector.name,
                "sha256": self.protector.digest,
                "seed": self.protector.seed,
                "budget": self.protector.budget.to_dict(),
                "watermark": self.protector.watermark and self.protector.watermark.to_dict(),
            },
            "attackers": [{"name": a.name, "action": a.action, "sha256": a.digest} for a in self.attackers],
            "device": self.device,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "noise": self.noise_estimate.to_dict(),
            "whole": {name: comparison.to_dict() for name, comparison in self.whole.items()},
            "targets": [
                {
                    "action": result.target.action,
                    "kji": list(result.target.kji),
                    "reason": result.target.reason,
                    "against_clean": {name: c.to_dict() for name, c in result.against_clean.items()},
                    "forgery": result.forgery.own.to_dict(),
                    "forgery_change": {name: c.to_dict() for name, c in result.forgery.moved.items()},
                    "relative_forgery_change": {arm: result.forgery.share(arm) for arm in ("protected", "noise")},
                    "watermark": result.watermark
                    and dict(zip(("before", "after_attack"), (p.to_dict() for p in result.watermark), strict=True)),
                }
                for result in self.targets
            ],
        }


def demonstrate(
    volume: CTVolume,
    targets: Sequence[Target],
    protector: Protector,
    attackers: Sequence[Attacker],
    *,
    device: str = "auto",
    device_words: str = "",
    lpips_weights: str | None = None,
    lpips_net: str | None = None,
    progress: Progress | None = None,
) -> Demonstration:
    """Run the whole demonstration.

    :param attackers: at most one per action; a target whose action has none is an error.
    :param device_words: the device as the report names it.
    :param progress: called with (stage, done, total); may raise ``CancelledError``.
    """
    by_action = {attacker.action: attacker for attacker in attackers}
    seconds: dict[str, float] = {}
    report = progress or (lambda _stage, _done, _total: None)
    lpips = load_lpips(lpips_weights, net=lpips_net)
    noise_estimate = estimate_noise(volume.hu, volume.spacing_kji)

    with _timer(seconds, "protect"):
        protected = protect(volume, model=protector, device=device, progress=partial(report, "Protecting"))
    with _timer(seconds, "noise control"):
        noise = equal_rmse_noise(volume, protected, protector.seed)
    arms = {CLEAN: volume, PROTECTED: protected, NOISE: noise}
    mark = protector.watermark
    intact = None
    if mark and targets:
        with _timer(seconds, "check the watermark"):
            intact = check_watermark(protected, mark.key, progress=partial(report, "Checking"))

    results = []
    for index, target in enumerate(targets):
        report("Attacking", index, len(targets))
        attacker = by_action[target.action]
        with _timer(seconds, "attack"):
            attacked = {
                arm: simulate_attack(scan, target.kji, target.action, attacker=attacker, device=device)
                for arm, scan in arms.items()
            }
        watermark = None
        if intact and intact.is_found:
            with _timer(seconds, "check the watermark"):
                after = check_place(attacked[PROTECTED], target.kji, mark.key)
            watermark = (intact.at(target.kji), after) if after else None
        with _timer(seconds, "metrics at the targets"):
            results.append(_measure_target(arms, attacked, target, lpips, watermark))
    report("Attacking", len(targets), len(targets))

    whole = {}
    for arm in (PROTECTED, NOISE):
        with _timer(seconds, "metrics of the whole scan"):
            whole[arm] = compare_whole(volume, arms[arm], lpips, progress=partial(report, f"Measuring {arm}"))
    return Demonstration(
        volume, protected, noise_estimate, whole, tuple(results), protector, tuple(attackers), device_words, seconds
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


@contextmanager
def _timer(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started


def _measure_target(
    arms: dict[str, CTVolume],
    attacked: dict[str, CTVolume],
    target: Target,
    lpips: Any,
    watermark: tuple[Place, Place] | None,
) -> TargetResult:
    clean, places = arms[CLEAN], regions_at(arms[CLEAN], target.kji)
    scans = {**arms, **{f"{arm} attacked": scan for arm, scan in attacked.items()}}
    return TargetResult(
        target,
        places,
        {name: scan.hu[target.kji[0]].copy() for name, scan in scans.items()},
        {name: compare(clean, scan, region=places.cube, lpips=lpips) for name, scan in scans.items() if name != CLEAN},
        forgery_effect(clean, attacked, partial(compare, region=places.middle, lpips=lpips)),
        watermark,
    )
