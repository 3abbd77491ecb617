"""Training of a protector through the attacker's differentiable chain, on random targets in the lungs of real scans.

The generator sees a crop of each slice around a target; its bounded change is added; injector and remover then work on
the protected and on the clean crop. The loss rewards a large difference between the two forgeries, which is what a
reader sees as a failed attack, and (the paper's term) between a forgery and the protected scan itself.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from MITSGANLib.budget import Budget, allowed_change, body_mask
from MITSGANLib.ctgan.attacker import Attacker
from MITSGANLib.ctgan.chain import CUBE_MM, MASK, cube_shape, cube_start, cut, rescale
from MITSGANLib.generator import Generator, GeneratorConfig, draw_noise, hu_to_network
from MITSGANLib.lungs import lung_positions, nodule_like_positions
from MITSGANLib.volume import CTVolume

from .checkpoints import load_checkpoint, save_checkpoint

_log = logging.getLogger(__name__)

# Folding 4x4 voxels into channels shows the network about 40 mm around each voxel. Of two pilot runs with about equal
# multiplications, 4 and 48 filters was ahead of 2 and 24 after 150 steps (gain against the remover 0.087 and 0.061).
SMALL_GENERATOR = GeneratorConfig(trunk_filters=48, output="residual", unshuffle=4, hu_window=(-1024.0, 1024.0))
# Most in the lungs, where the attacker is sensitive; 2.7 HU elsewhere, where it is not and readers look for contrast.
SMALL_BUDGET = Budget(strength_hu=18.0, lung=1.0, soft_tissue=0.15, bone=0.15)
_WINDOW_HU = (-1350.0, 150.0)  # the lung window, in which a failed attack is seen


@dataclass(frozen=True)
class ProtectorTraining:
    """How a protector is trained.

    :param paper_weight: weight of the paper's term (equation 3) beside the difference of the forgeries.
    :param pattern_weight: weight of the penalty on mean change and on patterns that repeat from tile to tile.
    :param context: voxels around the attacked cube that the generator sees in the plane; its receptive field, so that
        what happens in the cube does not depend on the crop's border.
    :param positions_per_volume: random lung voxels per scan to attack.
    :param structures_per_volume: nodule-like structures per scan; attacks at them, shifted by up to 5 mm, make half of
        all: that is where a remover works, and where random voxels rarely fall.
    """

    generator: GeneratorConfig = SMALL_GENERATOR
    budget: Budget = SMALL_BUDGET
    steps: int = 1500
    targets_per_step: int = 4
    learning_rate: float = 1e-3
    paper_weight: float = 0.1
    pattern_weight: float = 10.0
    context: int = 28
    positions_per_volume: int = 2000
    structures_per_volume: int = 40
    seed: int = 0
    report_every: int = 25


@dataclass(frozen=True)
class _Scan:
    volume: CTVolume
    hu: torch.Tensor
    allowed: np.ndarray
    positions: list[tuple[int, int, int]]


def train_protector(
    volumes: Sequence[CTVolume], attackers: Sequence[Attacker], config: ProtectorTraining, folder: Path
) -> Generator:
    """Train against all ``attackers`` at once; resumes from ``folder`` where it holds a checkpoint of this run."""
    scans = [_prepare(volume, config) for volume in volumes]
    torch.manual_seed(config.seed)
    generator = Generator(config.generator)
    optimizer = torch.optim.Adam(generator.parameters(), config.learning_rate, (0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps, config.learning_rate / 20)
    state = {"generator": generator, "optimizer": optimizer, "schedule": schedule}
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    checkpoint = folder / "checkpoint.pt"
    generator.train()
    for step in range(load_checkpoint(checkpoint, state, plain), config.steps):
        rng = np.random.default_rng((config.seed, step))
        gains, pattern = _forgery_gains(generator, scans, attackers, config, rng)
        # Logarithms, so that the attacker that yields more does not take all of the gradient.
        loss = config.pattern_weight * pattern - sum(gain.log() for gain in gains.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % config.report_every == 0 or step + 1 == config.steps:
            save_checkpoint(checkpoint, state, plain, step + 1)
            measured = {**gains, "pattern": pattern}
            _log.info("step %d %s", step + 1, json.dumps({k: round(v.item(), 4) for k, v in measured.items()}))
    return generator.eval()


def _prepare(volume: CTVolume, config: ProtectorTraining) -> _Scan:
    padding = volume.provenance.padding_hu
    mask = body_mask(volume.hu, padding, volume.spacing_kji)
    positions = lung_positions(volume, config.positions_per_volume, config.seed, CUBE_MM / 2)
    structures = np.array(nodule_like_positions(volume, config.structures_per_volume)).reshape(-1, 3)
    if len(structures):
        rng = np.random.default_rng(config.seed)
        shift_mm = rng.uniform(-5, 5, (config.positions_per_volume, 3))
        drawn = structures[rng.integers(len(structures), size=config.positions_per_volume)]
        shifted = np.rint(drawn + shift_mm / np.asarray(volume.spacing_kji)).astype(int)
        positions += [tuple(position) for position in shifted.tolist()]
    room = np.array(cube_shape(volume.spacing_kji)) / 2 + (0, config.context, config.context)
    inside = np.logical_and(positions >= room, positions < np.array(volume.shape) - room).all(axis=1)
    return _Scan(
        volume,
        torch.from_numpy(volume.hu.copy()),
        allowed_change(volume.hu, config.budget, mask, padding),
        [position for position, fits in zip(positions, inside, strict=True) if fits],
    )


def _forgery_gains(
    generator: Generator,
    scans: Sequence[_Scan],
    attackers: Sequence[Attacker],
    config: ProtectorTraining,
    rng: np.random.Generator,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Per attacker's action how far apart the forgeries of clean and protected crops are, in shares of the window.

    Beside it, how much of the change is one fixed pattern (see :func:`_repeated_power`).
    """
    scan = scans[rng.integers(len(scans))]
    spacing = scan.volume.spacing_kji
    shape = cube_shape(spacing)
    boxes = []
    for _ in range(config.targets_per_step):
        start = np.array(cube_start(scan.positions[rng.integers(len(scan.positions))], shape))
        boxes.append(
            (start - (0, config.context, config.context), np.add(shape, (0, 2 * config.context, 2 * config.context)))
        )
    clean = torch.stack([cut(scan.hu, start, size) for start, size in boxes]).float()
    allowed = torch.stack(
        [torch.from_numpy(scan.allowed[tuple(slice(a, a + n) for a, n in zip(*box, strict=True))]) for box in boxes]
    ).float()
    noise = draw_noise(clean.shape[-2:], config.generator.noise, int(rng.integers(2**31)))
    slices = hu_to_network(clean, config.generator.hu_window).flatten(0, 1).unsqueeze(1)
    share = generator(slices, noise).squeeze(1).view_as(clean)
    change = share * allowed
    change = change + (change.round() - change).detach()  # whole HU, as the protector will write; gradient as if not

    inner = (..., slice(config.context, -config.context), slice(config.context, -config.context))
    clean_cube = rescale(clean[inner], (CUBE_MM,) * 3)
    protected_cube = rescale((clean + change)[inner], (CUBE_MM,) * 3)
    gains = {
        f"{attacker.name} {attacker.action}": _gain(attacker, clean_cube, protected_cube, config.paper_weight)
        for attacker in attackers
    }
    return gains, _repeated_power(change[inner] / config.budget.strength_hu, config.generator.unshuffle)


def _repeated_power(change: torch.Tensor, tile: int) -> torch.Tensor:
    """Mean square of each slice's average ``tile`` x ``tile`` block, of a change (..., rows, columns).

    A generator that folds tiles into channels soon learns to paint the same tile everywhere. Such a pattern shows as
    stripes, shifts the mean HU, and is easy to subtract; without this penalty a pilot run ended in exactly that.
    Averaged over a whole batch and the crops' borders, the penalty let a shift of 12 HU in the lungs pass.
    """
    rows, columns = (size // tile * tile for size in change.shape[-2:])
    blocks = change[..., :rows, :columns].reshape(-1, rows // tile, tile, columns // tile, tile)
    return blocks.mean(dim=(1, 3)).square().mean()


def _gain(attacker: Attacker, clean: torch.Tensor, protected: torch.Tensor, paper_weight: float) -> torch.Tensor:
    with torch.no_grad():
        forged_clean = attacker.inpainter(clean)
    forged = attacker.inpainter(protected)
    difference = _middle_rms(forged, forged_clean)
    return difference + paper_weight * _middle_rms(forged, protected)


def _middle_rms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Root mean square difference of the in-painted middles as seen in the lung window, mean over the batch."""
    low, high = _WINDOW_HU
    a, b = ((x[:, MASK, MASK, MASK].clamp(low, high) - low) / (high - low) for x in (a, b))
    return (a - b).square().mean(dim=(1, 2, 3)).add(1e-8).sqrt().mean()
