"""Findings from a segmentation: each connected component of a label map, or of a map of readers' votes, is one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
from MITSGANLib.errors import InputError
from MITSGANLib.files.nrrd import is_sound_header
from MITSGANLib.scan.volume import CTVolume
from skimage.measure import regionprops

from .findings import Located, Mark, measure, nodule, outside


@dataclass(frozen=True)
class Segmentation(Mark):
    """A file of labels on the scan's grid, or on a part of it as Slicer saves segmentations.

    :param scan_name: the scan it belongs to, where the user says so; otherwise its file name must begin with a name of
        the scan.
    """

    path: Path
    scan_name: str = ""

    @property
    def scan_names(self) -> tuple[str, ...]:
        """The given name, else every beginning of the file's name that ends at a word's end, longest first."""
        if self.scan_name:
            return (self.scan_name,)
        stem = self.path.name[: -len(self.path.suffix)]
        ends = [match.start() for match in re.finditer(r"[^A-Za-z0-9]", stem)]
        return (stem, *(stem[:end] for end in reversed(ends) if end))

    def locate(self, volume: CTVolume, readers: int) -> Located:
        """Components of voxels above 0 that hang together, diagonals included.

        With ``readers`` above 1 values are votes: a component is measured on its voxels of at least so many votes, and
        one without any still counts as a finding to keep clear of.
        """
        image = _read(self.path)
        votes_of_all, spacing_kji = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
        if votes_of_all.min() < 0:
            raise InputError(f"{self.path} holds values below 0, so it is no segmentation; give the label map.")
        findings, left_out = [], []
        components = regionprops(sitk.GetArrayFromImage(sitk.ConnectedComponent(image > 0, True)))
        for index, component in enumerate((one.coords for one in components), start=1):
            votes = votes_of_all[tuple(component.T)]
            seen = component[votes >= readers] if (votes >= readers).any() else component
            center, diameter, reach = measure(seen, spacing_kji)
            kji = volume.lps_to_voxel(image.TransformContinuousIndexToPhysicalPoint(center[::-1].tolist()))
            problem = outside(volume, kji)
            if problem:
                left_out.append((f"component {index} of the segmentation", f"{problem}; take this scan's own"))
                continue
            count = int(votes.max()) if readers > 1 else None
            whole_reach = max(reach, measure(component, spacing_kji)[2])
            findings.append(nodule(tuple(kji.tolist()), diameter, count, whole_reach))
        return Located(tuple(findings), tuple(left_out))


def _read(path: Path) -> sitk.Image:
    try:
        if path.suffix.lower() in (".nrrd", ".nhdr") and not is_sound_header(path):
            raise RuntimeError("no header that ITK survives")
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as a segmentation; save it as NRRD or NIfTI again.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path} is no label map of three dimensions with one value a voxel; in Slicer, export the segmentation "
            "as a label map."
        )
    if image.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64):
        raise InputError(f"{path} holds real numbers, so it is no segmentation; give a label map of whole numbers.")
    return image
