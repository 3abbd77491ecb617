"""The attack on a whole scan: an injector or remover, a target voxel, and the tampered scan, marked as simulated.

For demonstration and measurement only. Every result carries a processing step that says so, and no writer of this
library exports it as DICOM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError
from ..runtime.devices import resolve_device
from ..scan.cubes import Box, box_at, cube_shape, cube_start, intersection, whole
from ..scan.targets import ACTIONS, Action, check_target
from ..scan.volume import SIMULATED_ATTACK, CTVolume, ProcessingStep, hu_from_float
from ..weights import (
    ATTACKER_FILES,
    DEFAULT_ATTACKER,
    MODELS_FOLDER,
    available_attackers,
    configuration,
    fill,
    half_precision,
    read_weights,
)
from .chain import Inpainter, forge_cube, touch_up
from .equalization import Equalization
from .inpainters import FlowConfig, FlowInpainter, UNetConfig, UNetInpainter
from .keras_files import load_equalization, load_keras_generator
from .networks import CTGANConfig, CTGANGenerator

_FAMILIES: dict[str, tuple[type, type]] = {
    "CTGANGenerator": (CTGANGenerator, CTGANConfig),
    "UNetInpainter": (UNetInpainter, UNetConfig),
    "FlowInpainter": (FlowInpainter, FlowConfig),
}


@dataclass(frozen=True)
class Attacker:
    """One action of an attacker, ready to run: its name, its in-painter and a digest of its weights."""

    name: str
    action: Action
    inpainter: Inpainter
    digest: str = ""

    def to(self, device: torch.device) -> Attacker:
        """This attacker with its network on a device."""
        self.inpainter.generator.to(device)
        return self


def load_attacker(name_or_folder: str | Path, action: Action) -> Attacker:
    """An installed attacker by name ("default" is the default one), or a folder of attacker files.

    A folder holds either ``injector`` / ``remover`` ``.safetensors`` with their cards, or the published layout:
    ``INJ`` and ``REM``, each with ``G_model.h5``, ``normalization.npy`` and ``equalization.pkl``.

    :raises ModelError: when the attacker is unknown or a file is missing, corrupt or of another architecture.
    """
    if action not in ACTIONS:
        raise ModelError(f"Unknown action '{action}'; choose inject or remove.")
    name = DEFAULT_ATTACKER if str(name_or_folder) == "default" else str(name_or_folder)
    installed = MODELS_FOLDER / "attackers" / name
    folder = installed if name in available_attackers() else Path(name)
    own, published = (folder / file for file in ATTACKER_FILES[action])
    if own.exists():
        return _own_attacker(own, folder.name, action)
    if published.is_dir():
        weights = [published / file for file in ("G_model.h5", f"G_model_{published.name.lower()}.h5")]
        found = next((path for path in weights if path.exists()), None)
        if found is None:
            raise ModelError(f"{published} has no G_model.h5; put CT-GAN's published generator there.")
        return Attacker(folder.name, action, Inpainter(load_keras_generator(found), load_equalization(published)))
    known = ", ".join(available_attackers()) or "none"
    if name in available_attackers():
        raise ModelError(f"The attacker '{name}' has no {own.stem}; choose another ({known}) or the other action.")
    raise ModelError(
        f"'{name}' is neither an installed attacker ({known}) nor a folder with {own.name} or "
        f"{published.name}/G_model.h5; check the name or the path."
    )


def simulate_attack(
    volume: CTVolume,
    kji: Sequence[int],
    action: Action,
    *,
    attacker: str | Path | Attacker = "default",
    device: str = "auto",
) -> CTVolume:
    """Tamper with ``volume`` as CT-GAN would: add or erase a nodule at voxel ``kji`` (slice, row, column).

    :return: a volume of the same geometry, changed around the target only, with a simulated-attack step.
    :raises TargetError: when the target lies outside the scan, too near its border, or in air.
    :raises ModelError: when the attacker cannot be loaded.
    """
    target = tuple(int(index) for index in kji)
    check_target(volume, target)
    ready = attacker if isinstance(attacker, Attacker) else load_attacker(attacker, action)
    if ready.action != action:
        raise ModelError(f"Attacker '{ready.name}' was loaded to {ready.action}, not to {action}.")
    hu = volume.hu.copy()
    scan = torch.from_numpy(hu).to(resolve_device(device))
    where, values = attack_patch(scan, target, volume.spacing_kji, ready)
    hu[where] = values
    step = ProcessingStep(
        SIMULATED_ATTACK,
        f"SIMULATED ATTACK: CT-GAN {action} at voxel (slice, row, column) {target}; not a patient's image",
        {"action": action, "attacker": ready.name, "attacker_sha256": ready.digest, "target_kji": list(target)},
    )
    return volume.with_hu(hu, step)


def attack_patch(
    scan: torch.Tensor,
    kji: Sequence[int],
    spacing_kji: Sequence[float],
    attacker: Attacker,
    read: torch.Tensor | None = None,
) -> tuple[Box, np.ndarray]:
    """What an attack at voxel ``kji`` changes: the box, and the new int16 HU in it; all else of the scan stays.

    :param scan: (slices, rows, columns) in HU; of it the target's surroundings and the place that the touch-up copies
        noise from are read. The attack runs on its device.
    :param spacing_kji: mm along (slice, row, column).
    :param read: another copy, which the attacker's network reads in place of the scan.
    """
    # Not inference_mode: the chain keeps its blending windows, and signed gradients must go through them later.
    with torch.no_grad():
        cube = forge_cube(scan if read is None else read, kji, spacing_kji, attacker.to(scan.device).inpainter)
        patch = touch_up(scan, kji, cube, attacker.action)
    return patch.slices, hu_from_float(patch.values.cpu().numpy())


def tampered_box(volume: CTVolume, kji: Sequence[int]) -> Box:
    """The 32 mm cube around the target that the generator replaces, clipped to the scan (slices, rows, columns)."""
    shape = cube_shape(volume.spacing_kji)
    return intersection(box_at(cube_start(kji, shape), shape), whole(volume.shape))


def build_generator(config: Any) -> tuple[str, torch.nn.Module]:
    """Class name, as cards give it, and network with random weights of an in-painter's configuration."""
    name = next(name for name, (_network, kind) in _FAMILIES.items() if isinstance(config, kind))
    return name, _FAMILIES[name][0](config)


def own_tensors(generator: torch.nn.Module, equalization: Equalization) -> dict[str, torch.Tensor]:
    """What an attacker's safetensors file holds: the generator's state and the look-up table."""
    table = {
        "equalization.bins": torch.from_numpy(equalization.bins),
        "equalization.cdf": torch.from_numpy(equalization.cdf),
        "equalization.normalization": torch.tensor(
            [equalization.mean, equalization.minimum, equalization.maximum], dtype=torch.float64
        ),
    }
    return {**{f"generator.{k}": v for k, v in half_precision(generator).items()}, **table}


def _own_attacker(path: Path, name: str, action: Action) -> Attacker:
    tensors, card = read_weights(path)
    try:
        table = [tensors.pop(f"equalization.{part}").double().numpy() for part in ("bins", "cdf", "normalization")]
        equalization = Equalization(table[0], table[1], *(float(value) for value in table[2]))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} lacks its equalization table; reinstall the extension.") from error
    kind = card.architecture.get("class")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise ModelError(f"Model '{card.name}' is of class {kind}, not an in-painter ({', '.join(_FAMILIES)}).")
    network, config = _FAMILIES[kind][0], configuration(_FAMILIES[kind][1], card)
    state = {key.removeprefix("generator."): tensor for key, tensor in tensors.items()}
    generator = fill(lambda: network(config), state, card)
    return Attacker(name, action, Inpainter(generator, equalization), card.sha256)
