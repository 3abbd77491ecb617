"""One scan, one protection, any attackers: all arms at all targets, measured. Runs in worker processes.

Arms are ``clean``, ``protected`` and its two controls of equal RMSE, ``gaussian`` and ``ct-like``; each is compared
with the clean scan as it is and after the attack. The attack reads the target's cube and the place that the touch-up
copies noise from, and nothing else, so the scan is neither copied nor rewritten for it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from MITSGANLib.attack.attacker import AttackedScan, Attacker, attack_patch, load_attacker
from MITSGANLib.attack.regions import regions_at
from MITSGANLib.budget.noise import estimate_noise
from MITSGANLib.errors import InputError
from MITSGANLib.judges.jury import Jury
from MITSGANLib.measure.attack_effect import CLEAN, PROTECTED, compare_whole, forgery_effect
from MITSGANLib.measure.lpips_distance import load_lpips
from MITSGANLib.measure.metrics import Comparison, compare
from MITSGANLib.measure.noise_controls import equal_rmse_noise
from MITSGANLib.runtime.devices import describe_device, resolve_device
from MITSGANLib.scan.cubes import Box
from MITSGANLib.scan.regions import Region
from MITSGANLib.scan.targets import Target
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.checking import Check, check_watermark

from .cache import MEASUREMENT, Cache
from .ct_noise import equal_rmse_ct_noise, measure_texture
from .planting import NoduleFile, Plant, planted
from .protections import ProtectionArm
from .scans import ScanSource, content_digest
from .watermark_check import CheckedPlaces, check_places

GAUSSIAN, CT_LIKE = "gaussian", "ct-like"
ARMS = (PROTECTED, GAUSSIAN, CT_LIKE)
METRICS = ("rmse", "psnr", "lpips", "ssim")


@dataclass(frozen=True)
class AttackerChoice:
    """One attacker with the actions it can do.

    :param source: name or folder.
    :param digests: SHA-256 of each action's weights and look-up table.
    """

    name: str
    source: str
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """What every measurement of one evaluation shares.

    :param seed: of the noise controls.
    :param lpips_weights: file of weights, or None for the usual places.
    :param lpips_net: network that LPIPS looks through, or None for the first that has weights.
    :param lpips: SHA-256 of these weights, or empty where LPIPS cannot be measured.
    :param judges: names or paths of the judges that decide about success, the default ones where there is none.
    :param jury: :meth:`Jury.identity` of these judges; None where none decides.
    :param nodules: to plant for removals; None where none are planted.
    :param measurement: version of how figures are measured, of the process that began the evaluation.
    """

    seed: int = 0
    data_range_hu: float = 4096.0
    device: str = "auto"
    lpips_weights: str | None = None
    lpips_net: str | None = None
    lpips: str = ""
    judges: tuple[str, ...] = ()
    jury: Mapping[str, Any] | None = None
    nodules: NoduleFile | None = None
    measurement: int = MEASUREMENT

    def identity(self) -> dict[str, Any]:
        """For keys of the cache."""
        return {
            "seed": self.seed,
            "data_range_hu": self.data_range_hu,
            "device": resolve_device(self.device).type,
            "lpips_sha256": self.lpips,
            "judges": self.jury,
            "measurement": self.measurement,
        }

    def load_jury(self) -> Jury | None:
        """The judges on the device.

        :raises ModelError: when one is missing or corrupt; ``InputError`` when one has changed.
        """
        if self.jury is None:
            return None
        jury = _loaded_jury(self.judges, str(resolve_device(self.device)))
        if jury.identity() != self.jury:
            raise InputError("The judges have changed since the evaluation began; run it again.")
        return jury


@dataclass(frozen=True)
class MeasuringTask:
    """One attacker's action on one scan with one protection.

    :param plants: nodules that are put into the scan before anything else.
    :param pictured: which of the targets leave their slices for the figures.
    """

    attacker: AttackerChoice
    action: str
    targets: tuple[Target, ...]
    pictured: tuple[int, ...] = ()
    plants: tuple[Plant, ...] = ()


@dataclass(frozen=True)
class MeasuringJob:
    """What one worker does at a time: a scan with one protection, for all that is still to measure."""

    name: str
    source: ScanSource
    digest: str
    protection: ProtectionArm
    tasks: tuple[MeasuringTask, ...]
    settings: Settings
    cache: Path

    @property
    def groups(self) -> tuple[tuple[MeasuringTask, ...], ...]:
        """Tasks that share a protected volume."""
        if self.protection.knows_the_attack:
            return tuple((task,) for task in self.tasks)
        by_plants: dict[tuple[Plant, ...], list[MeasuringTask]] = {}
        for task in self.tasks:
            by_plants.setdefault(task.plants, []).append(task)
        return tuple(map(tuple, by_plants.values()))


def protected_key(digest: str, protection: ProtectionArm, task: MeasuringTask, settings: Settings) -> dict[str, Any]:
    """Cache key of a whole protected scan's figures, without anything planted unless protection knows the attack."""
    key = {"what": "whole scan", "scan": digest, "protection": protection.identity(), **settings.identity()}
    return key | _attack(task, settings) if protection.knows_the_attack else key


def attack_key(digest: str, protection: ProtectionArm, task: MeasuringTask, settings: Settings) -> dict[str, Any]:
    """Cache key of the figures at a task's targets."""
    key = {"what": "targets", "scan": digest, "protection": protection.identity(), **settings.identity()}
    return key | _attack(task, settings)


def picture_key(
    digest: str, protection: ProtectionArm, task: MeasuringTask, settings: Settings, index: int
) -> dict[str, Any]:
    """Cache key of the slices at one target."""
    return attack_key(digest, protection, task, settings) | {
        "what": "slices",
        "pictured": list(task.targets[index].kji),
    }


def _attack(task: MeasuringTask, settings: Settings) -> dict[str, Any]:
    nodules = settings.nodules.digest if settings.nodules and task.plants else None
    return {
        "attacker_sha256": task.attacker.digests[task.action],
        "action": task.action,
        "targets": [list(target.kji) for target in task.targets],
        "planted": [nodules, [dataclasses.asdict(plant) for plant in task.plants]],
    }


def measure(job: MeasuringJob) -> int:
    """Measure what the cache lacks of a job and put it there; gives the number of targets attacked.

    :raises MITSGANError: when the scan, a model or the cache cannot be used; what was finished before stays.
    """
    if job.settings.measurement != MEASUREMENT:
        raise InputError("This process runs another version of the evaluation; install one version, and run again.")
    cache, attacked = Cache(job.cache), 0
    volume = job.source.load()
    if content_digest(volume) != job.digest:
        raise InputError(f"{job.source.path} has changed since the evaluation began; run it again.")
    lpips = load_lpips(job.settings.lpips_weights, str(resolve_device(job.settings.device)), job.settings.lpips_net)
    jury = job.settings.load_jury()
    for tasks in job.groups:
        arms = _Arms(_before(volume, tasks[0], job.settings), job, tasks[0])
        key = protected_key(job.digest, job.protection, tasks[0], job.settings)
        if cache.load(key) is None:
            bare = not tasks[0].plants or job.protection.knows_the_attack
            cache.store(key, _whole_scan(arms if bare else _Arms(volume, job, tasks[0]), lpips))
        for task in tasks:
            attacked += _run_task(arms, task, cache, lpips, jury)
    return attacked


def _before(volume: CTVolume, task: MeasuringTask, settings: Settings) -> CTVolume:
    """The scan as it is before protection."""
    return planted(volume, task.plants, settings.nodules.read()) if task.plants and settings.nodules else volume


class _Arms:
    """The clean scan, the protected one and its noise controls, ready to be attacked on the device.

    :ivar absent: why a control is missing.
    """

    def __init__(self, volume: CTVolume, job: MeasuringJob, task: MeasuringTask) -> None:
        self.job, self.clean = job, volume
        self.device = resolve_device(job.settings.device)
        started = time.monotonic()
        self.protected = job.protection.apply(
            volume,
            targets=[target.kji for target in task.targets],
            attacker=_attacker(task.attacker.source, task.action) if job.protection.knows_the_attack else None,
            device=job.settings.device,
        )
        self.seconds = time.monotonic() - started
        self.volumes = {CLEAN: volume, PROTECTED: self.protected}
        self.absent: dict[str, str] = {}
        seed = job.settings.seed
        if not job.protection.needs_noise_controls:
            self.absent = dict.fromkeys((GAUSSIAN, CT_LIKE), "the protection is noise itself")
            return
        self.volumes[GAUSSIAN] = equal_rmse_noise(volume, self.protected, seed)
        try:
            self.volumes[CT_LIKE] = equal_rmse_ct_noise(volume, self.protected, seed, measure_texture(volume))
        except InputError as error:
            self.absent[CT_LIKE] = str(error)

    @functools.cached_property
    def intact(self) -> Check | None:
        """What the check says of the protected scan before any attack; None where it carries no watermark."""
        return check_watermark(self.protected) if self.job.protection.watermark else None

    @functools.cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Each arm's HU on the device."""
        with warnings.catch_warnings():
            # Torch warns that a CTVolume's voxels are read-only; nothing writes to them, and copies would be large.
            warnings.simplefilter("ignore", UserWarning)
            return {arm: torch.from_numpy(volume.hu).to(self.device) for arm, volume in self.volumes.items()}


@functools.lru_cache(maxsize=2)
def _attacker(source: str, action: str) -> Attacker:
    return load_attacker(source, action)


@functools.lru_cache(maxsize=1)
def _loaded_jury(sources: tuple[str, ...], device: str) -> Jury:
    return Jury.load(sources).to(device)


def _run_task(arms: _Arms, task: MeasuringTask, cache: Cache, lpips: Any, jury: Jury | None) -> int:
    job = arms.job
    place = (job.digest, job.protection, task, job.settings)
    key = attack_key(*place)
    measured = cache.load(key) is not None
    pictured = [n for n in task.pictured if cache.load_arrays(picture_key(*place, n)) is None]
    attacker = _attacker(task.attacker.source, task.action)
    started, records = time.monotonic(), []
    todo = range(len(task.targets)) if not measured else pictured
    checked: dict[tuple[int, int, int], CheckedPlaces] = {}
    if not measured and jury and arms.intact:
        scan, spacing_kji = arms.tensors[PROTECTED], arms.clean.spacing_kji
        checked = check_places(
            arms.protected,
            arms.intact,
            [target.kji for target in task.targets],
            lambda kji: attack_patch(scan, kji, spacing_kji, attacker),
        )
    for index in todo:
        target = task.targets[index]
        attacked = {
            arm: AttackedScan(arms.volumes[arm].hu, *attack_patch(scan, target.kji, arms.clean.spacing_kji, attacker))
            for arm, scan in arms.tensors.items()
        }
        if not measured:
            records.append(_at_target(arms, attacked, target, lpips, jury, checked.get(target.kji)))
        if index in pictured:
            cache.store_arrays(picture_key(*place, index), _slices(arms, attacked, target))
    if not measured:
        cache.store(
            key,
            {
                "targets": records,
                "absent": arms.absent,
                "device": describe_device(arms.device),
                "seconds": round(time.monotonic() - started, 2),
            },
        )
    return len(todo)


def _slices(arms: _Arms, attacked: Mapping[str, AttackedScan], target: Target) -> dict[str, np.ndarray]:
    """The target's slice (rows, columns) int16 of each arm, before and after the attack, and where it is."""
    k = target.kji[0]
    box = _slice_box(arms.clean, k)
    before = {arm: volume.hu[k] for arm, volume in arms.volumes.items()}
    after = {f"{arm} attacked": scan.part(box)[0] for arm, scan in attacked.items()}
    square = regions_at(arms.clean, target.kji).square
    return {
        **before,
        **after,
        "square": np.array([square.j0, square.j1, square.i0, square.i1]),
        "kji": np.array(target.kji),
        "spacing_kji": np.array(arms.clean.spacing_kji),
        "direction": arms.clean.direction,
    }


def _at_target(
    arms: _Arms,
    attacked: Mapping[str, AttackedScan],
    target: Target,
    lpips: Any,
    jury: Jury | None,
    checked: CheckedPlaces | None,
) -> dict[str, Any]:
    clean = arms.clean
    places = regions_at(clean, target.kji)
    box = _slice_box(clean, target.kji[0])
    square = np.s_[:, places.square.j0 : places.square.j1, places.square.i0 : places.square.i1]
    reference = clean.hu[box]
    images = {arm: volume.hu[box] for arm, volume in arms.volumes.items() if arm != CLEAN}
    images |= {f"{arm} attacked": scan.part(box) for arm, scan in attacked.items()}
    measure_pair = functools.partial(compare, data_range=arms.job.settings.data_range_hu, lpips=lpips, per_slice=False)
    return {
        "action": target.action,
        "kji": list(target.kji),
        "reason": target.reason,
        "against_clean": {
            name: {
                "slice": _values(measure_pair(reference, image)),
                "square": _values(measure_pair(reference[square], image[square])),
            }
            for name, image in images.items()
        },
        "forgery": _forgery(arms, attacked, places.middle),
        "judged": _judged(arms, attacked, target, jury, checked) if jury else None,
    }


def _judged(
    arms: _Arms, attacked: Mapping[str, AttackedScan], target: Target, jury: Jury, checked: CheckedPlaces | None
) -> dict[str, dict[str, float | bool | None]]:
    """The verdict on each arm, as :meth:`~.jury.Verdict.to_dict` has it; of a watermark, the check as well."""
    spacing_kji = arms.clean.spacing_kji
    box = jury.box(arms.clean.shape, spacing_kji, target.kji)
    inside = tuple(k - part.start for k, part in zip(target.kji, box, strict=True))
    names = list(arms.volumes)
    parts = [arms.volumes[arm].hu[box] for arm in names] + [attacked[arm].part(box) for arm in names]
    sights = jury.look(parts, spacing_kji, inside)
    before, after = (dict(zip(names, half, strict=True)) for half in (sights[: len(names)], sights[len(names) :]))
    verdicts = {
        arm: jury.verdict(target.action, before[arm], after[arm], clean=before[CLEAN]).to_dict() for arm in names
    }
    if checked:
        verdicts[PROTECTED] |= checked.to_dict()
    return verdicts


def _forgery(arms: _Arms, attacked: Mapping[str, AttackedScan], middle: Region) -> dict[str, dict[str, float | None]]:
    """For each arm, in the middle that the attacker's network makes up, all in HU but the share.

    ``own``: how far the attack moves the arm itself; ``moved``: how far its outcome is from the outcome on the clean
    scan; ``share``: that as a share of what the attack moves on the clean scan.
    """
    before = {arm: volume.hu[middle.index] for arm, volume in arms.volumes.items()}
    after = {arm: scan.part(middle.index) for arm, scan in attacked.items()}
    plain = functools.partial(compare, per_slice=False)
    effect = forgery_effect(before[CLEAN], after, plain)
    return {CLEAN: {"own": effect.own.rmse.value}} | {
        arm: {
            "own": plain(before[arm], after[arm]).rmse.value,
            "moved": moved.rmse.value,
            "share": effect.share(arm),
        }
        for arm, moved in effect.moved.items()
    }


def _whole_scan(arms: _Arms, lpips: Any) -> dict[str, Any]:
    """How far protection moves the scan itself, over all slices, with the worst one."""
    clean = arms.clean
    data_range = arms.job.settings.data_range_hu
    comparison = compare_whole(clean, arms.protected, lpips, data_range=data_range, per_slice=False)
    figures: dict[str, Any] = {}
    for name, metric in comparison.metrics.items():
        figures[name] = metric.value
        figures[f"{name}_worst_slice"] = metric.worst_slice.value if metric.worst_slice else None
        if metric.worst_tile:
            figures[f"{name}_worst_tile"] = metric.worst_tile.value
    return {
        "figures": figures,
        "noise_hu": estimate_noise(clean.hu, clean.spacing_kji).sd_hu,
        "seconds": round(arms.seconds, 2),
    }


def _slice_box(volume: CTVolume, k: int) -> Box:
    return slice(k, k + 1), slice(0, volume.shape[1]), slice(0, volume.shape[2])


def _values(comparison: Comparison) -> dict[str, float | None]:
    return {name: comparison.metrics[name].value for name in METRICS}
