"""What copies of a scan go through before somebody asks whether they are genuine: compression, filters, other grids.

Each gives a copy without any record of what was done, as most programs do, and says where a voxel went.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from MITSGANLib.budget.noise import estimate_noise
from MITSGANLib.files.volume_files import read_file
from MITSGANLib.scan.volume import HIGHEST_HU, LOWEST_HU, CTVolume, Provenance, hu_from_float
from MITSGANTrainingLib.evaluation.fidelity import jpeg2000

Voxel = tuple[int, int, int]

SEED = 23
TURNED_DEGREES, NOISE_HU = 3.0, 10.0
# Of slices, rows and columns: what is cut off in front and at the back, as a part of each.
CUT = ((0.03, 0.03), (0.06, 0.08), (0.1, 0.07))


@dataclass(frozen=True, eq=False)
class Copy:
    """A copy and where the scan's voxels are in it.

    :param to_copy: 4x4, from voxel (slice, row, column, 1) of the scan to that of the copy.
    """

    volume: CTVolume
    to_copy: np.ndarray

    def place(self, kji: Voxel) -> Voxel:
        """Where a voxel went."""
        return tuple(int(index) for index in np.rint(self.to_copy[:3, :3] @ kji + self.to_copy[:3, 3]))

    def origin(self, kji: Voxel) -> Voxel:
        """Where a voxel of the copy was."""
        back = np.linalg.inv(self.to_copy)
        return tuple(int(index) for index in np.rint(back[:3, :3] @ kji + back[:3, 3]))


Make = Callable[[CTVolume], Copy]


def in_place(change: Callable[[CTVolume], np.ndarray]) -> Make:
    """Copies whose voxels stay where they are and get other HU."""
    return lambda volume: Copy(_bare(volume, hu_from_float(change(volume))), np.eye(4))


def each_slice(change: Callable[[np.ndarray], np.ndarray]) -> Make:
    """Copies whose slices are changed one by one."""
    return in_place(lambda volume: np.stack([change(plane) for plane in volume.hu]))


def gaussian(volume: CTVolume) -> np.ndarray:
    """After a Gaussian with a standard deviation of half a voxel along every axis."""
    from scipy import ndimage

    return ndimage.gaussian_filter(volume.hu.astype(np.float32), 0.5)


def median(volume: CTVolume) -> np.ndarray:
    """After a median of 3 voxels along rows and columns."""
    from scipy import ndimage

    return ndimage.median_filter(volume.hu, (1, 3, 3))


def non_local_means(volume: CTVolume) -> np.ndarray:
    """After non-local means in each slice, as strong as the scan's noise asks for."""
    from skimage.restoration import denoise_nl_means

    sigma = estimate_noise(volume.hu, volume.spacing_kji).sd_hu or 20.0
    options = {"patch_size": 3, "patch_distance": 3, "h": 0.6 * sigma, "sigma": sigma, "preserve_range": True}
    return np.stack([denoise_nl_means(plane.astype(np.float32), **options) for plane in volume.hu])


def noisy(volume: CTVolume) -> np.ndarray:
    """With white noise on top."""
    return volume.hu + np.random.default_rng(SEED).normal(0, NOISE_HU, volume.shape)


def mean_of_two(volume: CTVolume) -> Copy:
    """Each slice and the next averaged; one slice less."""
    hu = hu_from_float((volume.hu[1:].astype(np.float32) + volume.hu[:-1]) / 2)
    return Copy(_placed(volume, hu, first=(0.5, 0, 0)), _shift(-0.5, 0, 0))


def resampled(volume: CTVolume) -> Copy:
    """At 1 mm along every axis, by linear interpolation from the first voxel on."""
    size = [max(1, round(n * mm)) for n, mm in zip(volume.shape[::-1], volume.spacing, strict=True)]
    image = sitk.Resample(
        _image(volume), size, sitk.Transform(), sitk.sitkLinear, volume.origin, (1.0,) * 3, volume.direction.ravel()
    )
    copy = CTVolume(sitk.GetArrayFromImage(image), (1.0,) * 3, volume.origin, volume.direction)
    return Copy(copy, np.diag([*volume.spacing_kji, 1.0]))


def resampled_and_back(volume: CTVolume) -> Copy:
    """At 1 mm, and again on its own grid."""
    image = sitk.Resample(_image(resampled(volume).volume), _image(volume), sitk.Transform(), sitk.sitkLinear)
    return Copy(_bare(volume, sitk.GetArrayFromImage(image)), np.eye(4))


def cropped(volume: CTVolume) -> Copy:
    """Without some slices, rows and columns, as its header tells."""
    cuts = [(round(n * front), n - round(n * back)) for n, (front, back) in zip(volume.shape, CUT, strict=True)]
    first = [low for low, _ in cuts]
    return Copy(
        _placed(volume, volume.hu[tuple(slice(*cut) for cut in cuts)], first), _shift(*(-float(n) for n in first))
    )


def flipped(volume: CTVolume) -> Copy:
    """With its columns in the opposite order, of which the header tells nothing."""
    matrix = np.diag([1.0, 1.0, -1.0, 1.0])
    matrix[2, 3] = volume.shape[2] - 1
    return Copy(_bare(volume, volume.hu[:, :, ::-1]), matrix)


def permuted(volume: CTVolume) -> Copy:
    """Stored column after column, as its header tells."""
    axes = [2, 0, 1]
    back = [2 - axis for axis in axes[::-1]]
    hu = np.ascontiguousarray(volume.hu.transpose(axes))
    matrix = np.zeros((4, 4))
    matrix[(0, 1, 2, 3), (*axes, 3)] = 1
    spacing = tuple(np.array(volume.spacing)[back])
    return Copy(CTVolume(hu, spacing, volume.origin, volume.direction[:, back]), matrix)


def turned(volume: CTVolume) -> Copy:
    """Turned in the plane about its middle, of which the header tells nothing."""
    from scipy import ndimage

    hu = ndimage.rotate(
        volume.hu.astype(np.float32), TURNED_DEGREES, (1, 2), reshape=False, order=1, cval=float(LOWEST_HU)
    )
    angle = np.deg2rad(TURNED_DEGREES)
    matrix = np.eye(4)
    # As ndimage.rotate has it: output = turn^-1 (input - middle) + middle.
    matrix[1:3, 1:3] = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]).T
    middle = (np.array(volume.shape[1:]) - 1) / 2
    matrix[1:3, 3] = middle - matrix[1:3, 1:3] @ middle
    return Copy(_bare(volume, hu_from_float(hu)), matrix)


def as_nifti(volume: CTVolume) -> Copy:
    """Written as NIfTI by another program, and read again."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "copy.nii.gz"
        sitk.WriteImage(_image(volume), str(path))
        read = read_file(path)
    return Copy(dataclasses.replace(read, provenance=Provenance()), np.eye(4))


COPIES: dict[str, Make] = {
    "as it is": in_place(lambda volume: volume.hu),
    "NIfTI": as_nifti,
    "12 bits": in_place(lambda volume: np.clip(volume.hu, LOWEST_HU, HIGHEST_HU)),
    "cropped": cropped,
    "flipped, untold": flipped,
    "axes permuted": permuted,
    "turned by 3 degrees, untold": turned,
    "resampled to 1 mm": resampled,
    "to 1 mm and back": resampled_and_back,
    "JPEG 2000, 5:1": each_slice(lambda plane: jpeg2000(plane, 5)),
    "JPEG 2000, 10:1": each_slice(lambda plane: jpeg2000(plane, 10)),
    "Gaussian of 0.5 voxel": in_place(gaussian),
    "median of 3x3": in_place(median),
    "non-local means": in_place(non_local_means),
    "mean of two slices": mean_of_two,
    "10 HU more noise": in_place(noisy),
}
"""The suite, by the names that tables print."""


def _bare(volume: CTVolume, hu: np.ndarray) -> CTVolume:
    return dataclasses.replace(volume, hu=np.ascontiguousarray(hu), provenance=Provenance())


def _placed(volume: CTVolume, hu: np.ndarray, first: tuple[float, ...] | list[int]) -> CTVolume:
    return dataclasses.replace(_bare(volume, hu), origin=tuple(volume.voxel_to_lps(first)))


def _shift(*by: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


def _image(volume: CTVolume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.ravel())
    return image
