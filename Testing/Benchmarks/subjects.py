"""What is measured: scans and their places, the paper's generator, and the naive way to run a generator."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import TargetError
from MITSGANLib.files.storage import load_volume
from MITSGANLib.protection.generator import Generator, GeneratorConfig, draw_noise
from MITSGANLib.protection.inference import hu_to_network, network_to_hu
from MITSGANLib.protection.protector import Protector
from MITSGANLib.scan.cubes import Voxel
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.targets import check_target
from MITSGANLib.scan.volume import CTVolume
from torch import nn

# Wide enough that no network is stopped by it: every voxel of the body shows what the network said.
EVERYTHING = Budget(strength_hu=4095.0, lung=1.0, soft_tissue=1.0, bone=1.0)


def scan_or_phantom(path: Path | None, edge: int = 512) -> CTVolume:
    """The scan at ``path``, or a phantom of 9 slices where there is none."""
    if path is not None and path.exists():
        return load_volume(path)
    return thorax_phantom(shape=(9, edge, edge), spacing_kji=(20.0, 360 / edge, 360 / edge), seed=1).volume


def middle_slices(volume: CTVolume, slices: int | None) -> CTVolume:
    """So many slices from the middle of a scan; all of it for None."""
    first = 0 if slices is None else max(0, (volume.shape[0] - slices) // 2)
    part = volume.hu[first : None if slices is None else first + slices]
    return dataclasses.replace(volume, hu=part, origin=tuple(volume.voxel_to_lps((first, 0, 0))))


def attackable(volume: CTVolume, places: Iterable[Voxel]) -> list[Voxel]:
    """The places (slice, row, column) that an attack can be aimed at."""
    found = []
    for kji in places:
        with contextlib.suppress(TargetError):
            check_target(volume, kji)
            found.append(kji)
    return found


def without_source(volume: CTVolume) -> CTVolume:
    """The volume without its path and files, of which reports must not tell."""
    provenance = dataclasses.replace(volume.provenance, source="", dicom_files=(), series_instance_uid=None)
    return dataclasses.replace(volume, provenance=provenance)


def papers_protector(volume: CTVolume, config: GeneratorConfig | None = None) -> Protector:
    """The paper's generator with seeded random weights; its batch norms hold statistics of a slice, as after training.

    Speed and the identity of results do not depend on what it was trained for.
    """
    config = config or GeneratorConfig()
    torch.manual_seed(0)
    network = Generator(config).train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the average of what it sees, and not a moving one
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    rows, columns = (size // 4 for size in volume.shape[1:])
    middle = volume.hu[volume.shape[0] // 2, rows : 3 * rows, columns : 3 * columns]
    with torch.no_grad():
        x = hu_to_network(torch.from_numpy(middle.copy()), config.hu_window)[None, None]
        network(x, draw_noise(middle.shape, config.noise, 1))
    return Protector("paper", network.eval().requires_grad_(False), EVERYTHING)


def naive_change(protector: Protector, hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The proposed change as the papers' code would get it: one whole slice after the other, layer by layer."""
    network, config = protector.proposer, protector.proposer.config
    noise = draw_noise(hu.shape[1:], config.noise, protector.seed)
    changes = []
    for values, limit in zip(hu, allowed, strict=True):
        with torch.no_grad():
            x = hu_to_network(torch.from_numpy(values.copy()), config.hu_window)[None, None]
            output = network(x, noise)[0, 0]
        image = config.output == "image"
        changes.append(network_to_hu(output, config.hu_window).numpy() - values if image else output.numpy() * limit)
    return np.stack(changes)
