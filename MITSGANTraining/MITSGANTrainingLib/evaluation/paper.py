"""What the MITS-GAN paper reports, which pairs of images each figure compares, and where it leaves that open.

G. Pasqualino, L. Guarnera, A. Ortis, S. Battiato, MITS-GAN, Computers in Biology and Medicine 2024 (arXiv 2401.09624).
Read in its sections 3, 4.1 to 4.5, and Tables 1 to 3. In all three the reference is the real, untouched image.
"""

from __future__ import annotations

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
    "neither unit nor data range is given; each column's RMSE and PSNR together imply a data range of its own, from "
    "309 to 4232 (RMSE x 10^(PSNR / 20), Tables 1 and 2); whether an image is a slice or a scan, which slices were "
    "averaged, and whether means are over pixels or images (equation 4 leaves N open); injections and removals are not "
    "told apart, and the attacker's training is not described; what the attack does to an unprotected image, and what "
    "noise of equal size does, is not reported"
)
# Solved for the square: tampered^2 = protected^2 + (square^2 - square before^2) 32^2 / 512^2, before as in Table 2.
_UNCLEAR_TABLE_1 = (
    "Tables 1 and 2 do not fit together: tampering in a 32x32 square of a 512x512 image explains Table 1's step from "
    "169.481 to 198.253 only with an RMSE of 1647 in the square, where Table 2 has 84.349"
)
_UNCLEAR_TABLE_2 = (
    "what a pixel of the square is: CT-GAN works on 32 mm resampled to 1 mm, so 32x32 may be pixels of the scan or mm"
)


def reading(number: int) -> tuple[str, str]:
    """What the paper's Table 1, 2 or 3 means as far as its text says, and what it leaves open, for the notes."""
    own = {1: f"; {_UNCLEAR_TABLE_1}", 2: f"; {_UNCLEAR_TABLE_2}"}.get(number, "")
    return f"Paper. {_MEANING[number]}", f"The paper leaves open: {_UNCLEAR}{own}."
