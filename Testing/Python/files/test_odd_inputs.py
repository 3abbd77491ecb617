"""Scans as they come from elsewhere, beside what ITK reads where it reads them: taken whole, or refused."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_factory import CTSeries, ct_series, phantom_hu, write_enhanced
from MITSGANLib.errors import InputError
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

SHAPE = (4, 64, 60)
HU = phantom_hu(SHAPE)
STEP = ProcessingStep(PROTECTION, "MITSGAN protection", time="2026-01-01T00:00:00+00:00")


def written(source: Path, out: Path) -> tuple[CTVolume, CTVolume]:
    """A scan as it is read, and as it is read again after it was written with tissue raised by 3 HU."""
    volume = load_volume(source)
    changed = volume.with_hu(volume.hu + np.where(volume.hu > -900, 3, 0).astype(np.int16), STEP)
    assert save_volume(changed, out) == ()
    again = load_volume(out)
    np.testing.assert_array_equal(again.hu, changed.hu)
    assert again.same_geometry(volume, 1e-3)
    return volume, again


def edited(**values: object) -> Callable[[Dataset, int], None]:
    """Sets elements, or takes those of None away."""

    def edit(dataset: Dataset, _k: int) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return edit


def without_rescale(dataset: Dataset, k: int) -> None:
    if k == 2:
        del dataset.RescaleSlope


def with_localizer(dataset: Dataset, k: int) -> None:
    if k == 3:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def with_full_private_group(dataset: Dataset, _k: int) -> None:
    for block in range(0x10, 0x100):
        dataset.add_new(0x00990000 | block, "LO", "FOREIGN")


def with_overlay(dataset: Dataset, _k: int) -> None:
    for element, vr, value in ((0x10, "US", 64), (0x11, "US", 60), (0x40, "CS", "G"), (0x50, "SS", [1, 1])):
        dataset.add_new(0x60000000 | element, vr, value)
    for element, vr, value in ((0x100, "US", 1), (0x102, "US", 0), (0x3000, "OW", bytes(480))):
        dataset.add_new(0x60000000 | element, vr, value)


SERIES: dict[str, Callable[[], CTSeries]] = {
    "no instance numbers": partial(ct_series, HU, edit=edited(InstanceNumber=None)),
    "one instance number": partial(ct_series, HU, edit=edited(InstanceNumber=7)),
    "rescale of its own in each slice": lambda: CTSeries(
        HU.astype(int) + 2000, slope=[1, 0.5, 1, 0.25], intercept=[-2000, -1500, -2200, -1250]
    ),
    "a negative slope": lambda: CTSeries(1124 - HU.astype(int), slope=-1, intercept=1124),
    "big-endian": partial(ct_series, HU, syntax=ExplicitVRBigEndian),
    "implicit": partial(ct_series, HU, syntax=ImplicitVRLittleEndian),
    "deflated": partial(ct_series, HU, syntax=DeflatedExplicitVRLittleEndian),
    "RLE": partial(ct_series, HU, syntax=RLELossless),
    "JPEG-LS": partial(ct_series, HU, syntax=JPEGLSLossless),
    "JPEG 2000": partial(ct_series, HU, syntax=JPEG2000Lossless),
    "coronal, feet first": partial(ct_series, HU, orientation=(-1, 0, 0, 0, 0, -1), order=[3, 1, 0, 2]),
    "white is low": partial(ct_series, HU, edit=edited(PhotometricInterpretation="MONOCHROME1")),
    "no frame of reference": partial(ct_series, HU, edit=edited(FrameOfReferenceUID=None)),
    "no patient": partial(ct_series, HU, edit=edited(PatientID=None, PatientName=None)),
    "no room for private elements": partial(ct_series, HU, edit=with_full_private_group),
    "overlays": partial(ct_series, HU, edit=with_overlay),
    "another character set": partial(
        ct_series, HU, edit=edited(SpecificCharacterSet=["", "ISO 2022 IR 87"], SeriesDescription="\u80f8\u90e8")
    ),
    "the highest series number": partial(ct_series, HU, edit=edited(SeriesNumber=2**31 - 1)),
}


@pytest.mark.parametrize("name", SERIES)
def test_series_are_taken_whole(tmp_path, name):
    series = SERIES[name]()
    series.write(tmp_path / "in")
    volume, _ = written(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(volume.hu, series.hu())
    assert np.allclose(volume.origin, series.origin)


@pytest.mark.parametrize("split", [[[2, 0, 3, 1]], [[0, 2], [3, 1]]])
def test_enhanced_ct_in_any_order_and_in_several_files(tmp_path, split):
    series = CTSeries(HU.astype(int) + 1024, slope=[1, 1, 0.5, 1], intercept=[-1024, -1000, -800, -1024])
    for number, order in enumerate(split):
        write_enhanced(tmp_path / "in" / str(number), series, order=order)
    np.testing.assert_array_equal(written(tmp_path / "in", tmp_path / "out")[0].hu, series.hu())


def beside(folder: Path) -> None:
    """What lies beside slices on disks and media."""
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(".dcm"))
        (folder / f"._{path.name}.dcm").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
        path.with_suffix(".dcm").chmod(0o444)
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "images.zip"):
        (folder / name).write_bytes(b"PK\3\4 and more")
    (folder / "up").symlink_to(folder)
    (folder / "deep" / ("d" * 200) / ("e" * 200)).mkdir(parents=True)


@pytest.mark.parametrize("name", ["M\u00fcller \u2013 \u60a3\u8005", os.fsdecode(b"M\xfcller"), "a\nb", "n" * 200])
def test_any_folder_and_what_lies_in_it(tmp_path, name):
    folder = tmp_path / name
    ct_series(HU).write(folder)
    beside(folder)
    volume, again = written(folder, tmp_path / "out")
    assert volume.shape == again.shape == SHAPE
    assert not volume.provenance.warnings or {"thin-slices"} >= {one.name for one in volume.provenance.warnings}


def test_a_localizer_among_slices_is_named(tmp_path):
    ct_series(HU, edit=with_localizer).write(tmp_path / "in")
    volume, _ = written(tmp_path / "in", tmp_path / "out")
    assert volume.shape[0] == 3
    assert "localizer-left-out" in [one.name for one in volume.provenance.warnings]


REFUSED = {
    "other high bit": (edited(HighBit=11), "packs its pixels unusually"),
    "one slice without rescale": (without_rescale, "slice-002, that lacks Rescale"),
    "two echoes": (edited(ImagePositionPatient=[0, 0, 0]), "repeated positions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_series_that_cannot_be_taken_whole_are_refused(tmp_path, name):
    edit, reason = REFUSED[name]
    ct_series(HU, edit=edit).write(tmp_path)
    with pytest.raises(InputError, match=reason):
        load_volume(tmp_path)


def nifti(folder: Path, change: Callable[[bytes], bytes], name: str = "scan.nii") -> Path:
    image = sitk.GetImageFromArray(HU)
    image.SetSpacing((6, 5, 4))
    sitk.WriteImage(image, folder / "plain.nii")
    (folder / name).write_bytes(change((folder / "plain.nii").read_bytes()))
    return folder / name


def patched(at: int, form: str, *values: float) -> Callable[[bytes], bytes]:
    packed = struct.pack(form, *values)
    return lambda data: data[:at] + packed + data[at + len(packed) :]


def extended(data: bytes) -> bytes:
    return patched(108, "<f", 384)(data)[:348] + b"\1\0\0\0" + struct.pack("<2i24x", 32, 6) + data[352:]


def nrrd(folder: Path, encoding: str = "raw", data: bytes = HU.tobytes(), more: str = "", name: str = "") -> Path:
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: 60 64 4\nencoding: {encoding}\nspace: RAS\n"
        f"space directions: (6,0,0) (0,5,0) (0,0,4)\nspace origin: (-10,20,30)\n{more or 'endian: little'}\n"
    )
    if name:
        (folder / name).write_bytes(data)
        (folder / "scan.nhdr").write_text(header)
        return folder / "scan.nhdr"
    (folder / "scan.nrrd").write_bytes(header.encode() + b"\n" + data)
    return folder / "scan.nrrd"


def metaimage(folder: Path, matrix: str, data: bytes = HU.tobytes(), more: str = "", name: str = "LOCAL") -> Path:
    header = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{more}TransformMatrix = {matrix}\nOffset = -10 20 30\n"
        f"ElementSpacing = 6 5 4\nDimSize = 60 64 4\nElementType = MET_SHORT\nElementDataFile = {name}\n"
    )
    path = folder / ("scan.mha" if name == "LOCAL" else "scan.mhd")
    if name != "LOCAL":
        (folder / name).write_bytes(data)
    path.write_bytes(header.encode() + (data if name == "LOCAL" else b""))
    return path


STRAIGHT = "1 0 0 0 1 0 0 0 1"
LITTLE = "endian: little\ndata file: voxels"
FILES: dict[str, Callable[[Path], Path]] = {
    "NIfTI scaled": partial(nifti, change=patched(112, "<2f", 0.5, -12)),
    "NIfTI scaled by nothing": partial(nifti, change=patched(112, "<2f", float("nan"), 0)),
    "NIfTI with a fourth axis of one": partial(nifti, change=patched(40, "<5h", 4, 60, 64, 4, 1)),
    "NIfTI with an extension": partial(
        nifti,
        change=lambda data: (
            patched(108, "<f", 384)(data)[:348] + b"\1\0\0\0" + struct.pack("<2i24x", 32, 6) + data[352:]
        ),
    ),
    "NIfTI in two parts of gzip": partial(
        nifti, change=lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]), name="scan.nii.gz"
    ),
    "NRRD big-endian": partial(nrrd, data=HU.astype(">i2").tobytes(), more="endian: big"),
    "NRRD gzip": partial(nrrd, encoding="gzip", data=gzip.compress(HU.tobytes())),
    "NRRD as text": partial(nrrd, encoding="ascii", data=" ".join(map(str, HU.ravel())).encode()),
    "NRRD as digits": partial(nrrd, encoding="hex", data=HU.tobytes().hex().encode()),
    "NRRD detached": partial(nrrd, more=LITTLE, name="voxels"),
    "NRRD detached, gzip": partial(nrrd, encoding="gz", data=gzip.compress(HU.tobytes()), more=LITTLE, name="voxels"),
    "NRRD behind bytes": partial(nrrd, data=b"1234567" + HU.tobytes(), more=f"byte skip: 7\n{LITTLE}", name="voxels"),
    "NRRD at the end": partial(nrrd, data=b"1234567" + HU.tobytes(), more=f"byte skip: -1\n{LITTLE}", name="voxels"),
    "NRRD behind a line": partial(nrrd, data=b"line\n" + HU.tobytes(), more=f"line skip: 1\n{LITTLE}", name="voxels"),
    "MetaImage turned": partial(metaimage, matrix="-1 0 0 0 -1 0 0 0 1"),
    "MetaImage left-handed": partial(metaimage, matrix="1 0 0 0 1 0 0 0 -1"),
    "MetaImage with axes exchanged": partial(metaimage, matrix="0 1 0 0 0 1 1 0 0"),
    "MetaImage about a center": partial(metaimage, matrix="0 1 0 -1 0 0 0 0 1", more="CenterOfRotation = 5 5 5\n"),
    "MetaImage big-endian": partial(
        metaimage, matrix=STRAIGHT, data=HU.astype(">i2").tobytes(), more="BinaryDataByteOrderMSB = True\n"
    ),
    "MetaImage at the end": partial(
        metaimage, matrix=STRAIGHT, data=b"12345" + HU.tobytes(), more="HeaderSize = -1\n", name="voxels"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_taken_as_itk_takes_them(tmp_path, name):
    path = FILES[name](tmp_path)
    volume, _ = written(path, tmp_path / f"out{''.join(path.suffixes)}")
    image, copy = (sitk.ReadImage(one) for one in (path, tmp_path / f"out{''.join(path.suffixes)}"))
    np.testing.assert_array_equal(volume.hu, np.rint(sitk.GetArrayFromImage(image)).reshape(SHAPE))
    assert np.allclose(volume.origin, image.GetOrigin()[:3], atol=1e-3)
    assert np.allclose(volume.spacing, image.GetSpacing()[:3])
    assert np.allclose(copy.GetDirection(), volume.direction.ravel(), atol=1e-5)


NO_FILES: dict[str, Callable[[Path], Path]] = {
    "NRRD, bzip2": partial(nrrd, encoding="bzip2", data=bz2.compress(HU.tobytes())),
    "NRRD of a file elsewhere": partial(nrrd, more="endian: little\ndata file: /etc/passwd", name="voxels"),
    "MetaImage, sheared": partial(metaimage, matrix="1 0 0 0.3 1 0 0 0 1"),
    "NIfTI that is not packed": partial(nifti, change=lambda data: data, name="scan.nii.gz"),
    "NIfTI that is packed": partial(nifti, change=gzip.compress),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_files_that_are_not_what_they_say_are_refused(tmp_path, name):
    with pytest.raises(InputError):
        load_volume(NO_FILES[name](tmp_path))
