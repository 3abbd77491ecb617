"""Which MetaImage headers are given to ITK: those that keep the rules. Its reader does not survive all others."""

from __future__ import annotations

import re
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_factory import phantom_hu
from MITSGANLib.errors import InputError
from MITSGANLib.files.metaimage import is_sound_header
from MITSGANLib.files.volume_files import read_file, read_file_header


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd"])
@pytest.mark.parametrize("compressed", [True, False])
def test_what_itk_writes_is_read(tmp_path, name, compressed):
    image = sitk.GetImageFromArray(phantom_hu())
    image.SetMetaData("note", "x" * 1000)
    sitk.WriteImage(image, tmp_path / name, useCompression=compressed)
    assert is_sound_header(tmp_path / name)
    np.testing.assert_array_equal(read_file(tmp_path / name).hu, phantom_hu())


BROKEN = {
    "too many axes": (b"NDims = 3", b"NDims = 33"),
    "too many numbers": (b"Offset = 0 0 0", b"Offset = 0 0 0 0"),
    "a number that is none": (b"Offset = 0 0 0", b"Offset = 0 0 x"),
    "a matrix of other size": (b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0"),
    "a text of any length": (b"ObjectType = Image", b"ObjectType = " + b"I" * 300),
    "letters of no body": (b"AnatomicalOrientation = RAI", b"AnatomicalOrientation = " + b"R" * 30),
    "no sizes": (b"DimSize = 10 12 5\n", b""),
    "a line that is no field": (b"NDims = 3", b"NDims = 3\nanything"),
    "control characters": (b"NDims = 3", b"NDims = 3\nnote = \x01"),
    "a field twice": (b"NDims = 3", b"NDims = 3\nNDims = 3"),
    "axes after what they count": (b"ObjectType = Image", b"ObjectType = Image\nElementSize = 1 1 1"),
}


@pytest.mark.parametrize(("old", "new"), BROKEN.values(), ids=BROKEN)
def test_headers_that_break_the_rules_are_refused(tmp_path, old, new):
    path = tmp_path / "scan.mha"
    sitk.WriteImage(sitk.GetImageFromArray(phantom_hu()), path)
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    assert not is_sound_header(path)
    with pytest.raises(InputError, match="is damaged"):
        read_file_header(path)


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd"])
@pytest.mark.parametrize("way", ["changed", "shorter", "cut off", "of unknown length"])
def test_compressed_voxels_that_are_damaged_are_refused(tmp_path, name, way):
    """ITK takes them without a word, with what was in its memory for the rest."""
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(phantom_hu((4, 64, 60))), path, useCompression=True)
    data = path if name == "scan.mha" else tmp_path / "scan.zraw"
    packed = data.read_bytes()
    size = int(re.search(rb"CompressedDataSize = (\d+)", path.read_bytes()).group(1))
    start = len(packed) - size
    if way == "changed":
        packed = packed[: start + 2000] + bytes(50) + packed[start + 2050 :]
    elif way == "cut off":
        packed = packed[: start + 2000]
    elif way == "shorter":
        packed = packed[:start] + zlib.compress(phantom_hu((2, 64, 60)).tobytes())
    data.write_bytes(packed)
    size = b"" if way == "of unknown length" else f"CompressedDataSize = {len(packed) - start}\n".encode()
    path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", size, path.read_bytes()))
    if way == "of unknown length" and name == "scan.mhd":
        np.testing.assert_array_equal(read_file(path).hu, phantom_hu((4, 64, 60)))
        return
    with pytest.raises(InputError, match="is damaged"):
        read_file(path)
