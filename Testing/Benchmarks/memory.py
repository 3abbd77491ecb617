"""Peak memory of ``mitsgan protect`` on a long scan, by the kernel's own count of the process."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from MITSGANLib.scan.phantom import thorax_phantom
from whole_scan import run_command

GIB = 1 << 30
FORMATS = ("dicom", "nrrd", "nifti")
_SUFFIXES = {"dicom": "", "nrrd": ".nrrd", "nifti": ".nii"}


def measure_memory(
    slices: int, threads: int, edge: int = 512, formats: Sequence[str] = FORMATS, model: str = "default"
) -> dict[str, object]:
    """Peak of reading, protecting and writing a synthetic scan in each format, sealed too, beside the limit."""
    volume_bytes = 2 * slices * edge * edge
    limit = 3 * volume_bytes + GIB // 2
    start, peaks = _peak_of_few(threads, edge, model), {}
    for name in formats:
        with tempfile.TemporaryDirectory() as folder:
            source, key = write_scan(Path(folder) / f"scan{_SUFFIXES[name]}", slices, edge), f"{folder}/mitsgan.key"
            run_command(["keygen", key], threads)
            for title, options in ((name, []), (f"{name}, sealed", ["--key", key])):
                output = Path(folder) / f"protected{len(options)}{_SUFFIXES[name]}"
                done = run_command(["protect", str(source), str(output), "--model", model, *options], threads)
                peaks[title] = {
                    "peak_bytes": done.peak_bytes,
                    "volumes_beyond_start": (done.peak_bytes - start) / volume_bytes,
                    "within_limit": done.peak_bytes <= limit,
                    "wall_s": done.wall_s,
                    "cpu_s": done.cpu_s,
                }
    return {
        "definition": "largest resident set of the process of mitsgan protect; the limit is 3 volumes and 0.5 GiB",
        "slices": slices,
        "edge": edge,
        "volume_bytes": volume_bytes,
        "limit_bytes": limit,
        "start_bytes": start,
        "formats": peaks,
    }


def _peak_of_few(threads: int, edge: int, model: str) -> int:
    """What a protection needs whatever the length of the scan: Python, its packages, the network at work."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_scan(Path(folder) / "few.nrrd", 2, edge)
        return run_command(["protect", str(source), f"{folder}/out.nrrd", "--model", model], threads).peak_bytes


def write_scan(path: Path, slices: int, edge: int) -> Path:
    """A scan of that many slices: a phantom of a few, repeated. Only one repetition is in memory at a time.

    :param path: a file with the suffix .nrrd or .nii, or the name of a folder for DICOM.
    """
    few = thorax_phantom(shape=(12, edge, edge), spacing_kji=(20.0, 360 / edge, 360 / edge), seed=2).volume.hu
    if path.suffix == ".nrrd":
        _write_nrrd(path, few, slices)
    elif path.suffix == ".nii":
        _write_nifti(path, few, slices)
    else:
        _write_dicom(path, few, slices)
    return path


def _repeated(few: np.ndarray, slices: int) -> Iterator[np.ndarray]:
    return (few[k % len(few)] for k in range(slices))


def _write_nrrd(path: Path, few: np.ndarray, slices: int) -> None:
    rows, columns = few.shape[1:]
    spacing = 360 / columns
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {columns} {rows} {slices}\nspace directions: ({spacing},0,0) (0,{spacing},0) (0,0,1)\n"
        "kinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    with path.open("wb") as file:
        file.write(header.encode("ascii"))
        for plane in _repeated(few, slices):
            file.write(plane.astype("<i2").tobytes())


def _write_nifti(path: Path, few: np.ndarray, slices: int) -> None:
    """NIfTI-1, made by ITK for one repetition; then the number of slices in the header is changed and voxels added."""
    image = sitk.GetImageFromArray(few)
    image.SetSpacing((360 / few.shape[2], 360 / few.shape[1], 1.0))
    sitk.WriteImage(image, str(path), useCompression=False)
    with path.open("r+b") as file:
        file.seek(46)  # dim[3]
        file.write(struct.pack("<h", slices))
        file.seek(-few.nbytes, os.SEEK_END)
        for plane in _repeated(few, slices):
            file.write(plane.astype("<i2").tobytes())


def _write_dicom(path: Path, few: np.ndarray, slices: int) -> None:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    path.mkdir()
    study, series, frame = (generate_uid(prefix=None) for _ in range(3))
    spacing = 360 / few.shape[2]
    for k, plane in enumerate(_repeated(few, slices)):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid(prefix=None)
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.Modality, image.PatientID, image.PatientName = "CT", "benchmark", "Benchmark"
        image.SeriesNumber, image.InstanceNumber = 1, k + 1
        image.ImagePositionPatient = [0.0, 0.0, float(k)]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.PixelSpacing, image.SliceThickness = [spacing, spacing], 1
        image.Rows, image.Columns = plane.shape
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = 1, -1024, "HU"
        image.PixelData = (plane + np.int16(1024)).astype("<i2").tobytes()
        image.save_as(path / f"{k:05d}.dcm", enforce_file_format=True)
