"""The scans of an evaluation: what each is called, whose it is, and where it will be attacked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from MITSGANLib.budget.noise import estimate_noise
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.files.storage import describe, load_volume
from MITSGANLib.scan.targets import ACTIONS, Target, check_target, choose_targets
from MITSGANLib.scan.volume import CTVolume

from ..preparation.discovery import file_stem
from .planting import NoduleFile, Scene, draw_scenes
from .targets import GivenTarget


@dataclass(frozen=True)
class ScanSource:
    """Where a scan lies.

    :param series: Series Instance UIDs to take where a folder holds several series.
    """

    path: str
    series: tuple[str, ...] = ()

    def load(self, progress: Callable[[int, int], None] | None = None) -> CTVolume:
        """:raises InputError: when it is no CT, or holds several series and none of them is named."""
        found = describe(self.path) if self.series and Path(self.path).is_dir() else ()
        here = [one.series_instance_uid for one in found if one.series_instance_uid in self.series]
        if len(here) > 1:
            raise InputError(f"{self.path} holds several of the series named; name one of them.")
        return load_volume(self.path, series=next(iter(here), None), progress=progress)


@dataclass(frozen=True)
class ScanRequest:
    """A scan to look at before the long work: given targets, or how many of each action to choose.

    :param given: from a file; None to choose ``count`` places for each action with ``seed``.
    :param nodules: to plant for the removals that are chosen; None to remove nodule-like structures of the scan.
    """

    source: ScanSource
    actions: tuple[str, ...]
    given: tuple[GivenTarget, ...] | None
    count: int
    seed: int
    nodules: NoduleFile | None = None


@dataclass(frozen=True)
class Subject:
    """A scan that can be read.

    :param digest: SHA-256 of voxels and geometry; names the scan in results and in the cache.
    :param patient: the same for all scans of one patient; never written anywhere, as it could be traced back.
    :param spacing_kji: mm along (slice, row, column).
    :param noise_hu: standard deviation of its noise in soft tissue, or None.
    :param scenes: the scan as it is, and with nodules planted, each with the places to attack.
    :param skipped: chosen places that cannot be attacked, each with the reason.
    """

    source: ScanSource
    digest: str
    patient: str
    shape: tuple[int, int, int]
    spacing_kji: tuple[float, float, float]
    noise_hu: float | None
    scenes: tuple[Scene, ...]
    skipped: tuple[tuple[Target, str], ...]


@dataclass(frozen=True)
class Case:
    """A scan to measure, under the name and the patient's number that results use."""

    name: str
    patient: int
    subject: Subject


def inspect(wanted: ScanRequest) -> Subject:
    """Read a scan, identify it and settle its targets.

    :raises InputError: when the scan cannot be read or holds no place to attack.
    """
    volume = wanted.source.load()
    scenes, skipped = [], []
    for scene in _scenes(volume, wanted):
        usable = []
        for target in scene.targets:
            try:
                check_target(volume, target.kji)
                usable.append(target)
            except TargetError as error:
                skipped.append((target, str(error)))
        if usable:
            scenes.append(dataclasses.replace(scene, targets=tuple(usable)))
    if not scenes:
        reason = skipped[0][1] if skipped else "No target has one of the actions asked for."
        raise TargetError(f"None of the {len(skipped)} places can be attacked; the first: {reason}")
    noise_hu = estimate_noise(volume.hu, volume.spacing_kji).sd_hu
    facts = (content_digest(volume), _patient(volume), volume.shape, volume.spacing_kji, noise_hu)
    return Subject(wanted.source, *facts, tuple(scenes), tuple(skipped))


def _scenes(volume: CTVolume, wanted: ScanRequest) -> tuple[Scene, ...]:
    """The places wanted, by scene: first those of the scan as it is, then removals of planted nodules."""
    if wanted.given is not None:
        targets = [given.resolve(volume) for given in wanted.given]
    else:
        targets = choose_targets(volume, wanted.count, wanted.seed)
    planting = wanted.given is None and wanted.nodules is not None and "remove" in wanted.actions
    actions = {*wanted.actions} - {"remove"} if planting else wanted.actions
    asked = [target for target in targets if target.action in actions]
    scene = Scene(tuple(sorted(asked, key=lambda target: ACTIONS.index(target.action))))
    plants = draw_scenes(volume, wanted.count, wanted.nodules.read(), wanted.seed) if planting else ()
    return scene, *plants


def content_digest(volume: CTVolume) -> str:
    """SHA-256 of the voxels, the geometry and the padding, whatever format they came in."""
    digest = hashlib.sha256(np.ascontiguousarray(volume.hu))
    geometry = (volume.shape, volume.spacing, volume.origin, volume.direction.tolist(), volume.provenance.padding_hu)
    digest.update(repr(geometry).encode())
    return digest.hexdigest()


def scan_names(paths: list[str], digests: list[str], *, own_names: bool) -> list[str]:
    """What results call the scans, in the order given.

    By default a number and the beginning of the digest, since the name of a folder is often a patient's; with
    ``own_names`` the file's or folder's own name, numbered where two are the same.
    """
    if not own_names:
        return [f"scan {n} ({digest[:8]})" for n, digest in enumerate(digests, start=1)]
    stems = [file_stem(Path(path).resolve().name) for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem} ({n})" for n, stem in enumerate(stems, start=1)]


def _patient(volume: CTVolume) -> str:
    """A word that a patient's scans share, from the DICOM Patient ID; without one each scan is a patient of its own."""
    if volume.provenance.dicom_files:
        tags = ["PatientID", "IssuerOfPatientID"]
        header = pydicom.dcmread(volume.provenance.dicom_files[0], specific_tags=tags, stop_before_pixels=True)
        identity = [str(header.get(tag, "")).strip() for tag in tags]
        if identity[0]:
            return hashlib.sha256("\n".join(identity).encode()).hexdigest()
    return content_digest(volume)
