"""The demonstration on one scan: protect it, attack original and protected scan at the same places, measure.

What is measured at a target is :func:`~MITSGANLib.measure.attack_effect.measure_attack`, as everywhere.
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
from ..budget.noise import NoiseEstimate, scan_noise
from ..measure.attack_effect import (
    CLEAN,
    INTO_ORIGINAL,
    NOISE,
    PROTECTED,
    AttackEffect,
    Effect,
    compare_protection,
    measure_attack,
)
from ..measure.lpips_distance import load_lpips
from ..measure.metrics import Comparison
from ..protection.protector import Protector, protect
from ..runtime.devices import describe_device, resolve_device
from ..scan.targets import Target
from ..scan.volume import CTVolume
from ..watermark.checking import Place, check_place

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TargetResult:
    """What happened at one target.

    :param slices: the target's slice (rows, columns) int16 HU of "clean", "protected", "clean attacked", "protected
        attacked", "noise attacked".
    :param effect: the figures, with the watermark after the attack.
    :param watermark_before: what was there of the watermark before the attack; None where the protection has none, or
        it cannot be found in this scan.
    """

    target: Target
    slices: dict[str, np.ndarray]
    effect: AttackEffect
    watermark_before: Place | None = None

    @property
    def watermark(self) -> tuple[Place, Place] | None:
        """What was there of the watermark, and what is left of it after the attack; None where it is not found."""
        after = self.effect.watermark
        return (self.watermark_before, after) if self.watermark_before and after else None


@dataclass(frozen=True)
class Demonstration:
    """All that the report shows. ``whole`` compares the protected scan with the clean one, all slices."""

    clean: CTVolume
    protected: CTVolume
    noise_estimate: NoiseEstimate
    whole: Comparison
    targets: tuple[TargetResult, ...]
    protector: Protector
    attackers: tuple[Attacker, ...]
    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The few figures that a sentence or a model card quotes; definitions as in :meth:`to_dict`.

        Medians are over the targets of one action; shares are of the attack's own RMSE in the in-painted middle.
        """
        whole, noise = self.whole, self.noise_estimate.sd_hu
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
            effects = [result.effect.forgery for result in self.targets if result.target.action == action]
            if effects:
                draws = [share for effect in effects for share in effect.noise_shares]
                figures[action] = {
                    "targets": len(effects),
                    "median_attack_rmse_hu": _rounded(_median([effect.own.rmse.value for effect in effects])),
                    "median_share_changed_by_protection": _rounded(_median([e.share(PROTECTED) for e in effects])),
                    "median_share_changed_by_noise": _rounded(_median([e.share(NOISE) for e in effects])),
                    "noise_draws": [_rounded(min(draws)), _rounded(max(draws))] if draws else None,
                    "succeeded": self._successes(action),
                }
        checked = [result.watermark for result in self.targets if result.watermark]
        if checked:
            before, after = (sum(place.is_missing for place in places) for places in zip(*checked, strict=True))
            figures["watermark"] = {"places": len(checked), "missing_before": before, "missing_after_attack": after}
        return figures

    def _successes(self, action: str) -> dict[str, list[int]]:
        """By arm, how many attacks succeed for the judges, and of how many; places with nothing to reach are out."""
        found: dict[str, list[int]] = {}
        for result in self.targets:
            for arm in (CLEAN, PROTECTED, INTO_ORIGINAL, NOISE):
                pair = result.effect.succeeded(arm)
                if result.target.action == action and pair:
                    found[arm] = [a + b for a, b in zip(found.get(arm, [0, 0]), pair, strict=True)]
        return found

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
            "whole": self.whole.to_dict(),
            "targets": [
                {
                    "reason": result.target.reason,
                    **result.effect.to_dict(),
                    "watermark_before": result.watermark_before and result.watermark_before.to_dict(),
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
    protected: CTVolume | None = None,
    measured: tuple[Effect, CTVolume, CTVolume] | None = None,
    device: str = "auto",
    lpips_weights: str | None = None,
    lpips_net: str | None = None,
    progress: Progress | None = None,
) -> Demonstration:
    """Run the whole demonstration.

    :param attackers: at most one per action; a target whose action has none is an error.
    :param protected: what the protector made of the scan, where that is at hand; None makes it.
    :param measured: what was measured of these very volumes and the one target, and the two attacked volumes, scan
        first; None attacks and measures.
    :param progress: called with (stage, done, total); may raise ``CancelledError``.
    """
    by_action = {attacker.action: attacker for attacker in attackers}
    seconds: dict[str, float] = {}
    report = progress or (lambda _stage, _done, _total: None)
    lpips = None if measured else load_lpips(lpips_weights, net=lpips_net)
    noise_estimate = scan_noise(volume.hu, volume.spacing_kji)

    if protected is None:
        with _timer(seconds, "protect"):
            protected = protect(volume, model=protector, device=device, progress=partial(report, "Protecting"))
    mark = protector.watermark

    results = []
    for index, target in enumerate(targets):
        report("Attacking", index, len(targets))
        attacker = by_action[target.action]
        if measured:
            effect, attacked = measured[0].attack, measured[1:]
        else:
            with _timer(seconds, "attack"):
                attacked = [
                    simulate_attack(scan, target.kji, target.action, attacker=attacker, device=device)
                    for scan in (volume, protected)
                ]
            with _timer(seconds, "metrics at the targets"):
                key = mark.key if mark else None
                effect = measure_attack(
                    volume, protected, *attacked, attacker=attacker, device=device, lpips=lpips, key=key
                )
        with _timer(seconds, "watermark before the attacks"):
            before = check_place(protected, target.kji, mark.key) if mark else None
        arms = ("clean", "protected", "clean attacked", "protected attacked")
        scans = zip(arms, (volume, protected, *attacked), strict=True)
        slices = {arm: scan.hu[target.kji[0]].copy() for arm, scan in scans} | {"noise attacked": effect.noise_slice}
        results.append(TargetResult(target, slices, effect, before))
    report("Attacking", len(targets), len(targets))

    if measured:
        whole = measured[0].protection
    else:
        with _timer(seconds, "metrics of the whole scan"):
            whole = compare_protection(volume, protected, lpips, progress=partial(report, "Measuring"))
    words = describe_device(resolve_device(device))
    return Demonstration(
        volume, protected, noise_estimate, whole, tuple(results), protector, tuple(attackers), words, seconds
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
