"""Which NRRD headers are given to ITK: those that keep the rules of the format. Its reader does not survive others."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_factory import phantom_hu
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import InputError
from MITSGANLib.files.nrrd import is_sound_header
from MITSGANLib.files.volume_files import read_file, read_file_header

FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "10 12 5",
    "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-100,-120,30)",
}


def write(path: Path, fields: dict[str, str], *, extra: str = "", end: str = "\n\n", line: str = "\n") -> Path:
    text = line.join(["NRRD0004", "# a comment", *(f"{name}: {value}" for name, value in fields.items())]) + extra
    path.write_bytes((text + end).encode("latin-1") + phantom_hu().astype("<i2").tobytes())
    return path


SOUND = {
    "as ITK writes it": {},
    "blanks within vectors": {"space directions": "( 0.7, 0, 0 ) (0 ,0.8 ,0)  (0,0,2.5e0)"},
    "words in other case": {"Type": "short", "type": None},
    "all that a header may say": {
        "labels": '"x" "y \\" z" ""',
        "space units": '"mm" "mm" "mm"',
        "thicknesses": "nan nan 2",
        "centerings": "cell cell ???",
        "content": "anything: at all",
        "measurement frame": "(1,0,0) (0,1,0) (0,0,1)",
        "line skip": "0",
        "byte skip": "-1",
    },
}


@pytest.mark.parametrize("changes", SOUND.values(), ids=SOUND)
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_headers_that_keep_the_rules_are_read(tmp_path, changes, line):
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    path = write(tmp_path / "scan.nrrd", fields, line=line, end=2 * line, extra=f"{line}key with blanks:=value (1,2")
    assert is_sound_header(path)
    np.testing.assert_array_equal(read_file(path).hu, phantom_hu())


BROKEN = {
    "more vectors than axes": {"space directions": "(0.7) (0,0.8,0) (0,0,9,0,0) " * 40},
    "vectors of other length": {"space directions": "(0.7,0) (0,0.8,0) (0,0,2.5)"},
    "an origin of other length": {"space origin": "(1,2)"},
    "a vector that is not closed": {"space directions": "(0.7,0,0 (0,0.8,0) (0,0,2.5)"},
    "too few sizes": {"sizes": "10 12"},
    "too many axes": {"dimension": "99"},
    "no dimension": {"dimension": None},
    "a dimension that is none": {"dimension": "three"},
    "an unknown field": {"color": "red"},
    "a label without its end": {"labels": '"x" "y" "z'},
    "a number that is none": {"spacings": "1 1 1x"},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_headers_that_break_the_rules_are_refused(tmp_path, changes):
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    path = write(tmp_path / "scan.nrrd", fields)
    assert not is_sound_header(path)
    with pytest.raises(InputError, match="is damaged"):
        read_file_header(path)


@pytest.mark.parametrize(
    "options",
    [{"end": "\n"}, {"extra": "\n\x00\x01binary"}, {"extra": "\ntype: short"}, {"extra": "\nneither field nor entry"}],
    ids=["no empty line", "control characters", "a field twice", "a line of neither kind"],
)
def test_what_is_no_header_is_refused(tmp_path, options):
    assert not is_sound_header(write(tmp_path / "scan.nrrd", FIELDS, **options))


def test_a_header_without_voxels_needs_no_empty_line(tmp_path):
    (tmp_path / "scan.raw").write_bytes(phantom_hu().astype("<i2").tobytes())
    lines = ["NRRD0004", *(f"{name}: {value}" for name, value in FIELDS.items()), "data file: scan.raw"]
    (tmp_path / "scan.nhdr").write_text("\n".join([*lines, ""]))
    np.testing.assert_array_equal(read_file(tmp_path / "scan.nhdr").hu, phantom_hu())


@settings(max_examples=30)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    components=st.integers(1, 3),
    note=st.text(st.characters(codec="ascii", min_codepoint=32), max_size=20),
)
def test_all_that_itk_writes_is_sound(tmp_path_factory, shape, components, note):
    path = tmp_path_factory.mktemp("itk") / "scan.nrrd"
    image = sitk.GetImageFromArray(np.zeros([*shape, components], np.int16), isVector=True)
    image.SetMetaData("note", note)
    sitk.WriteImage(image, path, useCompression=True)
    assert is_sound_header(path)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_a_header_that_promises_more_voxels_than_bytes_can_hold_takes_no_memory(tmp_path, name):
    sitk.WriteImage(sitk.GetImageFromArray(phantom_hu()), tmp_path / name, useCompression=True)
    content = (tmp_path / name).read_bytes()
    assert b"10 12 5" in content
    (tmp_path / name).write_bytes(content.replace(b"10 12 5", b"10000 12000 500"))
    with pytest.raises(InputError, match="is damaged"):
        read_file_header(tmp_path / name)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr"])
@pytest.mark.parametrize("way", ["changed", "shorter", "cut off", "another checksum"])
def test_compressed_voxels_that_are_damaged_are_refused(tmp_path, name, way):
    """ITK takes as many bytes as there are, changed or not."""
    path, hu = tmp_path / name, phantom_hu((4, 64, 60))
    sitk.WriteImage(sitk.GetImageFromArray(hu), path, useCompression=True)
    np.testing.assert_array_equal(read_file(path).hu, hu)
    data = path if name == "scan.nrrd" else tmp_path / "scan.raw.gz"
    packed = data.read_bytes()
    start = packed.index(b"\x1f\x8b")
    data.write_bytes(
        {
            "changed": packed[: start + 2000] + bytes(50) + packed[start + 2050 :],
            "shorter": packed[:start] + gzip.compress(hu[:2].tobytes()),
            "cut off": packed[: start + 2000],
            "another checksum": packed[:-8] + bytes(4) + packed[-4:],
        }[way]
    )
    with pytest.raises(InputError, match="is damaged"):
        read_file(path)


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed"])
def test_a_space_that_is_not_the_patient_s_is_a_warning(tmp_path, space):
    path = write(tmp_path / "scan.nrrd", {**FIELDS, "space": space})
    assert "no-orientation" in [one.name for one in read_file(path).provenance.warnings]


@pytest.mark.parametrize("encoding", ["bzip2", "BZ2"])
def test_voxels_that_bzip2_packed_are_named(tmp_path, encoding):
    """No reader here unpacks them, so the file is not called damaged."""
    path = write(tmp_path / "scan.nrrd", {**FIELDS, "encoding": encoding})
    with pytest.raises(InputError, match=r"bzip2 packed.*gzip or raw"):
        read_file_header(path)
