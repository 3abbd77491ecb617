"""What change is allowed where, in HU: the limit per voxel from tissue, body and noise, and the bounded integer change.

Arrays are (slice, row, column); a single slice (row, column) works wherever a function says so. Nothing here knows of
networks: whatever a network proposes, :func:`apply_change` is the last step and the one that guarantees the bound.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, ModelError
from ..runtime.threads import map_slices
from ..scan.cubes import Box, box_around
from ..scan.volume import HIGHEST_HU, LOWEST_HU, require_int16
from .body import body_mask
from .noise import hiding_noise, hiding_noise_in_lungs, local_noise


def check_strength(strength_hu: float) -> None:
    """Refuse what can be no largest change.

    :raises InputError: not from 0 to 4095 HU.
    """
    if not 0 <= strength_hu <= HIGHEST_HU - LOWEST_HU:
        raise InputError(f"The strength must be from 0 to 4095 HU, not {strength_hu:g}.")


@dataclass(frozen=True)
class Budget:
    """How much change is allowed in which tissue.

    :param strength_hu: the largest change anywhere, in HU.
    :param lung: fraction of the strength from -920 to -500 HU. Most is spent here: CT-GAN's histogram equalization
        turns 10 HU into about 4 % of its input range in lung parenchyma, 0.5 % in soft tissue, 0.03 % in bone.
    :param soft_tissue: fraction from -300 to 200 HU.
    :param bone: fraction from 500 HU upwards.
    :param in_lungs: fraction of soft tissue within the lungs, vessels and nodules, beside a share of the noise; as
        elsewhere where None.
    :param noise_share: bounds the change also by this share of the scan's own noise at the voxel, as a standard
        deviation in HU (see :func:`~MITSGANLib.budget.noise.local_noise`); None where noise plays no part.

    Between these ranges the fraction is linear in HU, so that no edge of a tissue class can be seen in the change. It
    falls to 0 at -960 HU: air in the trachea and the bowel stays as it is.
    """

    strength_hu: float = 20.0
    lung: float = 1.0
    soft_tissue: float = 0.3
    bone: float = 0.3
    noise_share: float | None = None
    in_lungs: float | None = None

    def __post_init__(self) -> None:
        check_strength(self.strength_hu)
        fractions = {f"for {name}": getattr(self, name) for name in ("lung", "soft_tissue", "bone")}
        for where, fraction in (fractions | {"within the lungs": self.in_lungs}).items():
            if fraction is not None and not 0 <= fraction <= 1:
                raise InputError(f"The budget's fraction {where} must be from 0 to 1, not {fraction}.")
        if self.noise_share is not None and not (math.isfinite(self.noise_share) and self.noise_share >= 0):
            raise InputError(f"The share of the noise must be 0 or more, or left out, not {self.noise_share}.")

    def fraction(self, hu: np.ndarray) -> np.ndarray:
        """Fraction of the strength that is allowed at each HU value, 0..1, float64, same shape."""
        knots = (-960, -920, -500, -300, 200, 500)
        values = (0.0, self.lung, self.lung, self.soft_tissue, self.soft_tissue, self.bone)
        return np.interp(hu, knots, values)

    def at_strength(self, strength_hu: float) -> Budget:
        """The budget scaled to another strength: the share of the noise, where there is one, in proportion.

        :raises InputError: when the strength is not usable, or there is none to scale from.
        """
        share = self.noise_share
        if share is not None:
            if self.strength_hu == 0:
                raise InputError("A budget of 0 HU cannot be scaled to another strength.")
            share = share * (strength_hu / self.strength_hu) if math.isfinite(strength_hu) else share
        return dataclasses.replace(self, strength_hu=strength_hu, noise_share=share)

    def to_dict(self) -> dict:
        """JSON-ready form; a share of the noise is there only where it bounds."""
        return {name: float(value) for name, value in dataclasses.asdict(self).items() if value is not None}


WATERMARK_BUDGET = Budget(strength_hu=10.0, lung=1.0, soft_tissue=0.1, bone=0.1, noise_share=0.15, in_lungs=1.0)
"""The watermark's own: 1 to 3 HU in most lungs. Set on LIDC-IDRI-0002 and -0028, where it keeps all limits of fidelity;
a preset scales it to its strength."""

SEARCH_BUDGET = Budget(strength_hu=60.0, lung=1.0, soft_tissue=0.05, bone=0.0, noise_share=1.35)
"""Budget of a searched change, nearly all of it in the lungs: its root mean square comes to the scan's own noise, since
a search changes voxels by 0.73 of what they may (LIDC-IDRI-0001)."""


def allowed_change(
    hu: np.ndarray,
    budget: Budget,
    mask: np.ndarray,
    padding_hu: int | None = None,
    noise_hu: np.ndarray | None = None,
    lungs_hu: np.ndarray | None = None,
) -> np.ndarray:
    """The largest |change| in whole HU at each voxel, int16, same shape as ``hu``.

    0 outside ``mask``, at ``padding_hu``, at -1024 HU and below, at 3071 HU and above. Never so large that a voxel
    could reach -1024, 3071 or ``padding_hu``. Depends on the voxel alone, so slabs of slices give what the whole gives.

    :param hu: int16 in HU, any shape (a volume, a slab of slices, a slice, a crop).
    :param mask: bool of the same shape, the body; see :func:`body_mask`.
    :param noise_hu: standard deviation of the scan's noise in HU, of the same shape, as :class:`LocalNoise` tells it;
        needed where the budget has a share of the noise, else not looked at.
    :param lungs_hu: the same within the lungs, 0 elsewhere, as :func:`~.noise.hiding_noise_in_lungs` tells it; needed
        where the budget has a fraction for vessels and nodules, else not looked at.
    :raises InputError: when mask or noise do not fit, or the noise is needed and missing.
    """
    hu = require_int16(hu)
    mask = np.asarray(mask)
    if mask.shape != hu.shape or mask.dtype != bool:
        raise InputError(
            f"The body mask must be a bool array of shape {hu.shape}, not {mask.dtype} of shape {mask.shape}."
        )
    allowed = np.where(mask, _allowed_table(budget, padding_hu).take(hu.view(np.uint16)), np.int16(0))
    if budget.noise_share is None:
        return allowed
    np.minimum(allowed, _share_of(noise_hu, hu.shape, budget.noise_share), out=allowed)
    if budget.in_lungs is not None:
        within = dataclasses.replace(budget, soft_tissue=budget.in_lungs)
        more = np.where(mask, _allowed_table(within, padding_hu).take(hu.view(np.uint16)), np.int16(0))
        np.maximum(allowed, np.minimum(more, _share_of(lungs_hu, hu.shape, budget.noise_share)), out=allowed)
    return allowed


def _share_of(noise_hu: np.ndarray | None, shape: tuple[int, ...], share: float) -> np.ndarray:
    """A share of the noise in whole HU, int16."""
    if noise_hu is None or np.shape(noise_hu) != shape:
        raise InputError(
            "This budget is a share of the scan's noise, so it needs the noise at each voxel; get it from local_noise."
        )
    # In float64, as for the strength: 0.3 of 10 HU is 3.
    with np.errstate(invalid="ignore"):  # none of infinite noise is not a number
        part = np.asarray(noise_hu, np.float64) * share
    part += 1e-9
    np.floor(part, out=part)
    # What is not a number of HU allows nothing: of two values these take the one that is a number.
    np.fmin(np.fmax(part, 0.0, out=part), HIGHEST_HU - LOWEST_HU, out=part)
    return part.astype(np.int16)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What budgets look at beside a voxel's own HU, of whole slices: where the body is, and how much noise.

    Each slice's depends on that slice alone, so slabs, and a part of a series, give what the whole gives.

    :param mask: bool (slices, rows, columns), the body.
    :param noise_hu: standard deviation of the scan's noise as far as it hides a change, of the same shape; outside of
        the mask, where no change is allowed, only what there is. None where no budget asks for it.
    :param lungs_hu: the same of vessels and nodules within the lungs, 0 elsewhere.
    """

    mask: np.ndarray
    noise_hu: np.ndarray | None
    padding_hu: int | None
    lungs_hu: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        hu: np.ndarray,
        spacing_kji: Sequence[float],
        padding_hu: int | None = None,
        *,
        with_noise: bool = True,
        all_body: bool = False,
    ) -> Surroundings:
        """Look at slices as they came.

        :param hu: int16 (slices, rows, columns) in HU: whole slices, not crops.
        :param spacing_kji: mm along (slice, row, column).
        :param with_noise: whether a budget will want the noise, which takes most of the time.
        :param all_body: whether to take every voxel for body, as in a cube of lung.
        """
        mask = np.ones(hu.shape, bool)
        noise_hu, lungs_hu = (np.empty(hu.shape, np.float32) for _ in range(2)) if with_noise else (None, None)

        def look(k: int) -> None:
            plane = hu[k : k + 1]
            if not all_body:
                mask[k] = body_mask(plane, padding_hu, spacing_kji)[0]
            if noise_hu is not None:
                noise_hu[k] = hiding_noise(hu[k], local_noise(plane, spacing_kji, padding_hu).at()[0], mask[k])
                lungs_hu[k] = hiding_noise_in_lungs(hu[k], noise_hu[k], mask[k], spacing_kji)

        map_slices(look, len(hu))
        return cls(mask, noise_hu, padding_hu, lungs_hu)

    def allowed(self, hu: np.ndarray, budget: Budget) -> np.ndarray:
        """The largest change of the same slices, int16 (slices, rows, columns); see :func:`allowed_change`.

        :param hu: int16 HU of these slices, which may have been changed meanwhile.
        """
        return np.stack(map_slices(lambda k: self.allowed_in(k, hu[k], budget), len(hu)))

    def box(self, k: int) -> Box | None:
        """The smallest rectangle around the body in slice ``k``, beyond which nothing changes; None without one."""
        return box_around(self.mask[k])

    def allowed_in(self, k: int, hu: np.ndarray, budget: Budget) -> np.ndarray:
        """The largest change of slice ``k`` alone, int16 (rows, columns); see :meth:`allowed`."""
        allowed = np.zeros(hu.shape, np.int16)
        box = self.box(k)
        if box is not None:
            noise_hu, lungs_hu = (None if one is None else one[k][box] for one in (self.noise_hu, self.lungs_hu))
            allowed[box] = allowed_change(hu[box], budget, self.mask[k][box], self.padding_hu, noise_hu, lungs_hu)
        return allowed


def allowed_in_slices(
    hu: np.ndarray, budget: Budget, spacing_kji: Sequence[float], padding_hu: int | None = None
) -> np.ndarray:
    """The largest change of whole slices, int16 (slices, rows, columns); parameters as of :meth:`Surroundings.of`."""
    around = Surroundings.of(hu, spacing_kji, padding_hu, with_noise=budget.noise_share is not None)
    return around.allowed(hu, budget)


def apply_change(hu: np.ndarray, change: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """``hu`` plus ``change`` clipped to ``allowed`` and rounded to whole HU; int16, same shape.

    ``|result - hu| <= allowed`` holds exactly for any finite or infinite ``change``. Whatever ``allowed`` says, a voxel
    within -1023..3070 HU stays within it, and any other voxel keeps its value.

    :param hu: int16 in HU, any shape.
    :param change: in HU, same shape; infinite values count as "as much as allowed".
    :param allowed: integers >= 0 in HU, same shape; see :func:`allowed_change`.
    :raises ModelError: when ``change`` holds NaN, for which no value would be right.
    :raises InputError: when shapes or types do not fit.
    """
    hu = require_int16(hu)
    change, allowed = np.asarray(change), np.asarray(allowed)
    if change.shape != hu.shape or allowed.shape != hu.shape:
        raise InputError(
            f"Voxels {hu.shape}, change {change.shape} and allowed change {allowed.shape} must have the same shape."
        )
    if not np.issubdtype(allowed.dtype, np.integer) or (allowed.size and allowed.min() < 0):
        raise InputError("The allowed change must be whole HU, not negative; compute it with allowed_change.")
    is_whole = np.issubdtype(change.dtype, np.integer)
    if not is_whole and np.isnan(change.min(initial=0)):  # of a number and none, the least is none
        raise ModelError(
            "The model proposed NaN as a change, so its output cannot be used; use another model, or run it in float32."
        )
    signal = (hu > LOWEST_HU) & (hu < HIGHEST_HU)
    # No voxel with a signal can move by more than the range, so whole HU up to it, exact in float32, are all there is.
    most = HIGHEST_HU - LOWEST_HU
    limit = np.minimum(allowed, most).astype(np.int16, copy=False) * signal
    if not is_whole:
        change = np.clip(change.astype(np.result_type(change, np.float32), copy=False), -most, most)
        np.rint(change, out=change)
    elif change.dtype != np.int16:
        change = np.clip(change, -most, most)
    step = np.clip(change.astype(np.int16, copy=False), -limit, limit)
    return np.where(signal, np.clip(hu + step, LOWEST_HU + 1, HIGHEST_HU - 1), hu)


@functools.lru_cache(maxsize=8)
def _allowed_table(budget: Budget, padding_hu: int | None) -> np.ndarray:
    """Allowed change, int16, for each int16 of HU, where its bits as uint16 say."""
    hu = np.clip(np.arange(1 << 16, dtype=np.uint16).view(np.int16), LOWEST_HU, HIGHEST_HU).astype(np.int64)
    # 20 * 0.3 is 6 in real numbers and must be in floating point; the bound by the strength is kept, as it is exact
    # wherever the product is within 1e-9 of a whole number.
    allowed = np.floor(budget.strength_hu * budget.fraction(hu) + 1e-9)
    room = np.minimum(hu - (LOWEST_HU + 1), (HIGHEST_HU - 1) - hu)
    if padding_hu is not None:
        room = np.minimum(room, np.abs(hu - padding_hu) - 1)
    table = np.maximum(np.minimum(allowed, room), 0).astype(np.int16)
    table.setflags(write=False)  # all calls share it
    return table
