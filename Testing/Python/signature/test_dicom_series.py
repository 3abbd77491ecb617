"""Signed DICOM series: the manifest travels in the files, and what happens to files on purpose or by the way."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import dicom_factory
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.dicom.private_block import get_entry, set_entry
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.signing_keys import new_signing_key
from MITSGANLib.signature.contents import read_contents_to_verify
from MITSGANLib.signature.envelope import ManifestError
from MITSGANLib.signature.manifest import manifest_path, read_manifest_file
from MITSGANLib.signature.signing import Signers, sign_scan, signed_output
from MITSGANLib.signature.verification import Verification, manifest_within, verify_scan
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

KEY = new_signing_key()
SHAPE = (5, 66, 70)

Edit = Callable[[Dataset, int], None]


def changed_slices(verification) -> tuple[int, ...]:
    return tuple(np.flatnonzero(verification.tiles.any(axis=(1, 2))).tolist())


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A series with padding, whose file names are in no order."""

    def declare_padding(dataset: Dataset, _k: int) -> None:
        dataset.add_new("PixelPaddingValue", "SS", -2000)

    folder = tmp_path_factory.mktemp("scan") / "original"
    series = dicom_factory.ct_series(dicom_factory.phantom_hu(SHAPE), order=[3, 0, 4, 1, 2], edit=declare_padding)
    series.write(folder)
    return folder


@pytest.fixture(scope="module")
def signed_once(original) -> Path:
    folder = original.parent / "signed"
    sign_scan(original, folder, Signers(KEY))
    return folder


@pytest.fixture
def signed(signed_once, tmp_path) -> Path:
    """A signed copy to spoil."""
    return Path(shutil.copytree(signed_once, tmp_path / "signed"))


def in_slice_order(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))


def edit(folder: Path, change: Edit, slices: tuple[int, ...] | None = None) -> None:
    for k, file in enumerate(in_slice_order(folder)):
        if slices is None or k in slices:
            dataset = pydicom.dcmread(file)
            change(dataset, k)
            dataset.save_as(file)


def verify(folder: Path, **options: object) -> Verification:
    scan = read_contents_to_verify(folder)
    return verify_scan(scan, manifest_within(scan), **options)


def kinds(verification: Verification) -> list[str]:
    return [one.kind for one in verification.discrepancies]


def set_value(keyword: str, value: object) -> Edit:
    return lambda dataset, _k: setattr(dataset, keyword, value)


class TestNoAlarm:
    def test_as_signed(self, signed, original):
        assert verify(signed).is_intact
        assert {file.name for file in signed.iterdir()} == {file.name for file in original.iterdir()}
        for file in original.iterdir():
            before, after = pydicom.dcmread(file), pydicom.dcmread(signed / file.name)
            assert get_entry(after, "manifest")
            assert after.SOPInstanceUID == before.SOPInstanceUID
            assert all(after[element.tag] == element for element in before)

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, JPEGLSLossless])
    def test_lossless_recompression(self, signed, syntax):
        def recompress(dataset: Dataset, _k: int) -> None:
            if syntax.is_encapsulated:
                dataset.compress(syntax, generate_instance_uid=False)
            dataset.file_meta.TransferSyntaxUID = syntax

        edit(signed, recompress)
        assert verify(signed).is_intact

    @pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGLSLossless])
    def test_signed_in_any_transfer_syntax(self, tmp_path, syntax):
        dicom_factory.ct_series(syntax=syntax).write(tmp_path / "scan")
        sign_scan(tmp_path / "scan", tmp_path / "signed", Signers(KEY))
        assert verify(tmp_path / "signed").is_intact
        edit(tmp_path / "signed", set_value("PatientSex", "O"), (2,))
        assert kinds(verify(tmp_path / "signed")) == ["header"]

    def test_enhanced_ct_in_one_file(self, tmp_path):
        series = dicom_factory.ct_series(dicom_factory.phantom_hu(SHAPE))
        dicom_factory.write_enhanced(tmp_path / "scan" / "all", series, order=[4, 2, 0, 1, 3])
        sign_scan(tmp_path / "scan", tmp_path / "signed", Signers(KEY))
        assert verify(tmp_path / "signed").is_intact
        dataset = pydicom.dcmread(tmp_path / "signed" / "all")
        stored = dataset.pixel_array.copy()
        stored[1, 40, 50] += 1  # frame 1 is slice 2
        dataset.PixelData = stored.tobytes()
        dataset.save_as(tmp_path / "signed" / "all")
        verification = verify(tmp_path / "signed")
        assert kinds(verification) == ["voxels"]
        assert np.argwhere(verification.tiles).tolist() == [[2, 1, 1]]

    def test_file_names_and_irrelevant_elements(self, signed):
        def change(dataset: Dataset, k: int) -> None:
            dataset.SeriesDescription = "renamed by the archive"
            dataset.WindowCenter = 40
            dataset.AccessionNumber = ""  # was missing
            dataset.PatientName = f"{dataset.PatientName}^^"
            dataset.SpecificCharacterSet = "ISO_IR 192"
            dataset.add_new((0x0009, 0x0010), "LO", "ARCHIVE")
            dataset.add_new((0x0009, 0x1001), "LO", f"note {k}")

        edit(signed, change)
        for number, file in enumerate(in_slice_order(signed)):
            file.rename(signed / f"{9 - number}.dcm")
        assert verify(signed).is_intact

    @pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
    def test_moved_to_another_format_with_its_manifest(self, signed, tmp_path, suffix):
        manifest = manifest_within(read_contents_to_verify(signed))
        (tmp_path / "m.json").write_bytes(manifest.document())
        save_volume(load_volume(signed), tmp_path / f"scan{suffix}")
        verification = verify_scan(
            read_contents_to_verify(tmp_path / f"scan{suffix}"), read_manifest_file(tmp_path / "m.json")
        )
        assert verification.is_intact
        assert any("not compared" in note for note in verification.notes)

    def test_another_series_beside_it(self, signed):
        dicom_factory.ct_series(prefix="other").write(signed)
        assert verify(signed).is_intact

    def test_a_derived_series_loses_the_manifest_of_its_source(self, signed, tmp_path):
        save_volume(load_volume(signed), tmp_path / "derived")
        assert manifest_within(read_contents_to_verify(tmp_path / "derived")) is None


class TestTampering:
    def test_one_voxel_by_one_hu(self, signed):
        def change(dataset: Dataset, _k: int) -> None:
            stored = dataset.pixel_array.copy()
            stored[33, 3] += 1
            dataset.PixelData = stored.tobytes()

        edit(signed, change, (3,))
        verification = verify(signed)
        assert kinds(verification) == ["voxels"]
        assert np.argwhere(verification.tiles).tolist() == [[3, 1, 0]]

    def test_rescale(self, signed):
        edit(signed, set_value("RescaleIntercept", "-1020"), (1,))
        assert kinds(verify(signed)) == ["slice-replaced"]

    @pytest.mark.parametrize("gone", [(0,), (2,), (4,), (1, 2)])
    def test_slices_removed(self, signed, gone):
        files = in_slice_order(signed)
        for k in gone:
            files[k].unlink()
        verification = verify(signed)
        assert kinds(verification) == ["slice-missing"]
        assert verification.discrepancies[0].slices == gone

    def test_slice_duplicated(self, signed):
        shutil.copy(in_slice_order(signed)[2], signed / "copy.dcm")
        verification = verify(signed)
        assert kinds(verification) == ["slice-duplicated"]
        assert verification.discrepancies[0].slices == (2,)

    @pytest.mark.parametrize("keywords", [("PixelData",), ("ImagePositionPatient", "InstanceNumber", "SOPInstanceUID")])
    def test_slices_swapped(self, signed, keywords):
        files = in_slice_order(signed)
        one, other = (pydicom.dcmread(files[k]) for k in (1, 3))
        for keyword in keywords:
            one[keyword], other[keyword] = other[keyword], one[keyword]
        one.save_as(files[1])
        other.save_as(files[3])
        assert kinds(verify(signed)) == ["slices-swapped"]

    @pytest.mark.parametrize("is_signed", [False, True])
    @pytest.mark.parametrize("is_disguised", [False, True])
    def test_slice_of_another_scan(self, signed, tmp_path, is_signed, is_disguised):
        """A replay: a genuine slice of the same place, of another patient, with or without a signature of its own."""
        dicom_factory.ct_series(dicom_factory.phantom_hu(SHAPE, seed=5)).write(tmp_path / "foreign")
        if is_signed:
            sign_scan(tmp_path / "foreign", tmp_path / "foreign-signed", Signers(KEY))
            shutil.rmtree(tmp_path / "foreign")
            (tmp_path / "foreign-signed").rename(tmp_path / "foreign")
        target = in_slice_order(signed)[2]
        foreign = pydicom.dcmread(in_slice_order(tmp_path / "foreign")[2])
        if is_disguised:
            real = pydicom.dcmread(target)
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
                setattr(foreign, keyword, real[keyword].value)
        foreign.save_as(target)
        verification = verify(signed)
        assert "slice-unsigned" in kinds(verification)
        assert ("header" in kinds(verification)) != is_disguised
        assert changed_slices(verification) == (2,)

    def test_slice_of_another_scan_against_the_whole_manifest(self, original, tmp_path):
        sign_scan(original, None, Signers(KEY), overwrite=True)
        copy = Path(shutil.copytree(original, tmp_path / "copy"))
        dicom_factory.ct_series(dicom_factory.phantom_hu(SHAPE, seed=5)).write(tmp_path / "foreign")
        shutil.copy(in_slice_order(tmp_path / "foreign")[2], in_slice_order(copy)[2])
        verification = verify_scan(read_contents_to_verify(copy), read_manifest_file(manifest_path(original)))
        assert kinds(verification) == ["slice-replaced", "header"]
        assert verification.discrepancies[1].slices == (2,)

    @pytest.mark.parametrize(
        ("keyword", "value", "kind"),
        [
            ("PixelSpacing", ["0.81", "0.7"], "spacing"),
            ("ImageOrientationPatient", ["-1", "0", "0", "0", "-1", "0"], "orientation"),
            ("PatientName", "Another^Patient", "header"),
            ("PatientID", "43", "header"),
            ("PatientBirthDate", "19700101", "header"),
            ("StudyDate", "20010204", "header"),
            ("StudyInstanceUID", "1.2.3", "header"),
            ("SeriesInstanceUID", "1.2.3", "header"),
            ("FrameOfReferenceUID", "1.2.3", "header"),
            ("ImageType", ["DERIVED", "PRIMARY", "AXIAL"], "header"),
            ("PhotometricInterpretation", "MONOCHROME1", "header"),
        ],
    )
    def test_headers_edited_throughout(self, signed, keyword, value, kind):
        edit(signed, set_value(keyword, value))
        verification = verify(signed)
        assert kind in kinds(verification)
        assert "voxels" not in kinds(verification)
        assert "slice-replaced" not in kinds(verification)
        if kind == "header":
            assert kinds(verification) == ["header"]
            assert verify(signed, headers=False).is_intact
            assert "Another" not in verification.discrepancies[0].text

    def test_patient_edited_in_one_image(self, signed):
        edit(signed, set_value("PatientID", "43"), (4,))
        (one,) = verify(signed).discrepancies
        assert (one.kind, one.slices) == ("header", (4,))
        assert "PatientID" in one.text

    def test_padding_declared_over_tissue(self, signed):
        edit(signed, lambda dataset, _k: dataset.add_new("PixelPaddingRangeLimit", "SS", 1100), (1,))
        (one,) = verify(signed).discrepancies
        assert (one.kind, one.slices) == ("header", (1,))
        assert "PixelPaddingRangeLimit" in one.text

    def test_position_edited(self, signed):
        def move(dataset: Dataset, _k: int) -> None:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, z + 40]

        edit(signed, move)
        assert kinds(verify(signed)) == ["position"]

    def test_spacing_and_orientation_of_one_image(self, signed):
        edit(signed, set_value("PixelSpacing", ["0.81", "0.7"]), (1,))
        edit(signed, set_value("ImageOrientationPatient", ["1", "0", "0", "0", "0.999", "0.0447"]), (3,))
        verification = verify(signed)
        assert kinds(verification) == ["orientation", "spacing"]
        assert [one.slices for one in verification.discrepancies] == [(3,), (1,)]

    @pytest.mark.parametrize("shift_mm", [0.15, -0.4])
    def test_one_slice_moved_a_little(self, signed, shift_mm):
        def move(dataset: Dataset, _k: int) -> None:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, float(z) + shift_mm]

        edit(signed, move, (2,))
        (one,) = verify(signed).discrepancies
        assert (one.kind, one.slices) == ("position", (2,))

    @pytest.mark.parametrize("slices", [(1,), (0, 1, 2, 3, 4)])
    def test_slices_cropped(self, signed, slices):
        def crop(dataset: Dataset, _k: int) -> None:
            stored = dataset.pixel_array[:-2].copy()
            dataset.Rows = stored.shape[0]
            dataset.PixelData = stored.tobytes()

        edit(signed, crop, slices)
        verification = verify(signed)
        assert "size" in kinds(verification)
        assert changed_slices(verification) == slices

    def test_a_slice_of_another_size_added(self, signed):
        extra = dicom_factory.ct_series(dicom_factory.phantom_hu((1, 20, 20)), prefix="extra")
        (file,) = extra.write(signed)
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID = pydicom.dcmread(in_slice_order(signed)[3]).SeriesInstanceUID
        dataset.save_as(file)
        assert "size" in kinds(verify(signed))

    @pytest.mark.slow
    def test_cut_along_another_axis_under_another_name(self, signed, tmp_path):
        """The same voxels at the same places, but other images: of another patient, say."""
        manifest = manifest_within(read_contents_to_verify(signed))
        volume = load_volume(signed)
        coronal = dicom_factory.ct_series(
            np.ascontiguousarray(volume.hu.transpose(1, 0, 2)[:, ::-1]),
            orientation=(1, 0, 0, 0, 0, -1),
            spacing=(volume.spacing[0], volume.spacing[2], volume.spacing[1]),
            origin=tuple(volume.voxel_to_lps((volume.shape[0] - 1, 0, 0))),
        )
        coronal.write(tmp_path / "coronal")
        verification = verify_scan(read_contents_to_verify(tmp_path / "coronal"), manifest)
        assert kinds(verification) == ["header"]
        assert not verification.tiles.any()

    def test_a_file_cut_off(self, signed):
        file = in_slice_order(signed)[2]
        file.write_bytes(file.read_bytes()[:-6000])
        verification = verify(signed)
        assert {"slice-missing", "file-unreadable"} <= set(kinds(verification))

    @pytest.mark.slow
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_flipped_bit_is_found_or_harmless(self, signed, data):
        """Any file changed anywhere: no crash, and what is called intact has the signed voxels."""
        file = data.draw(st.sampled_from(sorted(signed.iterdir())))
        content = file.read_bytes()
        # Headers lie before the pixels and the manifest behind them; both are shorter.
        place = data.draw(st.integers(0, 1700) | st.integers(0, len(content) - 1))
        flipped = bytearray(content)
        flipped[place] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(flipped)
        try:
            scan = read_contents_to_verify(signed)
            manifest = manifest_within(scan)
            is_intact = verify_scan(scan, manifest).is_intact
        except InputError:
            is_intact = False
        finally:
            file.write_bytes(content)
        if is_intact:
            assert scan.volume is not None
            assert np.array_equal(scan.volume.hu, dicom_factory.phantom_hu(SHAPE))

    @pytest.mark.slow
    def test_a_part_of_a_real_scan(self, real_ct, tmp_path):
        (tmp_path / "scan").mkdir()
        for file in sorted((real_ct / "dicom" / "LIDC-IDRI-0028").glob("*.dcm"))[60:66]:
            (tmp_path / "scan" / file.name).symlink_to(file)
        sign_scan(tmp_path / "scan", tmp_path / "signed", Signers(KEY))
        assert verify(tmp_path / "signed").is_intact
        save_volume(load_volume(tmp_path / "signed"), tmp_path / "scan.nii.gz")
        manifest = manifest_within(read_contents_to_verify(tmp_path / "signed"))
        moved = read_contents_to_verify(tmp_path / "scan.nii.gz")
        assert verify_scan(moved, manifest).is_intact
        hu = moved.volume.hu.copy()
        hu[4, 200, 333] -= 1
        verification = verify_scan(dataclasses.replace(moved, volume=moved.volume.with_hu(hu)), manifest)
        assert np.argwhere(verification.tiles).tolist() == [[4, 6, 10]]


class TestManifestInFiles:
    def test_taken_out_of_one_file(self, signed):
        edit(signed, lambda dataset, _k: dataset.remove_private_tags(), (1,))
        verification = verify(signed)
        assert kinds(verification) == ["slice-unsigned"]
        assert changed_slices(verification) == (1,)

    def test_taken_out_of_all(self, signed):
        edit(signed, lambda dataset, _k: dataset.remove_private_tags())
        assert manifest_within(read_contents_to_verify(signed)) is None

    def test_every_share_damaged(self, signed):
        def damage(dataset: Dataset, k: int) -> None:
            share = bytearray(get_entry(dataset, "manifest"))
            share[100 + 97 * k] ^= 1
            set_entry(dataset, "manifest", bytes(share))

        edit(signed, damage)
        scan = read_contents_to_verify(signed)
        with pytest.raises(ManifestError):
            manifest_within(scan)

    def test_a_private_element_of_another_kind_counts_as_no_manifest(self, signed):
        edit(signed, lambda dataset, _k: dataset[0x7FE1, 0x1040].__setattr__("value", b"\x00" * 4), (0,))
        assert kinds(verify(signed)) == ["slice-unsigned"]

    def test_two_signed_series_need_a_choice(self, signed, tmp_path):
        dicom_factory.ct_series(prefix="second").write(tmp_path / "second")
        sign_scan(tmp_path / "second", tmp_path / "second-signed", Signers(KEY))
        for file in (tmp_path / "second-signed").iterdir():
            shutil.copy(file, signed)
        with pytest.raises(InputError, match="choose one of these series"):
            read_contents_to_verify(signed)

    def test_the_original_is_never_replaced(self, original):
        with pytest.raises(OutputError, match="never overwritten"):
            sign_scan(original, original, Signers(KEY), overwrite=True)

    def test_signed_as_it_is_saved(self, signed_once, tmp_path):
        volume = load_volume(signed_once)
        changed = volume.with_hu(volume.hu + np.int16(1))
        for name in ("derived", "scan.nrrd"):
            with signed_output(tmp_path / name, Signers(KEY)) as temporary:
                save_volume(changed, temporary)
        assert verify(tmp_path / "derived").is_intact
        beside = read_manifest_file(manifest_path(tmp_path / "scan.nrrd"))
        assert verify_scan(read_contents_to_verify(tmp_path / "scan.nrrd"), beside).is_intact
        assert (load_volume(tmp_path / "derived").hu == changed.hu).all()

    def test_nothing_appears_unsigned(self, tmp_path):
        with pytest.raises(InputError), signed_output(tmp_path / "scan.nrrd", Signers(KEY)) as temporary:
            temporary.write_bytes(b"half")
        with pytest.raises(InputError), signed_output(tmp_path / "folder", Signers(KEY)):
            pass
        assert not list(tmp_path.iterdir())
