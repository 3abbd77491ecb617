"""Voxels of DICOM series in HU: every stored form, compression, Enhanced CT, damage, and what headers warn of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_factory import PATIENT_NAME, CTSeries, ct_series, phantom_hu, write_enhanced
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import CancelledError, DependencyError, InputError
from MITSGANLib.files.storage import load_volume
from MITSGANLib.scan.volume import CTVolume
from pydicom import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
COMPRESSED = [RLELossless, JPEGLSLossless, JPEG2000Lossless]
ENCODABLE = (3, 40, 36)  # JPEG 2000 divides images by 32


def warning_names(volume: CTVolume) -> list[str]:
    return [warning.name for warning in volume.provenance.warnings]


def itk_image(volume: CTVolume) -> sitk.Image:
    """The same slices read by GDCM, which shares no code with pydicom."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(volume.provenance.dicom_files)
    return reader.Execute()


@st.composite
def stored_series(draw: Callable) -> CTSeries:
    """A series of any stored form whose HU stay within int16 and are plausible."""
    bits, signed = draw(st.sampled_from([(12, False), (12, True), (16, False), (16, True)]))
    slope = draw(st.sampled_from([1, 2, 0.5]))
    intercept = draw(st.sampled_from([0, -1024, -1000.0, -8192]))
    if signed:
        low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    else:
        low, high = 0, (1 << bits) - 1
        intercept = intercept or -1024  # unsigned values with no intercept are never below 0 HU
    shape = tuple(draw(st.tuples(*[st.integers(1, 7)] * 3)))
    seed = draw(st.integers(0, 2**32 - 1))
    stored = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
    stored[0, 0, 0] = low
    varying = draw(st.booleans())
    slopes = [slope * (1 + k % 2) for k in range(shape[0])] if varying else slope
    intercepts = [intercept - k for k in range(shape[0])] if varying else intercept
    return CTSeries(
        stored,
        bits=bits,
        signed=signed,
        slope=slopes,
        intercept=intercepts,
        order=draw(st.permutations(range(shape[0]))),
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(series=stored_series())
def test_every_stored_form_gives_its_hu(tmp_path_factory, series):
    folder = tmp_path_factory.mktemp("stored")
    series.write(folder)
    np.testing.assert_array_equal(load_volume(folder).hu, series.hu())


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("signed", [True, False])
def test_transfer_syntaxes(tmp_path, syntax, signed):
    series = ct_series(phantom_hu(ENCODABLE), syntax=syntax, signed=signed)
    series.write(tmp_path)
    np.testing.assert_array_equal(load_volume(tmp_path).hu, series.hu())


def test_provenance(tmp_path):
    series = ct_series(order=[3, 1, 0, 4, 2])
    paths = series.write(tmp_path)
    provenance = load_volume(tmp_path).provenance
    assert provenance.source == str(tmp_path)
    assert provenance.format == "dicom"
    assert provenance.series_instance_uid == series.uid
    assert provenance.dicom_files == tuple(map(str, paths))
    assert provenance.padding_hu is None
    assert provenance.warnings == ()
    assert provenance.steps == ()
    assert PATIENT_NAME not in repr(provenance)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1]])
def test_enhanced_ct(tmp_path, order):
    series = ct_series(slope=[1, 1, 2, 1, 1], intercept=[-1024, -1000, -1024, -1024, -1024])
    path = write_enhanced(tmp_path / "enhanced", series, order=order)
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, series.hu())
    assert volume.provenance.dicom_files == (str(path),)
    np.testing.assert_allclose(volume.origin, series.origin)
    np.testing.assert_allclose(volume.spacing, series.spacing)
    np.testing.assert_array_equal(load_volume(path).hu, series.hu())


def test_enhanced_ct_with_everything_per_frame(tmp_path):
    def move_to_frames(dataset: Dataset) -> None:
        (shared,) = dataset.SharedFunctionalGroupsSequence
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.PlaneOrientationSequence = shared.PlaneOrientationSequence
            group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        del dataset.SharedFunctionalGroupsSequence

    write_enhanced(tmp_path / "enhanced", ct_series(), order=range(5), edit=move_to_frames)
    np.testing.assert_array_equal(load_volume(tmp_path).hu, phantom_hu())


def test_enhanced_ct_without_positions_is_refused(tmp_path):
    def without_position(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence

    write_enhanced(tmp_path / "enhanced", ct_series(), order=range(5), edit=without_position)
    with pytest.raises(InputError, match="enhanced has a missing or invalid position"):
        load_volume(tmp_path)


def with_padding(value: int, limit: int | None = None, vr: str = "SS") -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", vr, limit)

    return edit


@pytest.mark.parametrize(
    ("value", "limit", "vr"),
    [(-2000, None, "SS"), (63536, None, "US"), (-2000, -1990, "SS")],
    ids=["signed", "unsigned-by-mistake", "range"],
)
def test_padding_is_given_in_hu(tmp_path, value, limit, vr):
    series = ct_series(edit=with_padding(value, limit, vr))
    series.stored[:, 0, :] = -2000
    series.write(tmp_path)
    volume = load_volume(tmp_path)
    assert volume.provenance.padding_hu == -3024
    assert np.all(volume.hu[:, 0, :] == -3024)
    assert warning_names(volume) == ["padding-values"]


def test_declared_padding_that_no_voxel_has_is_no_warning(tmp_path):
    ct_series(edit=with_padding(-2000)).write(tmp_path)
    volume = load_volume(tmp_path)
    assert volume.provenance.padding_hu == -3024
    assert warning_names(volume) == []


def test_padding_beyond_int16_is_clipped(tmp_path):
    series = ct_series(edit=with_padding(-32768))
    series.stored[:, 0, :] = -32768
    series.write(tmp_path)
    volume = load_volume(tmp_path)
    assert volume.provenance.padding_hu == -32768
    assert np.all(volume.hu[:, 0, :] == -32768)
    assert "clipped-to-int16" in warning_names(volume)


def test_padding_that_differs_between_slices_is_left_unmarked(tmp_path):
    series = ct_series(edit=with_padding(-2000), intercept=[-1024, -1024, -1000, -1024, -1024])
    series.write(tmp_path)
    volume = load_volume(tmp_path)
    assert volume.provenance.padding_hu is None
    assert "padding-varies" in warning_names(volume)


def test_padding_outside_bits_stored_is_read_whole(tmp_path):
    series = ct_series(edit=with_padding(-2048 - 1000), bits=12, intercept=0, slope=1)
    series.stored[:] = phantom_hu()
    series.stored[:, 0, :] = -3048
    series.write(tmp_path)
    np.testing.assert_array_equal(load_volume(tmp_path).hu, series.stored)


def test_unused_high_bits_are_ignored(tmp_path):
    series = ct_series(bits=12, signed=False)
    expected = series.hu()
    series.stored[:, 3, 3] += 0x4000
    series.write(tmp_path)
    np.testing.assert_array_equal(load_volume(tmp_path).hu, expected)


def setting(**elements: object) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, k: int) -> None:
        for keyword, value in elements.items():
            setattr(dataset, keyword, value(k) if callable(value) else value)

    return edit


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (setting(ImageType=["DERIVED", "SECONDARY", "AXIAL"]), ["derived"]),
        (setting(LossyImageCompression="01"), ["lossy-compression"]),
        (setting(BurnedInAnnotation="YES"), ["burned-in-annotation"]),
        (setting(GantryDetectorTilt="15"), ["gantry-tilt"]),
        (setting(GantryDetectorTilt=["0", "0"]), []),
        (setting(ConvolutionKernel=lambda k: "B30f" if k else "B70f"), ["mixed-kernels"]),
        (setting(RescaleType="US"), ["rescale-type-unspecified"]),
        (setting(RescaleType="HU"), []),
        (setting(RescaleSlope="1.0001"), ["rescale-rounded"]),
    ],
)
def test_header_warnings(tmp_path, edit, names):
    ct_series(edit=edit).write(tmp_path)
    assert warning_names(load_volume(tmp_path)) == names


def test_localizer_in_the_series_is_left_out(tmp_path):
    series = ct_series()
    series.write(tmp_path)
    localizer = ct_series(
        phantom_hu((1, 12, 10)),
        uid=series.uid,
        study_uid=series.study_uid,
        prefix="scout",
        edit=setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    )
    localizer.write(tmp_path)
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, phantom_hu())
    assert warning_names(volume) == ["localizer-left-out"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (setting(StudyInstanceUID=lambda k: f"1.2.{k + 1}"), "different studies"),
        (setting(PatientID=lambda k: f"Jane-{k}"), "different patients"),
        (setting(FrameOfReferenceUID=lambda k: f"1.2.{k + 1}"), "different frames of reference"),
        (setting(ImagePositionPatient=None), "missing or invalid position"),
        (setting(PixelSpacing=["0", "0"]), "no positive Pixel Spacing"),
        (setting(RescaleSlope="0"), "Rescale Slope 0"),
        (setting(NumberOfFrames=2), "many frames"),
        (setting(RescaleIntercept="0"), "not Hounsfield units"),
    ],
)
def test_unusable_headers_are_refused(tmp_path, edit, message):
    ct_series(edit=edit).write(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_volume(tmp_path)
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, *COMPRESSED])
def test_files_cut_off_in_their_pixels_are_named(tmp_path, syntax):
    path = ct_series(phantom_hu(ENCODABLE), syntax=syntax).write(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match=f"{path.name} is a damaged or incomplete DICOM file"):
        load_volume(tmp_path)


def test_missing_pixels_are_refused(tmp_path):
    ct_series(edit=lambda dataset, _k: dataset.pop("PixelData")).write(tmp_path)
    with pytest.raises(InputError, match="damaged or incomplete"):
        load_volume(tmp_path)


@pytest.mark.parametrize(
    ("good", "bad"),
    [(b"1.2.840.10008.1.2.1\0", b"9.2.840.10008.1.2.1\0"), (b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00ZZ")],
    ids=["transfer syntax", "VR of the pixels"],
)
def test_flipped_bits_in_what_says_how_to_read_pixels_are_named(tmp_path, good, bad):
    path = ct_series().write(tmp_path)[1]
    content = path.read_bytes()
    assert good in content
    path.write_bytes(content.replace(good, bad))
    with pytest.raises(InputError, match=f"{path.name} is a damaged"):
        load_volume(tmp_path)


def test_corrupt_compressed_pixels_are_named_and_nothing_is_logged(tmp_path, caplog, capfd):
    path = ct_series(phantom_hu(ENCODABLE), syntax=JPEG2000Lossless).write(tmp_path)[1]
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" + bytes(300)])
    dataset.save_as(path)
    with pytest.raises(InputError, match=f"{path.name} is a damaged .* or compressed as JPEG 2000"):
        load_volume(tmp_path)
    # pydicom would log the trace of each decoder that failed.
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_missing_plugin_is_named(tmp_path, monkeypatch):
    ct_series(syntax=JPEGLSLossless).write(tmp_path)
    decoder = get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pyjpegls": ("numpy", "pyjpegls>=1.2")})
    with pytest.raises(DependencyError, match=r"JPEG-LS Lossless.*pyjpegls"):
        load_volume(tmp_path)


def test_unknown_compression_is_refused(tmp_path):
    paths = ct_series(syntax=RLELossless).write(tmp_path)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
        dataset.save_as(path)
    with pytest.raises(InputError, match=r"MPEG2.*cannot be read"):
        load_volume(tmp_path)


def test_progress_never_goes_back_and_may_cancel(tmp_path):
    ct_series().write(tmp_path)
    calls = []
    load_volume(tmp_path, progress=lambda *call: calls.append(call))
    fractions = [done / total for done, total in calls]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1

    def cancel(done: int, _total: int) -> None:
        if done == 7:
            raise CancelledError("stop")

    with pytest.raises(CancelledError):
        load_volume(tmp_path, progress=cancel)


def test_agrees_with_gdcm(tmp_path):
    series = ct_series(slope=2, intercept=-3024.0, order=[3, 1, 0, 4, 2])
    series.write(tmp_path)
    volume = load_volume(tmp_path)
    image = itk_image(volume)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.hu)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing, rtol=1e-9)
    np.testing.assert_allclose(image.GetOrigin(), volume.origin, rtol=1e-9)


@pytest.mark.slow
def test_real_series_equals_gdcm_voxel_for_voxel(real_ct):
    volume = load_volume(real_ct / "dicom" / "LIDC-IDRI-0028")
    assert volume.shape == (141, 512, 512)
    np.testing.assert_allclose(volume.spacing, (0.664062, 0.664062, 2.5))
    assert volume.provenance.padding_hu == -3024
    # The scanner declares padding of stored -2000 but fills with -1024, that is -2048 HU.
    assert warning_names(volume) == ["values-below-air"]
    image = itk_image(volume)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), volume.hu)
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing)
    np.testing.assert_allclose(image.GetOrigin(), volume.origin)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), volume.direction)


@pytest.mark.slow
def test_real_series_is_chosen_by_uid(real_ct):
    folder = real_ct / "dicom" / "Lung_Dx-A0001"
    with pytest.raises(InputError, match="2 CT series"):
        load_volume(folder)
    uid = "1.3.6.1.4.1.14519.5.2.1.6655.2359.213534032021332276911485641315"
    volume = load_volume(folder, series=uid)
    assert volume.shape == (64, 512, 512)
    assert volume.spacing[2] == 5.0
    assert "thick-slices" in warning_names(volume)
    # The files named L hold kernel B, and the other way round.
    assert all("/L-1-" in file for file in volume.provenance.dicom_files)
