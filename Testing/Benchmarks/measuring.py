"""What measuring and reporting one attack cost: local SSIM beside scikit-image's, and the two jobs of the panel."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from MITSGANLib.attack.attacker import load_attacker, simulate_attack
from MITSGANLib.measure.attack_effect import measure_effect
from MITSGANLib.measure.lpips_distance import LpipsUnavailable, load_lpips
from MITSGANLib.measure.metrics import DATA_RANGE_HU, ssim_map
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.report.demonstration import demonstrate
from MITSGANLib.report.page import save_report
from MITSGANLib.scan.targets import choose_targets
from MITSGANLib.scan.volume import CTVolume
from timing import Case, Stages, alternate

SSIM_WAYS = ("scikit-image", "as mitsgan runs it")


def measure_measuring(volume: CTVolume, repeats: int, model: str = "default") -> dict[str, Any]:
    """Ratio of the two ways to local SSIM, measured in turn, and seconds of a measurement and of a report.

    Protecting and attacking are not counted: the panel has their results when it measures. The first use of LPIPS,
    which imports its packages, is.
    """
    from skimage.metrics import structural_similarity

    protector = load_protector(model)
    protected = protect(volume, model=protector, device="cpu")
    target = choose_targets(volume, 1, 0)[0]
    attacker = load_attacker("default", target.action)
    attacked = [
        simulate_attack(scan, target.kji, target.action, attacker=attacker, device="cpu")
        for scan in (volume, protected)
    ]
    middle = volume.shape[0] // 2
    pair = [scan.hu[middle].astype(float) for scan in (volume, protected)]
    options = {"data_range": DATA_RANGE_HU, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ways = (lambda: structural_similarity(*pair, full=True, **options), lambda: ssim_map(*pair))
    times = alternate(dict(zip(SSIM_WAYS, map(Case, ways), strict=True)), repeats)
    stages = Stages()
    with stages.stage("LPIPS, first use"):
        lpips = load_lpips()
    with stages.stage("measure"):
        effect = measure_effect(volume, protected, *attacked, attacker=attacker, device="cpu", lpips=lpips)
    with stages.stage("report, figures"):
        demonstration = demonstrate(volume, [target], protector, [attacker], protected=protected, device="cpu")
    with stages.stage("report, page"), tempfile.TemporaryDirectory() as folder:
        save_report(demonstration, Path(folder, "report.html"), title="benchmark")
    return {
        "slices": volume.shape[0],
        "ssim_cpu_s": {name: times[name].cpu_s for name in SSIM_WAYS},
        "ssim_ratio": times[SSIM_WAYS[0]].cpu_s / times[SSIM_WAYS[1]].cpu_s,
        "has_lpips": not isinstance(lpips, LpipsUnavailable),
        "noise_draws": len(effect.attack.forgery.noise_shares),
        "stages": {name: {"wall_s": wall, "cpu_s": cpu} for name, (wall, cpu) in stages.seconds.items()},
    }
