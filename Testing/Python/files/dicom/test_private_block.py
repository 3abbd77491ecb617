"""Named entries in DICOM files: kept byte for byte by every transfer syntax and by a store over the network."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_factory import ct_series, save
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.dicom import private_block
from MITSGANLib.files.dicom.private_block import (
    CREATOR,
    FIRST_ELEMENT,
    GROUP,
    cut_shares,
    get_entry,
    join_shares,
    remove_entries,
    remove_entry,
    set_entry,
)
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

SEAL, MANIFEST = bytes(range(256)) * 3 + b"\x00", b"\x00\x00signed\x00"


def sealed() -> pydicom.Dataset:
    dataset = ct_series().dataset(1)
    set_entry(dataset, "seal", SEAL)
    set_entry(dataset, "manifest", MANIFEST)
    return dataset


def through_file(dataset: pydicom.Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> pydicom.Dataset:
    save(dataset, path, syntax)
    return pydicom.dcmread(path)


class TestEntries:
    @pytest.mark.parametrize(
        "syntax",
        [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
        ids=lambda syntax: syntax.name,
    )
    def test_a_file_keeps_them_in_every_transfer_syntax(self, tmp_path, syntax):
        dataset = sealed()
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = dataset["PixelData"].value[::-1]
        read = through_file(dataset, tmp_path / "file", syntax)
        assert get_entry(read, "seal") == SEAL
        assert get_entry(read, "manifest") == MANIFEST

    def test_they_survive_implicit_vr_in_between(self, tmp_path):
        unknown = through_file(sealed(), tmp_path / "implicit", ImplicitVRLittleEndian)
        assert unknown[GROUP, 0x1000].VR == "UN"
        again = through_file(unknown, tmp_path / "explicit", ExplicitVRLittleEndian)
        assert get_entry(again, "seal") == SEAL

    @given(data=st.binary(max_size=300), part=st.integers(4, 30).map(lambda half: 2 * half))
    def test_any_bytes_in_parts_of_any_size(self, data, part):
        dataset = pydicom.Dataset()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(private_block, "PART_BYTES", part)
            set_entry(dataset, "seal", data)
        assert all(len(e.value) <= part and len(e.value) % 2 == 0 for e in dataset if e.tag.element >= 0x1000)
        assert get_entry(dataset, "seal") == data

    def test_a_shorter_value_leaves_nothing_of_the_longer(self, monkeypatch):
        monkeypatch.setattr(private_block, "PART_BYTES", 16)
        dataset = pydicom.Dataset()
        set_entry(dataset, "seal", bytes(100))
        set_entry(dataset, "seal", b"short")
        assert get_entry(dataset, "seal") == b"short"
        assert len(dataset) == 2

    def test_too_many_bytes(self, monkeypatch):
        monkeypatch.setattr(private_block, "PART_BYTES", 4)
        with pytest.raises(OutputError, match="nrrd"):
            set_entry(pydicom.Dataset(), "seal", bytes(4 * 64))

    def test_blocks_of_others_stay(self, tmp_path):
        dataset = ct_series().dataset(0)
        other = dataset.private_block(GROUP, "SIEMENS CSA NON-IMAGE", create=True)
        other.add_new(0x00, "OB", b"theirs")
        set_entry(dataset, "seal", SEAL)
        read = through_file(dataset, tmp_path / "file")
        assert read[GROUP, 0x1000].value == b"theirs"
        assert read[GROUP, 0x0011].value == CREATOR
        assert get_entry(read, "seal") == SEAL
        remove_entries(read)
        assert read[GROUP, 0x1000].value == b"theirs"
        assert (GROUP, 0x0011) not in read

    def test_removal_leaves_the_data_set_as_it_was(self):
        before, dataset = ct_series().dataset(1), sealed()
        remove_entry(dataset, "seal")
        assert get_entry(dataset, "seal") is None
        assert get_entry(dataset, "manifest") == MANIFEST
        remove_entries(dataset)
        assert {e.tag for e in dataset} == {e.tag for e in before}

    def test_nothing_there(self):
        assert get_entry(pydicom.Dataset(), "seal") is None
        remove_entries(pydicom.Dataset())

    @pytest.mark.parametrize("value", [b"", b"short", bytes(6) + b"\xff\xff" + bytes(4), bytes(7) + b"\x01" + bytes(4)])
    def test_damaged_entries_are_refused(self, value):
        dataset = pydicom.Dataset()
        dataset.private_block(GROUP, CREATOR, create=True).add_new(0, "OB", value)
        with pytest.raises(InputError, match="damaged"):
            get_entry(dataset, "seal")

    def test_a_lost_part_is_noticed(self, monkeypatch):
        monkeypatch.setattr(private_block, "PART_BYTES", 16)
        dataset = pydicom.Dataset()
        set_entry(dataset, "seal", bytes(100))
        for lost in (0x00, 0x03, 0x06):
            one = pydicom.Dataset()
            one.update(dataset)
            del one[GROUP, 0x1000 + lost]
            with pytest.raises(InputError, match="damaged"):
                get_entry(one, "seal")

    def test_names_have_elements_of_their_own(self):
        firsts = sorted(FIRST_ELEMENT.values())
        assert all(b - a >= private_block.PARTS for a, b in zip(firsts, [*firsts[1:], 0x100], strict=True))

    def test_headers_are_read_without_them(self):
        buffer = BytesIO()
        dataset = sealed()
        set_entry(dataset, "seal", bytes(1 << 20))
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(buffer, enforce_file_format=True)
        buffer.seek(0)
        assert len(pydicom.dcmread(buffer, stop_before_pixels=True)) > 10
        assert buffer.tell() < 10_000

    def test_itk_reads_the_pixels_as_before(self, tmp_path):
        series = ct_series()
        path = tmp_path / "file.dcm"
        through_file(sealed(), path)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path))[0], series.hu()[1])


class TestShares:
    @given(st.binary(max_size=200), st.integers(1, 20), st.randoms())
    def test_whole_from_shares_in_any_order(self, data, count, random):
        shares = cut_shares(data, count)
        order = random.sample(range(count), count)
        assert join_shares([shares[index] for index in order]) == (data, order)

    @pytest.mark.slow
    @given(st.binary(min_size=1, max_size=40), st.integers(1, 5), st.data())
    def test_a_flipped_bit_is_noticed(self, data, count, draw):
        shares = cut_shares(data, count)
        which = draw.draw(st.integers(0, count - 1))
        bit = draw.draw(st.integers(0, 8 * len(shares[which]) - 1))
        flipped = bytearray(shares[which])
        flipped[bit // 8] ^= 1 << bit % 8
        shares[which] = bytes(flipped)
        with pytest.raises(InputError):
            join_shares(shares)

    def test_a_count_that_is_not_true_takes_no_memory(self):
        share = bytearray(cut_shares(b"all", 1)[0])
        share[4:8] = b"\xff\xff\xff\xff"
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match="of the 4294967295"):
                join_shares([bytes(share)])
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda shares: shares[1:], "2 of the 3"),
            (lambda shares: [*shares, shares[0]], "twice"),
            (lambda shares: [*shares[1:], cut_shares(b"another", 3)[0]], "several"),
            (lambda shares: [b"short", *shares[1:]], "damaged"),
            (lambda _: [], "several"),
        ],
    )
    def test_incomplete_series(self, change, words):
        with pytest.raises(InputError, match=words):
            join_shares(change(cut_shares(b"what is cut", 3)))


@pytest.fixture
def archive(tmp_path):
    """DCMTK's storescp on loopback: (port, folder of what it received)."""
    if not shutil.which("storescp") or not shutil.which("storescu"):
        pytest.skip("storescp and storescu are not installed (Debian package dcmtk)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "archive"
    folder.mkdir()
    with subprocess.Popen(["storescp", "-od", folder, str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            yield port, folder
        finally:
            server.terminate()


@pytest.mark.parametrize("proposed", ["-xe", "-xi", "-xb"])
def test_store_over_the_network(tmp_path, archive, proposed):
    """Explicit, implicit VR and big endian; the server writes what it gets."""
    port, folder = archive
    save(sealed(), tmp_path / "file", ExplicitVRLittleEndian)
    send = ["storescu", proposed, "127.0.0.1", str(port), tmp_path / "file"]
    for _ in range(100):  # the server takes a moment to listen
        if not subprocess.run(send, capture_output=True, check=False).returncode:
            break
        time.sleep(0.1)
    (received,) = folder.iterdir()
    read = pydicom.dcmread(received)
    assert get_entry(read, "seal") == SEAL
    assert get_entry(read, "manifest") == MANIFEST
