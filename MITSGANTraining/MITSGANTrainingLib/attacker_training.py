"""Training of CT-GAN's injector and remover: a 3-D pix2pix that completes a cube whose middle is masked."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from MITSGANLib.ctgan.chain import mask_center
from MITSGANLib.ctgan.equalization import Equalization
from MITSGANLib.ctgan.networks import CTGANConfig, CTGANDiscriminator, CTGANGenerator
from torch.nn import functional as F

from .checkpoints import load_checkpoint, save_checkpoint
from .cubes import CubeSet, augment

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttackerTraining:
    """How one attacker model is trained. Learning rate, betas and L1 weight are the paper's (CT-GAN, section 5.2)."""

    base_filters: int = 12
    dropout: float = 0.25
    steps: int = 1600
    batch_size: int = 8
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    l1_weight: float = 100.0
    variants_per_cube: int = 40
    shifted_share: float = 4 / 68
    validation_share: float = 0.2
    validation_patients: tuple[str, ...] = ()  # held out by name; where empty, a seeded share of the patients
    seed: int = 0
    report_every: int = 50


@dataclass(frozen=True)
class AttackerResult:
    """A trained generator in evaluation mode, its look-up table and the figures of the model card."""

    generator: CTGANGenerator
    equalization: Equalization
    figures: dict[str, float]


def train_attacker(cubes: CubeSet, config: AttackerTraining, folder: Path) -> AttackerResult:
    """Train on ``cubes``; resumes from ``folder`` when it holds a checkpoint of the same configuration.

    Figures: mean absolute error in the masked middle, in HU and in input units, on validation cubes (other patients).
    """
    if config.validation_patients:
        training, validation = cubes.hold_out(config.validation_patients)
    else:
        training, validation = cubes.split(config.validation_share, config.seed)
    samples = augment(training, config.variants_per_cube, config.seed, config.shifted_share)
    equalization = Equalization.from_cubes(samples)
    torch.manual_seed(config.seed)
    generator = CTGANGenerator(CTGANConfig(config.base_filters, config.dropout))
    discriminator = CTGANDiscriminator(config.base_filters)
    state = {
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimizer": torch.optim.Adam(generator.parameters(), config.learning_rate, config.betas),
        "discriminator_optimizer": torch.optim.Adam(discriminator.parameters(), config.learning_rate, config.betas),
    }
    checkpoint = folder / "checkpoint.pt"
    first = load_checkpoint(checkpoint, state, dataclasses.asdict(config))
    # In parts: the table's float64 intermediates of the whole set would take several gigabytes.
    inputs = torch.cat([equalization.to_network(part).float() for part in torch.from_numpy(samples).split(256)])
    for step, batch in _batches(len(samples), config, first):
        losses = _train_step(inputs[batch].unsqueeze(1), config, **state)
        if (step + 1) % config.report_every == 0 or step + 1 == config.steps:
            save_checkpoint(checkpoint, state, dataclasses.asdict(config), step + 1)
            _log.info("step %d %s", step + 1, json.dumps(losses))
    generator.eval()
    return AttackerResult(generator, equalization, _validate(generator, equalization, validation))


def _batches(samples: int, config: AttackerTraining, first: int) -> Iterator[tuple[int, np.ndarray]]:
    """Step number and sample indices; each step has its own seed, so a resumed run draws what an unbroken one would."""
    for step in range(first, config.steps):
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        yield step, np.random.default_rng((config.seed, step)).integers(samples, size=config.batch_size)


def _train_step(
    cube: torch.Tensor,
    config: AttackerTraining,
    generator: CTGANGenerator,
    discriminator: CTGANDiscriminator,
    generator_optimizer: torch.optim.Optimizer,
    discriminator_optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """One step of both networks with least squares; 0 is real and 1 is forged, as in the public code."""
    masked = mask_center(cube)
    forged = generator(masked)
    real_score, forged_score = discriminator(cube, masked), discriminator(forged.detach(), masked)
    discriminator_loss = 0.5 * (real_score.square().mean() + (forged_score - 1).square().mean())
    discriminator_optimizer.zero_grad(set_to_none=True)
    discriminator_loss.backward()
    discriminator_optimizer.step()

    adversarial = discriminator(forged, masked).square().mean()
    l1 = F.l1_loss(forged, cube)
    generator_optimizer.zero_grad(set_to_none=True)
    (adversarial + config.l1_weight * l1).backward()
    generator_optimizer.step()
    return {"discriminator": discriminator_loss.item(), "adversarial": adversarial.item(), "l1": l1.item()}


@torch.inference_mode()
def _validate(generator: CTGANGenerator, equalization: Equalization, cubes: CubeSet) -> dict[str, float]:
    hu = torch.from_numpy(augment(cubes, 1, seed=0))
    cube = equalization.to_network(hu).float()
    middle = (slice(None), *(slice(6, 26),) * 3)
    forged = torch.cat([generator(mask_center(part).unsqueeze(1)).squeeze(1) for part in cube.split(16)])
    error = (forged - cube)[middle].abs().mean().item()
    hu_error = (equalization.to_hu(forged) - hu)[middle].abs().mean().item()
    return {
        "validation_cubes": len(hu),
        "l1_input_units": round(error, 4),
        "mean_absolute_error_hu": round(hu_error, 1),
    }
