"""One scan, one protection, any attackers: all arms at all targets, measured. Runs in worker processes.

Arms are ``clean``, ``protected`` and its two controls of equal RMSE, ``gaussian`` and ``ct-like``; each is compared
with the clean scan as it is and after the attack.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker, attack_patch, load_attacker
from MITSGANLib.budget.noise import estimate_noise
from MITSGANLib.errors import InputError
from MITSGANLib.judges.jury import Jury
from MITSGANLib.measure.attack_effect import CLEAN, PROTECTED, compare_protection, forgery_effect
from MITSGANLib.measure.lpips_distance import load_lpips
from MITSGANLib.measure.metrics import compare
from MITSGANLib.measure.noise_controls import equal_rmse_noise
from MITSGANLib.runtime.devices import describe_device, resolve_device
from MITSGANLib.scan.cubes import Box, PatchedScan, Voxel, whole
from MITSGANLib.scan.regions import regions_at
from MITSGANLib.scan.targets import Target
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.checking import Check, check_watermark

from .cache import MEASUREMENT, Cache
from .ct_noise import equal_rmse_ct_noise, measure_texture
from .planting import NoduleFile, Plant, apart, planted
from .protections import ProtectionArm
from .scans import Case, content_digest

GAUSSIAN, CT_LIKE = "gaussian", "ct-like"
ARMS = (PROTECTED, GAUSSIAN, CT_LIKE)
METRICS = ("rmse", "psnr", "lpips", "ssim")
CHECKED_APART_MM = 64.0
"""How far places are from each other that are forged in one copy: none is in another's surroundings."""


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

    :param scene: number of the scan's scene.
    :param plants: nodules that are put into the scan before anything else.
    :param pictured: which of the targets leave their slices for the figures.
    """

    attacker: AttackerChoice
    action: str
    targets: tuple[Target, ...]
    scene: int = 0
    plants: tuple[Plant, ...] = ()
    pictured: tuple[int, ...] = ()


@dataclass(frozen=True)
class MeasuringJob:
    """A scan with one protection and all attacks on it: what one worker does at a time, where the cache lacks it."""

    case: Case
    protection: ProtectionArm
    tasks: tuple[MeasuringTask, ...]
    settings: Settings
    cache: Cache

    def whole_key(self, task: MeasuringTask) -> dict[str, Any]:
        """Cache key of a whole protected scan's figures; nothing is planted unless protection knows the attack."""
        return self._key("whole scan", task if self.protection.knows_the_attack else None)

    def attack_key(self, task: MeasuringTask) -> dict[str, Any]:
        """Cache key of the figures at a task's targets."""
        return self._key("targets", task)

    def picture_key(self, task: MeasuringTask, index: int) -> dict[str, Any]:
        """Cache key of the slices at one target."""
        return self._key("slices", task) | {"pictured": list(task.targets[index].kji)}

    def _key(self, what: str, task: MeasuringTask | None) -> dict[str, Any]:
        digest, settings = self.case.subject.digest, self.settings
        key = {"what": what, "scan": digest, "protection": self.protection.identity(), **settings.identity()}
        if task is None:
            return key
        nodules = settings.nodules.digest if settings.nodules and task.plants else None
        return key | {
            "attacker_sha256": task.attacker.digests[task.action],
            "action": task.action,
            "targets": [list(target.kji) for target in task.targets],
            "planted": [nodules, [dataclasses.asdict(plant) for plant in task.plants]],
        }

    def result(self, task: MeasuringTask) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Figures at a task's targets and of the whole protected scan; None where one of them is not measured yet."""
        found = tuple(self.cache.load(key) for key in (self.attack_key(task), self.whole_key(task)))
        return None if None in found else found

    def lacking(self) -> MeasuringJob:
        """This job with the tasks that are not done."""
        return dataclasses.replace(self, tasks=tuple(task for task in self.tasks if not self._is_done(task)))

    def _is_done(self, task: MeasuringTask) -> bool:
        pictures = (self.cache.load_arrays(self.picture_key(task, index)) for index in task.pictured)
        return self.result(task) is not None and all(pictures)

    @property
    def groups(self) -> tuple[tuple[MeasuringTask, ...], ...]:
        """Tasks that share a protected volume."""
        found: dict[int | tuple[Plant, ...], tuple[MeasuringTask, ...]] = {}
        for number, task in enumerate(self.tasks):
            shared = number if self.protection.knows_the_attack else task.plants
            found[shared] = (*found.get(shared, ()), task)
        return tuple(found.values())


def measure(job: MeasuringJob) -> int:
    """Measure what the cache lacks of a job and put it there; gives the number of targets attacked.

    :raises MITSGANError: when the scan, a model or the cache cannot be used; what was finished before stays.
    """
    settings, source = job.settings, job.case.subject.source
    if settings.measurement != MEASUREMENT:
        raise InputError("This process runs another version of the evaluation; install one version, and run again.")
    volume, attacked = source.load(), 0
    if content_digest(volume) != job.case.subject.digest:
        raise InputError(f"{source.path} has changed since the evaluation began; run it again.")
    lpips = load_lpips(settings.lpips_weights, str(resolve_device(settings.device)), settings.lpips_net)
    jury = settings.load_jury()
    for tasks in job.groups:
        task = tasks[0]
        before = planted(volume, task.plants, settings.nodules.read()) if task.plants and settings.nodules else volume
        arms = _Arms(before, job, task)
        key = job.whole_key(task)
        if job.cache.load(key) is None:
            bare = not task.plants or job.protection.knows_the_attack
            job.cache.store(key, _whole_scan(arms if bare else _Arms(volume, job, task), lpips))
        attacked += sum(_run_task(arms, one, lpips, jury) for one in tasks)
    return attacked


class _Arms:
    """The clean scan, the protected one and its noise controls, ready to be attacked on the device.

    :ivar absent: why a control is missing.
    """

    def __init__(self, volume: CTVolume, job: MeasuringJob, task: MeasuringTask) -> None:
        self.job, self.clean, self.device = job, volume, resolve_device(job.settings.device)
        places, attacker, started = [target.kji for target in task.targets], None, time.monotonic()
        if job.protection.knows_the_attack:
            attacker = _attacker(task.attacker.source, task.action)
        self.protected = job.protection.apply(volume, targets=places, attacker=attacker, device=job.settings.device)
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


_attacker = functools.lru_cache(maxsize=2)(load_attacker)


@functools.lru_cache(maxsize=1)
def _loaded_jury(sources: tuple[str, ...], device: str) -> Jury:
    return Jury.load(sources).to(device)


def _run_task(arms: _Arms, task: MeasuringTask, lpips: Any, jury: Jury | None) -> int:
    """Attack and measure at all targets, or where a picture is lacking; how many they were."""
    job = arms.job
    measured = job.cache.load(job.attack_key(task)) is not None
    pictured = [n for n in task.pictured if job.cache.load_arrays(job.picture_key(task, n)) is None]
    attacker = _attacker(task.attacker.source, task.action)
    started, records = time.monotonic(), []
    checked = _checked(arms, task, attacker) if not measured and jury and arms.intact else {}
    todo = pictured if measured else range(len(task.targets))
    for index in todo:
        target = task.targets[index]
        attack = _Attack(arms, target, attacker)
        if not measured:
            verdicts = attack.verdicts(jury) if jury else None
            if target.kji in checked:
                verdicts[PROTECTED] |= checked[target.kji]
            records.append({**attack.figures(lpips), "judged": verdicts})
        if index in pictured:
            job.cache.store_arrays(job.picture_key(task, index), attack.slices())
    if not measured:
        seconds, device = round(time.monotonic() - started, 2), describe_device(arms.device)
        found = {"targets": records, "absent": arms.absent, "device": device, "seconds": seconds}
        job.cache.store(job.attack_key(task), found)
    return len(todo)


def _checked(arms: _Arms, task: MeasuringTask, attacker: Attacker) -> dict[Voxel, dict[str, bool]]:
    """Whether ``mitsgan check`` misses the open watermark at each target, after the attack (found) and before (alarm).

    Each check looks at a whole copy of the scan, as a user's does.
    """
    found, marked = {}, arms.protected
    places = list(dict.fromkeys(target.kji for target in task.targets))
    for group in apart(places, marked.spacing_kji, CHECKED_APART_MM):
        hu = marked.hu.copy()
        for kji in group:
            where, values = attack_patch(arms.tensors[PROTECTED], kji, marked.spacing_kji, attacker)
            hu[where] = values
        check = check_watermark(marked.with_hu(hu))
        for kji in group:
            missing = {"found": check.at(kji).is_missing, "alarm": arms.intact.at(kji).is_missing}
            found[kji] = {f"check_{key}": value for key, value in missing.items()}
    return found


class _Attack:
    """One attack on every arm at one target.

    It reads the target's cube and the place that the touch-up copies noise from, and nothing else, so no scan is copied
    for it.
    """

    def __init__(self, arms: _Arms, target: Target, attacker: Attacker) -> None:
        self.arms, self.target, self.clean = arms, target, arms.clean
        self.attacked = {
            arm: PatchedScan(arms.volumes[arm].hu, *attack_patch(scan, target.kji, self.clean.spacing_kji, attacker))
            for arm, scan in arms.tensors.items()
        }
        self.whole_slice = (slice(target.kji[0], target.kji[0] + 1), *whole(self.clean.shape)[1:])
        self.places = regions_at(self.clean, target.kji)

    def images(self, box: Box) -> dict[str, np.ndarray]:
        """A part of every arm as it is, by the arm's name, and of every arm after the attack, in the same order."""
        before = {arm: volume.hu[box] for arm, volume in self.arms.volumes.items()}
        return before | {f"{arm} attacked": scan[box] for arm, scan in self.attacked.items()}

    def slices(self) -> dict[str, np.ndarray]:
        """The target's slice (rows, columns) int16 in every image, and where it is."""
        square = self.places.square
        return {
            **{name: image[0] for name, image in self.images(self.whole_slice).items()},
            "square": np.array([square.j0, square.j1, square.i0, square.i1]),
            "kji": np.array(self.target.kji),
            "spacing_kji": np.array(self.clean.spacing_kji),
            "direction": self.clean.direction,
        }

    def figures(self, lpips: Any) -> dict[str, Any]:
        """All that is measured at the target but the verdicts."""
        options = {"data_range": self.arms.job.settings.data_range_hu, "lpips": lpips, "per_slice": False}
        against_clean: dict[str, dict[str, Any]] = {}
        for region, box in {"slice": self.whole_slice, "square": self.places.square.index}.items():
            images = self.images(box)
            clean = images.pop(CLEAN)
            for name, image in images.items():
                metrics = compare(clean, image, **options).metrics
                against_clean.setdefault(name, {})[region] = {metric: metrics[metric].value for metric in METRICS}
        return {
            "action": self.target.action,
            "kji": list(self.target.kji),
            "reason": self.target.reason,
            "against_clean": against_clean,
            "forgery": self._forgery(),
        }

    def _forgery(self) -> dict[str, dict[str, float | None]]:
        """For each arm, in the middle that the attacker's network makes up, all in HU but the share.

        ``own``: how far the attack moves the arm itself; ``moved``: how far its outcome is from the outcome on the
        clean scan; ``share``: that as a share of what the attack moves on the clean scan.
        """
        images = self.images(self.places.middle.index)
        after = {arm: images[f"{arm} attacked"] for arm in self.attacked}
        plain = functools.partial(compare, per_slice=False)
        effect = forgery_effect(images[CLEAN], after, plain)
        return {CLEAN: {"own": effect.own.rmse.value}} | {
            arm: {
                "own": plain(images[arm], after[arm]).rmse.value,
                "moved": moved.rmse.value,
                "share": effect.share(arm),
            }
            for arm, moved in effect.moved.items()
        }

    def verdicts(self, jury: Jury) -> dict[str, dict[str, float | bool | None]]:
        """The verdict on each arm, as :meth:`~.jury.Judgment.to_dict` has it."""
        spacing_kji, kji = self.clean.spacing_kji, self.target.kji
        box = jury.box(self.clean.shape, spacing_kji, kji)
        inside = tuple(k - part.start for k, part in zip(kji, box, strict=True))
        sights = jury.look(list(self.images(box).values()), spacing_kji, inside)
        half = len(self.attacked)
        return {
            arm: jury.verdict(self.target.action, before, after, clean=sights[0]).to_dict()
            for arm, before, after in zip(self.attacked, sights[:half], sights[half:], strict=True)
        }


def _whole_scan(arms: _Arms, lpips: Any) -> dict[str, Any]:
    """How far protection moves the scan itself, over all slices, with the worst one."""
    clean = arms.clean
    data_range = arms.job.settings.data_range_hu
    comparison = compare_protection(
        clean, arms.protected, lpips, lpips_slices=8, data_range=data_range, per_slice=False
    )
    figures: dict[str, Any] = {}
    for name, metric in comparison.metrics.items():
        figures[name] = metric.value
        figures[f"{name}_worst_slice"] = metric.worst_slice.value if metric.worst_slice else None
        if metric.worst_tile:
            figures[f"{name}_worst_tile"] = metric.worst_tile.value
    noise = estimate_noise(clean.hu, clean.spacing_kji).sd_hu
    return {"figures": figures, "noise_hu": noise, "seconds": round(arms.seconds, 2)}
