"""Protection of one scan against one attack, without a network: signed gradients, an upper bound, or a search.

Projected gradient ascent (Madry et al., ICLR 2018) on the voxels that the attacker looks at. It knows the attacker and
where the attack will come, which no protector in use does. What it reaches at a strength says how much a protector of
that strength can hope for at most; noise of the same strength says what is no merit of a protector. A search
(:mod:`MITSGANLib.protection.search`) knows the attacker, and the region of the attack alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker, check_target, tampered_box
from MITSGANLib.attack.chain import tamper
from MITSGANLib.budget.budget import Budget, allowed_in_slices, apply_change
from MITSGANLib.errors import InputError
from MITSGANLib.judges.judge import load_judge
from MITSGANLib.protection.search import JUDGES, ChangeSearch, SearchConfig, around
from MITSGANLib.runtime.devices import resolve_device
from MITSGANLib.scan.cubes import Box, PatchedScan, Voxel, intersection, union, within
from MITSGANLib.scan.regions import regions_at
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep

from ..training.slabs import shade

# Steps shrink linearly from this share of the allowed change. From half of it, where the start lies, 1.5 reaches the
# other sign's full in one step. At four places of LIDC-IDRI-0001 and 20 HU, 20 steps from 0.5, 1 and 2 moved the final
# image by 479, 518 and 472 HU (remove) and by 169, 173 and 161 HU (inject).
_FIRST_STEP = 1.5
_PAPER_WEIGHT = 0.1
# Of a target, where a search looks; each block of lung that it meets takes a second a step.
_NEAR_MM = 8.0


def protect_by_gradient(
    volume: CTVolume,
    targets: Sequence[Voxel],
    attackers: Sequence[Attacker],
    *,
    budget: Budget,
    steps: int,
    seed: int = 0,
    device: str = "auto",
) -> CTVolume:
    """The scan protected against attacks at known places by known attackers; changed around these places only.

    Each step moves every voxel that an attacker's network sees by a share of its allowed change, in the direction in
    which the outcomes of the attacks move away from those on the clean scan. The outcome is the whole attack's, with
    its touch-up, in the middle that the network makes up, as seen in the lung window; logarithms of the distances are
    added over targets and attackers, so that none takes all. The paper's term (MITS-GAN, equation 3: how far the
    outcome is from the protected scan itself) has a weight of 0.1 beside it. The middle itself stays as it is, for no
    network sees it. The start is half the allowed change with seeded random signs.

    :param targets: voxels (slice, row, column); their cubes may overlap.
    :param budget: never exceeded, in whole HU; see :func:`~MITSGANLib.budget.budget.allowed_in_slices`.
    :param steps: gradient steps; 1 is the fast gradient sign method, 20 a thorough search.
    :raises InputError: without targets, attackers or steps.
    :raises TargetError: when an attack at a target would be meaningless.
    """
    places = tuple(dict.fromkeys(tuple(int(index) for index in kji) for kji in targets))
    if not places or not attackers:
        raise InputError("Signed gradients need at least one target and one attacker; give both.")
    if steps < 1:
        raise InputError(f"Signed gradients need at least one step, not {steps}.")
    for kji in places:
        check_target(volume, kji)
    where = resolve_device(device)
    ready = [attacker.to(where) for attacker in attackers]
    padding = volume.provenance.padding_hu
    scan = torch.from_numpy(volume.hu.copy()).to(where)
    protected = volume.hu.copy()
    for number, group in enumerate(_overlapping(volume, places)):
        slices, *crop = group.box
        allowed = allowed_in_slices(volume.hu[slices], budget, volume.spacing_kji, padding)[:, *crop]
        seen = _seen(volume, group)
        allowed[~seen] = 0
        signs = np.random.default_rng((seed, number)).choice((-0.5, 0.5), allowed.shape)
        ascent = _Ascent(scan, volume, group, ready, torch.from_numpy(allowed).to(where).double())
        change = ascent.limit * torch.from_numpy(signs).to(where)
        for step in range(steps):
            gradient = sum(ascent.gradients(change), torch.zeros_like(change))
            share = _FIRST_STEP * (1 - step / steps)
            change = (change + share * ascent.limit * gradient.sign()).clamp(-ascent.limit, ascent.limit)
        # Where they are seen only: the box may reach around another group.
        protected[group.box][seen] = apply_change(volume.hu[group.box], change.cpu().numpy(), allowed)[seen]
    description = (
        f"Signed-gradient protection at {len(places)} known target(s), at most {budget.strength_hu:g} HU; it knows "
        "where the attack comes and by whom: an upper bound for measurements, no protection for use"
    )
    method = {"method": "signed gradients", "targets_kji": [list(kji) for kji in places]}
    return volume.with_hu(protected, _step(description, method, ready, budget, steps, seed))


def protect_by_search(
    volume: CTVolume,
    targets: Sequence[Voxel],
    attackers: Sequence[Attacker],
    *,
    budget: Budget,
    steps: int,
    seed: int = 0,
    device: str = "auto",
) -> CTVolume:
    """The scan protected by a search in the lung within 8 mm of the targets, whose places it does not know.

    :param targets: voxels (slice, row, column).
    :param budget: never exceeded, in whole HU.
    :param steps: for each block of lung.
    :raises InputError: without attackers.
    :raises TargetError: when no lung is found there, or, for removals, nothing that looks like a nodule.
    """
    within = around(volume, targets, _NEAR_MM)
    allowed = allowed_in_slices(volume.hu, budget, volume.spacing_kji, volume.provenance.padding_hu)
    judges = [load_judge(name) for name in JUDGES]
    search = ChangeSearch(
        volume, allowed, attackers, judges, SearchConfig(steps=steps), seed=seed, device=device, within=within
    )
    search.run()
    where = f"within {_NEAR_MM:g} mm of {len(targets)} target(s)"
    description = f"Search {where}, at most {budget.strength_hu:g} HU, for measurements"
    hu = apply_change(volume.hu, search.change(), allowed)
    return volume.with_hu(hu, _step(description, {"method": "search"}, attackers, budget, steps, seed))


def _step(
    description: str, method: dict[str, Any], attackers: Sequence[Attacker], budget: Budget, steps: int, seed: int
) -> ProcessingStep:
    parameters = {
        **method,
        "attackers": [f"{attacker.name} {attacker.action}" for attacker in attackers],
        "attackers_sha256": [attacker.digest for attacker in attackers],
        "steps": steps,
        "seed": seed,
        **budget.to_dict(),
    }
    return ProcessingStep(PROTECTION, description, parameters)


@dataclass(frozen=True)
class _Group:
    """Targets whose cubes overlap, directly or through others, and the box around these cubes."""

    box: Box
    targets: tuple[Voxel, ...]


class _Ascent:
    """The steps of one group: gradients of the sum of logarithms, one target and attacker at a time."""

    def __init__(
        self, scan: torch.Tensor, volume: CTVolume, group: _Group, attackers: Sequence[Attacker], limit: torch.Tensor
    ) -> None:
        self.scan, self.spacing, self.box, self.limit = scan, volume.spacing_kji, group.box, limit
        self.middles = {kji: regions_at(volume, kji).middle.index for kji in group.targets}
        self.pairs = [(kji, attacker) for kji in group.targets for attacker in attackers]
        with torch.no_grad():
            self.clean = [self._outcome(scan, kji, attacker) for kji, attacker in self.pairs]

    def gradients(self, change: torch.Tensor) -> Iterator[torch.Tensor]:
        """By ``change`` (the box's shape, HU), for each target and attacker."""
        for (kji, attacker), clean in zip(self.pairs, self.clean, strict=True):
            free = change.detach().requires_grad_(True)
            patched = PatchedScan(self.scan, self.box, self.scan[self.box] + free)
            outcome = self._outcome(patched, kji, attacker)
            protected = shade(patched[self.middles[kji]])
            gain = _distance(outcome, clean) + _PAPER_WEIGHT * _distance(outcome, protected)
            yield torch.autograd.grad(gain.log(), free)[0]

    def _outcome(self, scan: torch.Tensor | PatchedScan, kji: Voxel, attacker: Attacker) -> torch.Tensor:
        patch = tamper(scan, kji, self.spacing, attacker.inpainter, attacker.action)
        return shade(patch.values[within(self.middles[kji], patch.slices)])


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # Far below one HU: keeps the gradient finite where both are equal.
    return (a - b).square().mean().add(1e-10).sqrt()


def _seen(volume: CTVolume, group: _Group) -> np.ndarray:
    """Bool of the box's shape: voxels that reach the attacker's network at any of the targets.

    A voxel's neighbors take part in its spline, so the middle is taken one voxel smaller than what is masked.
    """
    seen = np.zeros([part.stop - part.start for part in group.box], dtype=bool)
    for kji in group.targets:
        shell = np.zeros_like(seen)
        shell[within(tampered_box(volume, kji), group.box)] = True
        middle = regions_at(volume, kji).middle.index
        inner = tuple(slice(part.start + 1, max(part.start + 1, part.stop - 1)) for part in middle)
        shell[within(inner, group.box)] = False
        seen |= shell
    return seen


def _overlapping(volume: CTVolume, targets: Sequence[Voxel]) -> list[_Group]:
    """Targets in groups that share no voxel, each in order, so that groups can be protected one by one."""
    groups: list[list[Voxel]] = []
    for kji in targets:
        box = tampered_box(volume, kji)
        touching = [g for g in groups if any(intersection(box, tampered_box(volume, other)) for other in g)]
        groups = [g for g in groups if g not in touching] + [[*(other for g in touching for other in g), kji]]
    return [_Group(union(*(tampered_box(volume, kji) for kji in group)), tuple(group)) for group in groups]
