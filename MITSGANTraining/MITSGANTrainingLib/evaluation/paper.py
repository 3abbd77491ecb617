"""What the MITS-GAN paper reports, which pairs of images each figure compares, and where it leaves that open.

G. Pasqualino, L. Guarnera, A. Ortis, S. Battiato, MITS-GAN, Computers in Biology and Medicine 2024 (arXiv 2401.09624).
Read in its sections 3, 4.1 to 4.5, and Tables 1 to 3. In all three the reference is the real, untouched image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# By metric; columns: real against MITS-GAN and TAFIM, real against both after CT-GAN tampered with them.
COLUMNS = ("MITS-GAN", "TAFIM", "MITS-GAN T.", "TAFIM T.")
TABLE_1 = {
    "rmse": (169.481, 194.943, 198.253, 233.780),
    "psnr": (27.949, 21.702, 21.237, 21.469),
    "lpips": (0.170, 0.383, 0.226, 0.391),
    "ssim": (0.983, 0.945, 0.970, 0.981),
}
TABLE_2 = {
    "rmse": (50.565, 66.061, 84.349, 79.451),
    "psnr": (26.682, 18.854, 11.289, 18.511),
    "lpips": (0.372, 0.3417, 0.591, 0.346),
    "ssim": (0.992, 0.972, 0.740, 0.866),
}
ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
TABLE_3 = {
    "rmse": (79.026, 80.472, 81.920, 82.517, 84.349),
    "psnr": (18.766, 17.145, 15.803, 13.562, 11.289),
    "lpips": (0.338, 0.377, 0.425, 0.510, 0.591),
    "ssim": (0.881, 0.854, 0.810, 0.775, 0.740),
}
_SQUARE, _IMAGE = 32, 512
_MEANING = {
    1: (
        "Section 4.4 and the caption: the entire image. Columns Real compare the real image with the protected one;"
        " columns Tampered compare the real image with the protected one after CT-GAN's attack. The text counts "
        "lower errors as better in both and sees MITS-GAN ahead in both; after tampering its PSNR and SSIM are behind."
    ),
    2: (
        "Section 4.4 and the caption: the same pairs as in Table 1, within the tampered square alone, 32x32 pixels "
        "(section 3). The caption counts lower errors as better, the text counts higher errors after tampering as "
        "better protection."
    ),
    3: (
        "Section 4.5: the weight alpha of the paper's term, measured in the tampered square. The column alpha = 1 "
        "equals MITS-GAN T. of Table 2, so all compare the real image with the protected one after tampering; "
        "higher errors count as better."
    ),
}
_UNCLEAR = (
    (
        "neither unit nor data range is given; each column's RMSE and PSNR together imply a data range of its own, "
        "from {low:.0f} to {high:.0f}"
    ),
    (
        "whether an image is a slice or a scan, which slices were averaged, and whether means are over pixels or "
        "images (equation 4 leaves N open)"
    ),
    "injections and removals are not told apart, and the attacker's training is not described",
    "what the attack does to an unprotected image, and what noise of equal size does, is not reported",
)
_UNCLEAR_TABLE_1 = (
    "Tables 1 and 2 do not fit together: tampering in a 32x32 square of a 512x512 image explains Table 1's step "
    "from {before} to {after} only with an RMSE of {needed:.0f} in the square, where Table 2 has {stated}"
)
_UNCLEAR_TABLE_2 = (
    "what a pixel of the square is: CT-GAN works on 32 mm resampled to 1 mm, so 32x32 may be pixels of the scan or mm"
)


@dataclass(frozen=True)
class Reading:
    """What a table of the paper means, as far as its text says, and what it leaves open."""

    meaning: str
    unclear: tuple[str, ...]


def implied_ranges(table: Mapping[str, tuple[float, ...]]) -> tuple[float, ...]:
    """The data range at which each column's PSNR follows from its RMSE: RMSE x 10^(PSNR / 20), in the RMSE's unit."""
    return tuple(rmse * 10 ** (psnr / 20) for rmse, psnr in zip(table["rmse"], table["psnr"], strict=True))


def square_rmse_that_table_1_needs() -> float:
    """RMSE in a 32x32 square that alone would raise Table 1's RMSE of MITS-GAN in 512x512 pixels to that of MITS-GAN T.

    ``tampered^2 = protected^2 + (square^2 - square before^2) 32^2 / 512^2``, with Table 2's RMSE before.
    """
    protected, _, tampered, _ = TABLE_1["rmse"]
    return math.sqrt((tampered**2 - protected**2) * (_IMAGE / _SQUARE) ** 2 + TABLE_2["rmse"][0] ** 2)


def reading(number: int) -> Reading:
    """What Table 1, 2 or 3 of the paper means."""
    ranges = [*implied_ranges(TABLE_1), *implied_ranges(TABLE_2)]
    unclear = [_UNCLEAR[0].format(low=min(ranges), high=max(ranges)), *_UNCLEAR[1:]]
    if number == 1:
        before, _, after, _ = TABLE_1["rmse"]
        needed = square_rmse_that_table_1_needs()
        stated = TABLE_2["rmse"][2]
        unclear.append(_UNCLEAR_TABLE_1.format(before=before, after=after, needed=needed, stated=stated))
    if number == 2:
        unclear.append(_UNCLEAR_TABLE_2)
    return Reading(_MEANING[number], tuple(unclear))
