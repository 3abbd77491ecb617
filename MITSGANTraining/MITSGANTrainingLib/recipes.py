"""How the shipped models were trained: data, configuration and card of each, from one folder of CT.

The folder is laid out as the public scans this project is developed with: ``nodule_cubes.npz``,
``dicom/LIDC-IDRI-0028``, ``dicom/Lung_Dx-A0001`` and ``nrrd/LIDC-IDRI-0002.nrrd`` with ``-noduleVotes.seg.nrrd``.
LIDC-IDRI-0001 and RIDER-Pilot-0117 are never trained on: results are reported on them.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from MITSGANLib import models
from MITSGANLib.atomic import atomic_file
from MITSGANLib.ctgan.attacker import load_attacker, own_tensors
from MITSGANLib.errors import InputError
from MITSGANLib.storage import load_volume
from MITSGANLib.volume import CTVolume

from .attacker_training import AttackerTraining, train_attacker
from .cubes import CubeSet, cut_lung_cubes, load_nodule_cubes
from .protector_training import ProtectorTraining, train_protector

ATTACKER = models.DEFAULT_ATTACKER
PROTECTOR = models.DEFAULT_PROTECTOR

INJECTOR_TRAINING = AttackerTraining()
REMOVER_TRAINING = AttackerTraining(
    dropout=0.5, variants_per_cube=6, shifted_share=1.0, validation_patients=("Lung_Dx-A0001",)
)
PROTECTOR_TRAINING = ProtectorTraining()

_LIDC = "LIDC-IDRI (TCIA, doi 10.7937/K9/TCIA.2015.LO9QL9SX), CC BY 3.0"
_SHARP = "the series in files B-*, whose headers name the sharp kernel L; 5 mm slices"
_LUNG_DX = "Lung-PET-CT-Dx (TCIA, doi 10.7937/TCIA.2020.NNC2-0461), CC BY 4.0"


@dataclass(frozen=True)
class Recipe:
    """One model: how to train it into a folder of weights.

    :param train: (data folder, work folder, models folder, changes to the configuration) -> path of the weights.
    """

    name: str
    train: Callable[[Path, Path, Path, Mapping[str, Any]], Path]


def train_injector(data: Path, work: Path, out: Path, changes: Mapping[str, Any]) -> Path:
    """The injector, on nodules of at least 10 mm."""
    config = dataclasses.replace(INJECTOR_TRAINING, **changes)
    described = {
        "training": f"nodules of at least 10 mm of 80 % of the patients in nodule_cubes.npz; {_LIDC}",
        "validation": "nodules of the other patients",
    }
    return _attacker("injector", load_nodule_cubes(data / "nodule_cubes.npz"), described, config, work, out)


def train_remover(data: Path, work: Path, out: Path, changes: Mapping[str, Any]) -> Path:
    """The remover, on healthy lung."""
    config = dataclasses.replace(REMOVER_TRAINING, **changes)
    described = {
        "training": f"300 lung positions of LIDC-IDRI-0028, 290 of LIDC-IDRI-0002 away from its nodule; {_LIDC}",
        "validation": f"60 lung positions of Lung_Dx-A0001 ({_SHARP}); {_LUNG_DX}",
    }
    return _attacker("remover", healthy_cubes(data), described, config, work, out)


def healthy_cubes(data: Path) -> CubeSet:
    """Cubes of lung without known nodules from the three training scans."""
    scans = training_scans(data)
    votes = load_votes(data / "nrrd" / "LIDC-IDRI-0002-noduleVotes.seg.nrrd", scans["LIDC-IDRI-0002"])
    sets = [
        cut_lung_cubes(scans["LIDC-IDRI-0028"], "LIDC-IDRI-0028", 300, seed=0),
        cut_lung_cubes(scans["LIDC-IDRI-0002"], "LIDC-IDRI-0002", 300, seed=0, avoid=votes),
        cut_lung_cubes(scans["Lung_Dx-A0001"], "Lung_Dx-A0001", 60, seed=0),
    ]
    return CubeSet(np.concatenate([s.hu for s in sets]), np.concatenate([s.patients for s in sets]))


def training_scans(data: Path) -> dict[str, CTVolume]:
    """The three scans that models may be trained on, by patient."""
    philips = data / "dicom" / "Lung_Dx-A0001"
    return {
        "LIDC-IDRI-0028": load_volume(data / "dicom" / "LIDC-IDRI-0028"),
        "LIDC-IDRI-0002": load_volume(data / "nrrd" / "LIDC-IDRI-0002.nrrd"),
        "Lung_Dx-A0001": load_volume(philips, series=_series_of(philips / "B-1-01.dcm")),
    }


def load_votes(path: Path, volume: CTVolume) -> np.ndarray:
    """Bool (slices, rows, columns): voxels that any reader marked as nodule.

    :raises InputError: when the segmentation does not cover the volume voxel by voxel.
    """
    import SimpleITK as sitk

    votes = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if votes.shape != volume.shape:
        raise InputError(
            f"{path} has {votes.shape} voxels, the scan {volume.shape}; take the segmentation of this scan."
        )
    return votes > 0


def train_small_protector(data: Path, work: Path, out: Path, changes: Mapping[str, Any]) -> Path:
    """The default protector, trained against the injector and remover in ``out``."""
    config = dataclasses.replace(PROTECTOR_TRAINING, **changes)
    attackers = [load_attacker(out / "attackers" / ATTACKER, action) for action in ("inject", "remove")]
    generator = train_protector(list(training_scans(data).values()), attackers, config, work / "protector")
    card = models.ModelCard(
        name=PROTECTOR,
        kind="protector",
        description="Small MITS-GAN generator that adds a change bounded in HU, mostly in the lungs.",
        architecture={"class": "Generator", "config": dataclasses.asdict(config.generator)},
        data={
            "training": f"LIDC-IDRI-0028, LIDC-IDRI-0002; {_LIDC}; Lung_Dx-A0001 ({_SHARP}); {_LUNG_DX}",
            "validation": "none during training; results are reported on LIDC-IDRI-0001 and RIDER-Pilot-0117",
        },
        training=dataclasses.asdict(config),
        figures={},
        limits=(
            f"Trained and measured against the attacker {ATTACKER} only, on chest CT. It changes what such an attacker "
            "forges; the forgery mostly still succeeds. Its change shows as fine stripes in the lungs on close view. "
            "No guarantee: an attacker who adapts, or forges without a network, is not stopped."
        ),
        seed=config.seed,
        command=_command("protector"),
        commit=_commit(),
        budget=config.budget.to_dict(),
    )
    path = out / "protectors" / f"{PROTECTOR}.safetensors"
    models.write_weights(path, models.half_precision(generator), card)
    return path


def record_figures(out: Path, reports: Sequence[Path]) -> Path:
    """Write the summaries of demonstration reports into the protector's card, by scan; the weights stay as they are.

    :raises InputError: when a report was made with other weights, or is none.
    """
    path = out / "protectors" / f"{PROTECTOR}.json"
    card = models.ModelCard.read(path)
    figures = {}
    for report in reports:
        try:
            record = json.loads(report.read_text(encoding="utf-8"))
            digest, scan, summary = record["protector"]["sha256"], record["scan"], record["summary"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{report} is no report of mitsgan demo; give its report.json.") from error
        if digest != card.sha256:
            raise InputError(f"{report} was made with other weights than {path}; run mitsgan demo again.")
        targets = summary["inject"]["targets"]
        figures[scan] = {"command": f"mitsgan demo SCAN --targets {targets}", "commit": _commit(), **summary}
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(dataclasses.replace(card, figures=figures).to_json(), encoding="utf-8")
    return path


RECIPES = {
    "injector": Recipe("injector", train_injector),
    "remover": Recipe("remover", train_remover),
    "protector": Recipe("protector", train_small_protector),
}


def _attacker(
    role: str, cubes: CubeSet, data: Mapping[str, str], config: AttackerTraining, work: Path, out: Path
) -> Path:
    result = train_attacker(cubes, config, work / role)
    card = models.ModelCard(
        name=f"{ATTACKER}-{role}",
        kind=role,
        description=f"CT-GAN {role} with {config.base_filters} base filters (the published one has 100).",
        architecture={"class": "CTGANGenerator", "config": dataclasses.asdict(result.generator.config)},
        data=data,
        training=dataclasses.asdict(config),
        figures=result.figures,
        limits="For measuring protection only. Far smaller than the published attacker, and its forgeries are plainer.",
        seed=config.seed,
        command=_command(role),
        commit=_commit(),
    )
    path = out / "attackers" / ATTACKER / f"{role}.safetensors"
    models.write_weights(path, own_tensors(result.generator, result.equalization), card)
    return path


def _series_of(file: Path) -> str:
    import pydicom

    return str(pydicom.dcmread(file, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True).SeriesInstanceUID)


def _command(role: str) -> str:
    return f"python MITSGANTraining/train.py {role} --data ../shared/ct --work runs"


def _commit() -> str:
    """The checked-out commit, with a mark when files differ from it; "unknown" outside a clone."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (" with local changes" if changed.stdout.strip() else "")
