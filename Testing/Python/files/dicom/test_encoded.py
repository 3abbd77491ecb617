"""What goes through byte for byte: elements that are not ours, whatever they hold, and files with bytes behind them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_factory import CTSeries, ct_series, write_enhanced
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import InputError
from MITSGANLib.files.dicom.encoded import EncodedFile, raw_element
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.key_files import generate_key
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep
from MITSGANLib.seal.sealing import restore, save_sealed
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
LONG_VRS = ("OB", "OW", "SQ", "UN", "UT")


def protected(volume: CTVolume) -> CTVolume:
    hu = volume.hu + np.where(volume.hu > -950, 3, 0).astype(np.int16)
    return volume.with_hu(hu, ProcessingStep(PROTECTION, "protect"))


def element(syntax: str, tag: tuple[int, int], vr: str, value: bytes) -> bytes:
    """An element as a file of this syntax has it, whether it is allowed or not."""
    order = "<" if syntax.is_little_endian else ">"
    head = struct.pack(f"{order}2H", *tag)
    if syntax.is_implicit_VR:
        return head + struct.pack(f"{order}I", len(value)) + value
    length = struct.pack(f"{order}HI", 0, len(value)) if vr in LONG_VRS else struct.pack(f"{order}H", len(value))
    return head + vr.encode() + length + value


def insert(path: Path, syntax: str, added: bytes) -> None:
    """Put bytes behind Patient ID, whose element the factory writes with the value 42."""
    before = element(syntax, (0x0010, 0x0020), "LO", b"42")
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, before + added))


def written(folder: Path, series: CTSeries, added: bytes) -> list[bytes]:
    """The files of the derived series of a series with ``added`` in each file."""
    for path in series.write(folder / "source"):
        insert(path, series.syntax, added)
    save_volume(protected(load_volume(folder / "source")), folder / "out")
    assert load_volume(folder / "out").hu.shape == series.stored.shape
    return [path.read_bytes() for path in sorted((folder / "out").iterdir())]


ODD = {
    "bytes that do not fit a private VR": ((0x01F1, 0x1026), "DS", b"0.264 "),
    "a number that is none": ((0x0010, 0x1030), "DS", b"70 kg "),
    "a date that is none": ((0x0010, 0x0030), "DA", b"unknown!"),
    "a length that no number has": ((0x0010, 0x9431), "FL", b"abcdef"),
    "an unknown VR": ((0x0011, 0x1001), "ZZ", b"abcd"),
    "an odd length": ((0x0010, 0x4000), "LT", b"odd"),
    "a text padded by NUL": ((0x0010, 0x2160), "SH", b"x\0"),
    "a sequence that is none": ((0x0010, 0x1002), "SQ", b"no items"),
    "a group length that is wrong": ((0x0011, 0x0000), "UL", b"\xff\xff\xff\x7f"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_odd_elements_go_through(tmp_path, syntax, bits, odd):
    if odd[0][0] == 0x01F1:  # known to pydicom as a double by its creator
        added = element(syntax, (0x01F1, 0x0010), "LO", b"ELSCINT1") + element(syntax, *odd)
    else:
        added = element(syntax, *odd)
    series = ct_series(bits=bits, signed=False, syntax=syntax)
    assert all(added in content for content in written(tmp_path, series, added))


@pytest.mark.slow
@settings(max_examples=60)
@given(
    syntax=st.sampled_from(SYNTAXES),
    vr=st.sampled_from(["LO", "PN", "DS", "IS", "US", "FD", "SQ", "UN", "OB", "AT", "ZZ"]),
    value=st.binary(max_size=40),
    number=st.integers(0x1001, 0x10FF),
)
def test_private_elements_of_any_bytes_go_through(tmp_path_factory, syntax, vr, value, number):
    added = element(syntax, (0x0011, 0x0010), "LO", b"SCANNER ") + element(syntax, (0x0011, number), vr, value)
    folder = tmp_path_factory.mktemp("any")
    assert all(added in content for content in written(folder, ct_series(bits=12, signed=False, syntax=syntax), added))


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 6", "no such set", "ISO 2022 IR 87"])
def test_texts_that_are_not_in_the_stated_character_set_are_kept(tmp_path, bits, charset):
    def marked(dataset: Dataset, _k: int) -> None:
        dataset.SpecificCharacterSet = charset
        dataset.PatientName, dataset.StudyDescription = "N" * 12, "D" * 12
        dataset.SeriesDescription, dataset.DerivationDescription = "S" * 12, "E" * 12
        item = Dataset()
        item.Manufacturer = "M" * 12
        dataset.ContributingEquipmentSequence = [item]

    texts = {
        letter * 12: f"{letter.decode()} \u00fc\u00f6\u00df     ".encode("latin-1").ljust(12)
        for letter in (b"N", b"D", b"S", b"E", b"M")
    }
    for path in ct_series(bits=bits, signed=False, edit=marked).write(tmp_path / "source"):
        content = path.read_bytes()
        for old, new in texts.items():
            assert content.count(old) == 1
            content = content.replace(old, new)
        path.write_bytes(content)
    save_volume(protected(load_volume(tmp_path / "source")), tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert all(text.rstrip() in content for text in texts.values())
        assert texts[b"S" * 12].rstrip() + b" (protected)" in content
        assert b"Before: " + texts[b"E" * 12].rstrip() in content


@pytest.mark.parametrize(
    ("charset", "text"),
    [("ISO_IR 192", "\u00fc" * 64), ("GB18030", "\u5e74" * 40), ("ISO_IR 100", "\u00fc" * 64)],
)
def test_long_descriptions_are_cut_between_characters(tmp_path, charset, text):
    def described(dataset: Dataset, _k: int) -> None:
        dataset.SpecificCharacterSet = charset
        dataset.SeriesDescription = text

    ct_series(edit=described).write(tmp_path / "source")
    save_volume(protected(load_volume(tmp_path / "source")), tmp_path / "out")
    description = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm").SeriesDescription
    assert len(description) <= 64
    assert description == text[: len(description) - 12] + " (protected)"
    assert len(description) == min(64, len(text) + 12)


def test_elements_of_functional_groups_go_through(tmp_path):
    def odd(dataset: Dataset) -> None:
        for group in (dataset.SharedFunctionalGroupsSequence[0], *dataset.PerFrameFunctionalGroupsSequence):
            item = Dataset()
            item.add_new((0x0018, 0x1160), "SH", "F" * 8)
            group.ReferencedImageSequence = [item]

    path = write_enhanced(tmp_path / "source" / "enhanced", ct_series(), order=range(5), edit=odd)
    path.write_bytes(path.read_bytes().replace(b"F" * 8, b"\xfc\xf6\xdf a\0\0\0"))
    save_volume(protected(load_volume(tmp_path / "source")), tmp_path / "out")
    assert (tmp_path / "out" / "IM0001.dcm").read_bytes().count(b"\xfc\xf6\xdf a\0\0\0") == 6


@pytest.mark.parametrize(
    ("original", "derived"),
    [
        (["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"], ["DERIVED", "SECONDARY", "AXIAL", "HELIX"]),
        (["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY"]),
        (["ORIGINAL", "", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]),
        ("ORIGINAL", ["DERIVED", "SECONDARY"]),
        ("AXIAL", ["DERIVED", "SECONDARY"]),
        ("", ["DERIVED", "SECONDARY"]),
        (None, ["DERIVED", "SECONDARY"]),
    ],
)
def test_image_type_of_any_length(tmp_path, original, derived):
    def typed(dataset: Dataset, _k: int) -> None:
        dataset.ImageType = original
        if original is None:
            del dataset.ImageType

    ct_series(edit=typed).write(tmp_path / "source")
    save_volume(protected(load_volume(tmp_path / "source")), tmp_path / "out")
    assert list(pydicom.dcmread(tmp_path / "out" / "IM0001.dcm").ImageType) == derived


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (((0x0020, 0x0011), "IS", b"3 "), b"A "),
        (((0x0018, 0x0050), "DS", b"2.5 "), b"thin"),
        (((0x0018, 0x1210), "SH", b"B30f"), b"\xfc\xf6\xdf\xe4"),
    ],
    ids=["Series Number", "Slice Thickness", "kernel"],
)
def test_what_only_describes_may_be_damaged(tmp_path, old, new):
    before = element(ExplicitVRLittleEndian, *old)
    after = element(ExplicitVRLittleEndian, *old[:2], new)
    for path in ct_series().write(tmp_path / "source"):
        content = path.read_bytes()
        assert content.count(before) == 1
        path.write_bytes(content.replace(before, after))
    save_volume(protected(load_volume(tmp_path / "source")), tmp_path / "out")
    content = (tmp_path / "out" / "IM0001.dcm").read_bytes()
    assert after in content or old[0] == (0x0020, 0x0011)
    assert pydicom.dcmread(tmp_path / "out" / "IM0001.dcm").SeriesNumber in (1000, 1003)


PADDINGS = {
    "NUL to blocks": lambda content: bytes(-len(content) % 4096),
    "one NUL": lambda _content: b"\0",
    "blanks": lambda _content: b" " * 100,
    "FF": lambda _content: b"\xff" * 2048,
    "end of text": lambda _content: b"\r\n\x1a",
    "NUL, then what the block held before": lambda _content: bytes(16) + bytes(range(256)) * 3,
}


@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("syntax", [*SYNTAXES, JPEGLSLossless, DeflatedExplicitVRLittleEndian], ids=lambda s: s.name)
def test_bytes_behind_the_data_set_are_ignored(tmp_path, syntax, padding: Callable[[bytes], bytes]):
    series = ct_series(syntax=syntax)
    for path in series.write(tmp_path / "source"):
        content = path.read_bytes()
        path.write_bytes(content + padding(content))
    volume = load_volume(tmp_path / "source")
    np.testing.assert_array_equal(volume.hu, series.hu())
    save_volume(protected(volume), tmp_path / "out")
    np.testing.assert_array_equal(load_volume(tmp_path / "out").hu, protected(volume).hu)


def test_padded_files_are_restored_with_their_padding(tmp_path):
    originals = ct_series().write(tmp_path / "source")
    for path in originals:
        path.write_bytes(path.read_bytes() + bytes(100))
    volume = load_volume(tmp_path / "source")
    key = generate_key()
    save_sealed(protected(volume), volume, tmp_path / "sealed", key)
    restore(tmp_path / "sealed", tmp_path / "restored", key)
    restored = sorted((tmp_path / "restored").iterdir())
    assert [path.read_bytes() for path in restored] == [path.read_bytes() for path in originals]


@pytest.mark.parametrize("cut", [1, 7, 11, 13, 20])
def test_a_file_cut_off_behind_its_pixels_is_named(tmp_path, cut):
    def private(dataset: Dataset, _k: int) -> None:
        dataset.private_block(0x7FE3, "SCANNER", create=True).add_new(1, "OB", b"abcdef")

    path = ct_series(edit=private).write(tmp_path)[2]
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=f"{path.name} is a damaged or incomplete DICOM file"):
        load_volume(tmp_path)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("bit", [0, 1, 2, 4, 15])
def test_file_meta_information_that_ends_early_is_damage(tmp_path, syntax, bit):
    """Elsewhere than in group 0002 an element ends it; the rest of it would be written into the data set."""
    path = ct_series(syntax=syntax).write(tmp_path)[1]
    content = path.read_bytes()
    tag = struct.pack("<2H", 0x0002, 0x0003)
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag, struct.pack("<2H", 0x0002 ^ 1 << bit, 0x0003)))
    with pytest.raises(InputError, match=f"{path.name} is a damaged"):
        load_volume(tmp_path)


def test_elements_behind_pixels_are_kept(tmp_path):
    def private(dataset: Dataset, _k: int) -> None:
        dataset.private_block(0x7FE1, "OTHERS", create=True).add_new(1, "OB", b"abcdef")
        dataset.add_new("DataSetTrailingPadding", "OB", bytes(32))

    ct_series(edit=private).write(tmp_path / "source")
    save_volume(protected(load_volume(tmp_path / "source")), tmp_path / "out")
    dataset = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm")
    assert dataset[0x7FE1, 0x1001].value == b"abcdef"
    assert dataset.DataSetTrailingPadding == bytes(32)


def test_elements_out_of_order_hide_nothing_behind_the_pixels(tmp_path):
    series = ct_series()
    odd = element(series.syntax, (0xE071, 0x0009), "CS", b"ODD ")
    for path in series.write(tmp_path / "source"):
        insert(path, series.syntax, odd)
    save_volume(protected(load_volume(tmp_path / "source")), tmp_path / "out")
    assert load_volume(tmp_path / "out").shape == series.hu().shape
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes().endswith(odd)


def test_a_file_that_lies_about_its_syntax_is_written_as_it_is_encoded(tmp_path):
    for path in ct_series(syntax=ImplicitVRLittleEndian).write(tmp_path / "source"):
        content = path.read_bytes()
        old, new = b"UI\x12\x001.2.840.10008.1.2\0", b"UI\x14\x001.2.840.10008.1.2.1\0"
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
    save_volume(protected(load_volume(tmp_path / "source")), tmp_path / "out")
    derived = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm")
    assert derived.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian


def test_a_deflated_file_is_never_inflated_beyond_what_pixels_can_be(tmp_path, monkeypatch):
    path = ct_series(syntax=DeflatedExplicitVRLittleEndian).write(tmp_path)[0]
    monkeypatch.setattr("MITSGANLib.files.dicom.encoded.INFLATED_BYTES", 100)
    with pytest.raises(EOFError):
        EncodedFile.parse(path.read_bytes())


def test_raw_elements_are_of_even_length():
    assert raw_element("ImageType", "CS", b"ODD", (False, True)).value == b"ODD "
