"""The derived series: voxels, headers that stay, headers that change, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_factory import PATIENT_NAME, CTSeries, ct_series, phantom_hu, write_enhanced
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib import __version__
from MITSGANLib.errors import CancelledError, InputError, OutputError
from MITSGANLib.files.dicom import write
from MITSGANLib.files.dicom.derive import recorded_steps
from MITSGANLib.files.dicom.frames import Frame
from MITSGANLib.files.dicom.headers import read_header
from MITSGANLib.files.dicom.pixels import stored_for_hu, to_int16_hu
from MITSGANLib.files.dicom.read import read_series
from MITSGANLib.files.dicom.series import DicomSeries, choose_series, scan_dicom
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume, ProcessingStep
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

PROTECT = ProcessingStep(
    PROTECTION,
    "MITS-GAN \u00b5 protection",
    {"model": "mitsgan-1", "strength": 0.5, "seed": 7},
    time="2026-01-02T03:04:05+00:00",
)


def datasets(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def protected(volume: CTVolume, change: int = 3) -> CTVolume:
    """The volume with lungs and body, but not air or padding, changed by ``change`` HU."""
    hu = volume.hu + np.where(volume.hu > -950, change, 0).astype(np.int16)
    return volume.with_hu(hu, PROTECT)


def write_and_protect(tmp_path: Path, series: CTSeries | None = None) -> tuple[list[Dataset], list[Dataset], CTVolume]:
    """Source and derived data sets in slice order, and the volume that was written."""
    paths = (series or ct_series()).write(tmp_path / "source")
    volume = protected(load_volume(tmp_path / "source"))
    assert save_volume(volume, tmp_path / "out") == ()
    return [pydicom.dcmread(path) for path in paths], datasets(tmp_path / "out"), volume


def test_voxels_and_geometry_come_back_and_gdcm_agrees(tmp_path):
    _, _, volume = write_and_protect(tmp_path, ct_series(order=[3, 1, 0, 4, 2]))
    again = load_volume(tmp_path / "out")
    np.testing.assert_array_equal(again.hu, volume.hu)
    assert again.same_geometry(volume)
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(tmp_path / "out"))
    reader.SetFileNames(names)
    image = reader.Execute()
    assert [Path(name).name for name in names] == [f"IM{k:04d}.dcm" for k in range(1, 6)]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.hu)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing)
    np.testing.assert_allclose(image.GetOrigin(), volume.origin)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), volume.direction)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    bits_and_sign=st.sampled_from([(12, False), (12, True), (16, False), (16, True)]),
    slope=st.sampled_from([1, 2, 0.5, 0.3]),
    intercept=st.sampled_from([0, -1024, -1000.0, -1000.5, -8192]),
    varying=st.booleans(),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_unchanged_volume_keeps_every_stored_integer(
    tmp_path_factory, bits_and_sign, slope, intercept, varying, shape, seed
):
    bits, signed = bits_and_sign
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    stored = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
    stored[0, 0, 0] = low
    intercept = intercept if signed else intercept or -1024
    slopes = [slope + (k % 2) / 4 for k in range(shape[0])] if varying else slope
    series = CTSeries(stored, bits=bits, signed=signed, slope=slopes, intercept=intercept)
    folder = tmp_path_factory.mktemp("unchanged")
    series.write(folder / "source")
    assert save_volume(load_volume(folder / "source"), folder / "out") == ()
    np.testing.assert_array_equal([dataset.pixel_array for dataset in datasets(folder / "out")], stored)


@pytest.mark.parametrize(
    ("syntax", "written"),
    [
        (ImplicitVRLittleEndian, ImplicitVRLittleEndian),
        (ExplicitVRLittleEndian, ExplicitVRLittleEndian),
        (ExplicitVRBigEndian, ExplicitVRBigEndian),
        (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian),
        (RLELossless, ExplicitVRLittleEndian),
        (JPEGLSLossless, ExplicitVRLittleEndian),
        (JPEG2000Lossless, ExplicitVRLittleEndian),
    ],
    ids=lambda syntax: syntax.name,
)
def test_transfer_syntax_is_kept_or_uncompressed(tmp_path, syntax, written):
    series = ct_series(phantom_hu((3, 40, 36)), syntax=syntax)
    _, derived, volume = write_and_protect(tmp_path, series)
    assert {dataset.file_meta.TransferSyntaxUID for dataset in derived} == {written}
    np.testing.assert_array_equal(load_volume(tmp_path / "out").hu, volume.hu)


def test_identity_of_the_new_series(tmp_path):
    source, derived, _ = write_and_protect(tmp_path)
    assert len({dataset.SOPInstanceUID for dataset in [*source, *derived]}) == 10
    assert len({dataset.SeriesInstanceUID for dataset in derived}) == 1
    for old, new in zip(source, derived, strict=True):
        assert new.SeriesInstanceUID != old.SeriesInstanceUID
        assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
        assert new.file_meta.MediaStorageSOPClassUID == new.SOPClassUID == old.SOPClassUID
        assert new.SeriesDescription == "Chest 2.5 (protected)"
        assert new.SeriesNumber == 1003
        assert new.InstanceNumber == old.InstanceNumber


@pytest.mark.parametrize(
    "keyword",
    [
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientName",
        "PatientID",
        "StudyDate",
        "StudyTime",
        "AcquisitionDate",
        "Manufacturer",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
        "BitsStored",
        "PixelRepresentation",
    ],
)
def test_original_headers_stay(tmp_path, keyword):
    source, derived, _ = write_and_protect(tmp_path)
    for old, new in zip(source, derived, strict=True):
        assert new[keyword] == old[keyword]


def test_derivation_is_told(tmp_path):
    source, derived, _ = write_and_protect(tmp_path)
    for old, new in zip(source, derived, strict=True):
        assert list(new.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "HELIX"]
        assert "model=mitsgan-1, strength=0.5, seed=7" in new.DerivationDescription
        assert new.DerivationCodeSequence[0].CodeValue == "113042"
        (reference,) = new.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == old.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == old.SOPClassUID
        purpose = reference.PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("121322", "DCM")
        (equipment,) = new.ContributingEquipmentSequence
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109103"
        assert equipment.Manufacturer == "MITSGAN"
        assert equipment.SoftwareVersions == __version__
        assert "seed=7" in equipment.ContributionDescription
        assert str(equipment.ContributionDateTime).startswith("20260102030405")


def test_what_was_done_is_read_back(tmp_path):
    ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    parameters = {"model": "mitsgan-1", "seed": 7, "strength_hu": 12.5, "target": [1, 2]}
    words = "MITSGAN protection with model mitsgan-1 (a test), at most 12.5 HU"
    step = ProcessingStep(PROTECTION, words, parameters, "2026-01-02T03:04:05+00:00")
    save_volume(volume.with_hu(volume.hu, step), tmp_path / "out")
    (read,) = recorded_steps(read_header(min((tmp_path / "out").iterdir())))
    del parameters["target"]
    assert read == ProcessingStep(PROTECTION, words, parameters, step.time)
    assert recorded_steps(read_header(min((tmp_path / "source").iterdir()))) == ()


def test_dates_of_series_and_instance_are_new_in_the_stated_zone(tmp_path, monkeypatch):
    import datetime

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2030, 5, 6, 23, 30, tzinfo=datetime.UTC).astimezone(tz)

    monkeypatch.setattr(write.datetime, "datetime", Clock)

    def in_zone(dataset: Dataset, _k: int) -> None:
        dataset.TimezoneOffsetFromUTC = "+0200"

    _, derived, _ = write_and_protect(tmp_path, ct_series(edit=in_zone))
    for dataset in derived:
        for name in ("Series", "InstanceCreation", "Content"):
            assert dataset[f"{name}Date"].value == "20300507"
            assert str(dataset[f"{name}Time"].value).startswith("013000")


def test_earlier_derivation_and_equipment_are_kept(tmp_path):
    def derived_before(dataset: Dataset, _k: int) -> None:
        dataset.ImageType = ["DERIVED", "PRIMARY"]
        dataset.DerivationDescription = "Denoised"
        equipment = Dataset()
        equipment.Manufacturer = "Denoiser"
        dataset.ContributingEquipmentSequence = [equipment]

    _, derived, _ = write_and_protect(tmp_path, ct_series(edit=derived_before))
    assert derived[0].ImageType == ["DERIVED", "SECONDARY"]
    assert derived[0].DerivationDescription.endswith("Before: Denoised")
    assert [item.Manufacturer for item in derived[0].ContributingEquipmentSequence] == ["Denoiser", "MITSGAN"]


def test_elements_that_are_no_longer_true_are_gone(tmp_path):
    def with_statistics(dataset: Dataset, _k: int) -> None:
        dataset.add_new("SmallestImagePixelValue", "SS", -1024)
        dataset.add_new("LargestImagePixelValue", "SS", 3000)
        for keyword in ("IconImageSequence", "DigitalSignaturesSequence", "MACParametersSequence"):
            setattr(dataset, keyword, [Dataset()])
        dataset.add_new((0x6000, 0x3000), "OW", bytes(16))

    source, derived, _ = write_and_protect(tmp_path, ct_series(edit=with_statistics))
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "IconImageSequence"):
        assert keyword in source[0]
        assert keyword not in derived[0]
    assert "DigitalSignaturesSequence" not in derived[0]
    assert "MACParametersSequence" not in derived[0]
    assert (0x6000, 0x3000) in derived[0]


def test_series_description_fits_64_characters(tmp_path):
    _, derived, _ = write_and_protect(tmp_path, ct_series(description="d" * 64))
    assert len(derived[0].SeriesDescription) == 64
    assert derived[0].SeriesDescription.endswith("d (protected)")


def test_protecting_twice_adds_one_suffix_and_is_warned_of(tmp_path):
    write_and_protect(tmp_path)
    once = load_volume(tmp_path / "out")
    assert {"derived", "already-processed"} <= {warning.name for warning in once.provenance.warnings}
    save_volume(protected(once), tmp_path / "twice")
    dataset = datasets(tmp_path / "twice")[0]
    assert dataset.SeriesDescription == "Chest 2.5 (protected)"
    assert len(dataset.ContributingEquipmentSequence) == 2


def test_a_copy_without_steps_says_so(tmp_path):
    ct_series().write(tmp_path / "source")
    save_volume(load_volume(tmp_path / "source"), tmp_path / "out")
    dataset = datasets(tmp_path / "out")[0]
    assert dataset.SeriesDescription == "Chest 2.5 (MITSGAN)"
    assert "without processing" in dataset.DerivationDescription
    assert "DerivationCodeSequence" not in dataset


def test_lossy_history_stays(tmp_path):
    def lossy(dataset: Dataset, _k: int) -> None:
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = "5"

    _, derived, _ = write_and_protect(tmp_path, ct_series(edit=lossy))
    assert derived[0].LossyImageCompression == "01"
    assert derived[0].LossyImageCompressionRatio == 5


def test_lossy_transfer_syntax_is_remembered(tmp_path):
    paths = ct_series(phantom_hu((3, 40, 36)), syntax=JPEG2000Lossless).write(tmp_path / "source")
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEG2000
        dataset.save_as(path)
    save_volume(load_volume(tmp_path / "source"), tmp_path / "out")
    assert {dataset.LossyImageCompression for dataset in datasets(tmp_path / "out")} == {"01"}


def with_padding(value: int, limit: int | None = None) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.add_new("PixelPaddingValue", "SS", value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", "SS", limit)

    return edit


def test_padding_never_changes_and_nothing_becomes_padding(tmp_path):
    series = ct_series(edit=with_padding(24, 26))  # stored 24..26 are -1000..-998 HU
    series.stored[:, 0, :] = 25
    series.stored[:, 5, 5] = 124
    series.write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    hu = volume.hu.copy()
    hu[:, 0, :] = 100
    hu[:, 5, 5] = -999
    warnings = save_volume(volume.with_hu(hu, PROTECT), tmp_path / "out")
    assert [warning.name for warning in warnings] == ["padding-kept", "quantized-by-rescale"]
    stored = np.array([dataset.pixel_array for dataset in datasets(tmp_path / "out")])
    assert np.all(stored[:, 0, :] == 25)
    assert np.all(stored[:, 5, 5] == 27)


def frame(slope: float, intercept: float, bits: int = 16, padding: tuple[int, int] | None = None) -> Frame:
    return Frame(
        path=Path("slice"),
        index=0,
        rows=1,
        columns=1,
        position=(0.0, 0.0, 0.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing=(1.0, 1.0),
        thickness=None,
        slope=slope,
        intercept=intercept,
        bits=bits,
        signed=True,
        padding=padding,
        padding_value=None,
    )


@given(
    slope=st.sampled_from([1.0, 2.0, 0.5, 0.3, 4.0, -1.0]),
    intercept=st.sampled_from([0.0, -1024.0, -1000.5]),
    original=st.integers(-1500, 1500),
    change=st.integers(-30, 30),
    padding=st.sampled_from([None, (0, 0), (-3, 4)]),
)
def test_stored_integers_show_the_nearest_hu(slope, intercept, original, change, padding):
    one = frame(slope, intercept, padding=padding)
    before = np.array([original], dtype=np.int16)
    hu_before = to_int16_hu(one.hu(before)).astype(int)
    after = stored_for_hu((hu_before + change).astype(np.int16), before, one)
    hu_after = to_int16_hu(one.hu(after)).astype(int)
    if change == 0 or one.is_padding(before).item():
        assert after.item() == original
        return
    assert not one.is_padding(after).item()
    # Every other integer that is not padding is at best as near.
    others = np.arange(original - 200, original + 200)
    others = others[~one.is_padding(others)]
    best = np.abs(to_int16_hu(one.hu(others)).astype(int) - hu_before - change).min()
    if padding is None:
        assert abs(hu_after - hu_before - change).item() == best


def test_stored_integers_are_clipped_to_bits_stored():
    original = np.array([2000, -2000], dtype=np.int16)
    hu = np.array([3000, -3000], dtype=np.int16)
    np.testing.assert_array_equal(stored_for_hu(hu, original, frame(1.0, 0.0, bits=12)), [2047, -2048])


def test_hu_that_the_rescale_cannot_show_is_reported(tmp_path):
    series = CTSeries(((phantom_hu().astype(int) + 1024) // 2), slope=2, intercept=-1024)
    series.write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    warnings = save_volume(protected(volume, change=3), tmp_path / "out")
    assert [warning.name for warning in warnings] == ["quantized-by-rescale"]
    assert np.abs(load_volume(tmp_path / "out").hu - volume.hu).max() == 2  # ties go toward the original


def test_overlay_in_unused_bits_is_kept(tmp_path):
    def with_overlay(dataset: Dataset, _k: int) -> None:
        dataset.add_new((0x6000, 0x0102), "US", 15)

    series = ct_series(bits=12, signed=False, edit=with_overlay)
    series.stored[:, 3, 3] += 0x8000
    series.write(tmp_path / "source")
    volume = protected(load_volume(tmp_path / "source"))
    save_volume(volume, tmp_path / "out")
    np.testing.assert_array_equal(load_volume(tmp_path / "out").hu, volume.hu)
    for dataset in datasets(tmp_path / "out"):
        words = np.frombuffer(dataset.PixelData, "<u2").reshape(12, 10)
        assert np.argwhere(words & 0x8000).tolist() == [[3, 3]]


def test_private_and_odd_elements_survive(tmp_path):
    def odd(dataset: Dataset, _k: int) -> None:
        dataset.private_block(0x0009, "SCANNER", create=True).add_new(1, "UN", b"\x01\x02")
        dataset.SeriesNumber = None
        dataset.ImageComments = "x" * 20

    source, derived, _ = write_and_protect(tmp_path, ct_series(edit=odd, syntax=ImplicitVRLittleEndian))
    assert derived[0][0x0009, 0x1001].value == source[0][0x0009, 0x1001].value
    assert derived[0].SeriesNumber == 1000
    assert derived[0].ImageComments == "x" * 20


def test_enhanced_ct(tmp_path):
    source_path = write_enhanced(tmp_path / "source" / "enhanced", ct_series(), order=[3, 1, 0, 4, 2])
    source = pydicom.dcmread(source_path)
    volume = protected(load_volume(tmp_path / "source"))
    save_volume(volume, tmp_path / "out")
    again = load_volume(tmp_path / "out")
    np.testing.assert_array_equal(again.hu, volume.hu)
    assert again.same_geometry(volume)
    (derived,) = datasets(tmp_path / "out")
    assert derived.SOPClassUID == source.SOPClassUID
    assert derived.SOPInstanceUID != source.SOPInstanceUID
    # Enhanced CT allows no SECONDARY (PS3.3 C.8.16.1.2).
    assert list(derived.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    (shared,) = derived.SharedFunctionalGroupsSequence
    assert shared.CTImageFrameTypeSequence[0].FrameType[0] == "DERIVED"
    for number, group in enumerate(derived.PerFrameFunctionalGroupsSequence, start=1):
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.ReferencedFrameNumber == number
    (evidence,) = derived.SourceImageEvidenceSequence
    assert evidence.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_simulated_attack_is_never_written(tmp_path):
    ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    attacked = volume.with_hu(volume.hu, ProcessingStep(SIMULATED_ATTACK, "inject")).with_hu(volume.hu, PROTECT)
    with pytest.raises(OutputError, match="simulated attack is never written as DICOM"):
        save_volume(attacked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_volumes_without_originals_are_refused(tmp_path):
    save_volume(CTVolume(phantom_hu()), tmp_path / "scan.nrrd")
    with pytest.raises(OutputError, match=r"came from nrrd.*original DICOM headers"):
        save_volume(load_volume(tmp_path / "scan.nrrd"), tmp_path / "out")


def test_originals_that_are_gone_or_differ_are_refused(tmp_path):
    paths = ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    cropped = CTVolume(volume.hu[:, 1:], volume.spacing, volume.origin, volume.direction, volume.provenance)
    with pytest.raises(OutputError, match="differs from the original"):
        save_volume(cropped, tmp_path / "out")
    paths[1].unlink()
    with pytest.raises(OutputError, match=f"{paths[1].name} is gone"):
        save_volume(volume, tmp_path / "out")
    paths[1].write_text("other content")
    with pytest.raises(OutputError, match=f"{paths[1].name} is gone"):
        save_volume(volume, tmp_path / "out")


def test_originals_damaged_since_leave_nothing_behind(tmp_path):
    paths = ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    paths[3].write_bytes(paths[3].read_bytes()[:-50])
    with pytest.raises(InputError, match=paths[3].name):
        save_volume(volume, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_source_and_foreign_folders_are_never_overwritten(tmp_path):
    ct_series().write(tmp_path / "all" / "source")
    volume = load_volume(tmp_path / "all" / "source")
    for folder in (tmp_path / "all" / "source", tmp_path / "all"):
        with pytest.raises(OutputError, match="original series, which is never overwritten"):
            save_volume(volume, folder, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"not DICOM, such as thesis\.txt"):
        save_volume(volume, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_existing_series_is_replaced_only_when_allowed(tmp_path):
    _, _, volume = write_and_protect(tmp_path)
    with pytest.raises(OutputError, match="already exists"):
        save_volume(volume, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def cancel(done: int, _total: int) -> None:
        if done == 3:
            raise CancelledError("stop")

    with pytest.raises(CancelledError):
        save_volume(volume, tmp_path / "out", overwrite=True, progress=cancel)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    save_volume(volume, tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}.keys() == before.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_cancelling_leaves_nothing_behind_and_progress_counts_slices(tmp_path):
    ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    calls = []
    save_volume(volume, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == [(k, 5) for k in range(6)]

    def interrupt(done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_volume(volume, tmp_path / "other", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_nothing_tells_the_patient(tmp_path, caplog, recwarn):
    def odd_name(dataset: Dataset, _k: int) -> None:
        dataset.PatientName = PATIENT_NAME + "x" * 80

    ct_series(edit=odd_name).write(tmp_path / "source")
    recwarn.clear()  # of the factory's own
    volume = load_volume(tmp_path / "source")
    save_volume(protected(volume), tmp_path / "out")
    shown = caplog.text + "".join(str(warning.message) for warning in recwarn) + repr(volume.provenance)
    assert "Secret" not in shown


@pytest.mark.slow
def test_real_series_round_trip(real_ct, tmp_path):
    series = choose_series(scan_dicom(real_ct / "dicom" / "LIDC-IDRI-0028"))
    upwards = sorted(series.headers, key=lambda header: float(header.dataset.ImagePositionPatient[2]))
    volume = protected(read_series(DicomSeries(series.uid, tuple(upwards[:40]))))
    assert save_volume(volume, tmp_path / "out") == ()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), volume.hu)
    again = load_volume(tmp_path / "out")
    np.testing.assert_array_equal(again.hu, volume.hu)
    assert again.same_geometry(volume)
    np.testing.assert_allclose(image.GetOrigin(), volume.origin)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing)
