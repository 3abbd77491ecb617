"""Restoring: the original again, bit for bit, from the protected scan, its seal and the key, or nothing at all."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from dicom_factory import CTSeries, ct_series, phantom_hu, write_enhanced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import InputError, MITSGANError, OutputError
from MITSGANLib.files.dicom.private_block import get_entry, remove_entries, set_entry
from MITSGANLib.files.dicom.series import DicomSeries
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.key_files import Key, ScryptCost, generate_key, passphrase_key, write_key_file
from MITSGANLib.protection.diagnosis_blocking import DiagnosisBlocker
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.protection.presets import available_protectors
from MITSGANLib.protection.protector import Protector, load_protector, protect
from MITSGANLib.protection.tafim import TAFIM, TAFIMConfig
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep
from MITSGANLib.seal import sealing
from MITSGANLib.seal.file_original import StoredImage
from MITSGANLib.seal.sealing import restore, save_sealed
from MITSGANTrainingLib.archives.collection import load_settings
from MITSGANTrainingLib.commandline import main
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from scipy.spatial.transform import Rotation
from tree_data import contents, write_protector

KEY = Key(bytes(range(32)))
CHEAP = ScryptCost(2, 1, 1)
SPACING = (8.0, 8.0, 2.5)
STEP = ProcessingStep(PROTECTION, "a change for tests")
ROTATIONS = st.tuples(*[st.floats(-180, 180)] * 3).map(
    lambda angles: Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
)


def changed(volume: CTVolume, seed: int = 1, bound: int = 18) -> CTVolume:
    """A volume with any voxel moved by up to ``bound`` HU, within int16."""
    change = np.random.default_rng(seed).integers(-bound, bound, volume.shape, endpoint=True)
    return volume.with_hu(np.clip(volume.hu + change, -32768, 32767).astype(np.int16), STEP)


def sealed(source: Path, out: Path, key: Key = KEY, **options: object) -> CTVolume:
    """Protect and seal ``source`` into ``out``; the original volume."""
    original = load_volume(source)
    save_sealed(changed(original, **options), original, out, key, cost=CHEAP)
    return original


def same_files(originals: list[Path], restored: Path) -> bool:
    return [path.read_bytes() for path in originals] == [path.read_bytes() for path in sorted(restored.iterdir())]


def all_range(bits: int, signed: bool) -> np.ndarray:
    """Stored integers with those at the ends of the range among them."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    stored = phantom_hu((4, 12, 10)).astype(np.int64) + (0 if signed else 1024)
    stored[:, 0, :4] = low, high, low + 1, high - 1
    return np.clip(stored, low, high)


def overlay_in_high_bits(dataset: pydicom.Dataset, k: int) -> None:
    dataset.add_new((0x6000, 0x0100), "US", 1)
    dataset.add_new((0x6000, 0x0102), "US", 12)
    words = np.frombuffer(dataset.PixelData, "<u2") | np.uint16(0x1000 << k % 3)
    dataset.PixelData = words.tobytes()


def odd_things(dataset: pydicom.Dataset, k: int) -> None:
    dataset.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x10, "LO", f"theirs {k}")
    dataset.PixelData = dataset.PixelData + b"\x07\x00"
    dataset.add_new((0xFFFC, 0xFFFC), "OB", b"trailing")
    dataset.SmallestImagePixelValue = 3
    dataset["SmallestImagePixelValue"].VR = "US"


DICOM: dict[str, Callable[[], CTSeries]] = {
    "signed": ct_series,
    "ends of the range": lambda: CTSeries(all_range(16, True), intercept=0),
    "unsigned 16": lambda: CTSeries(all_range(16, False), signed=False),
    "unsigned 12": lambda: CTSeries(all_range(12, False), bits=12, signed=False),
    "signed 12": lambda: CTSeries(all_range(12, True), bits=12, intercept=0),
    "slope 2": lambda: CTSeries(all_range(12, False) // 2, bits=12, signed=False, slope=2),
    "slope 0.3": lambda: CTSeries(all_range(16, True), slope=0.3, intercept=-7.5),
    "slope -1": lambda: CTSeries(-phantom_hu((4, 12, 10)).astype(np.int32), slope=-1, intercept=0),
    "slope by slice": lambda: CTSeries(
        phantom_hu((4, 12, 10)).astype(np.int32) + 1024, slope=[1, 1.5, 0.5, 1], intercept=[-1024, -1000, -900, -1024]
    ),
    "padding": lambda: CTSeries(
        all_range(16, True), intercept=0, edit=lambda one, _: setattr(one, "PixelPaddingValue", -32768)
    ),
    "shuffled names": lambda: ct_series(order=[3, 0, 4, 1, 2]),
    "implicit": lambda: ct_series(syntax=ImplicitVRLittleEndian),
    "big endian": lambda: ct_series(syntax=ExplicitVRBigEndian),
    "overlay": lambda: CTSeries(all_range(12, False), bits=12, signed=False, edit=overlay_in_high_bits),
    "odd things": lambda: ct_series(edit=odd_things),
}
PACKED = {
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG-LS": JPEGLSLossless,
}


class TestDicom:
    @pytest.mark.parametrize("kind", DICOM)
    def test_every_byte_comes_back(self, tmp_path, kind):
        paths = DICOM[kind]().write(tmp_path / "in")
        original = sealed(tmp_path / "in", tmp_path / "out")
        assert (load_volume(tmp_path / "out").hu != original.hu).any()
        result = restore(tmp_path / "out", tmp_path / "back", KEY)
        assert same_files(paths, tmp_path / "back")
        assert (result.format, result.files, result.warnings) == ("dicom", len(paths), ())
        np.testing.assert_array_equal(load_volume(tmp_path / "back").hu, original.hu)

    @pytest.mark.parametrize("kind", PACKED)
    def test_packed_files_come_back_unpacked_with_pixels_and_headers(self, tmp_path, kind):
        paths = ct_series(phantom_hu((3, 40, 36)), signed=False, syntax=PACKED[kind]).write(tmp_path / "in")
        sealed(tmp_path / "in", tmp_path / "out")
        restore(tmp_path / "out", tmp_path / "back", KEY)
        for path, back in zip(paths, sorted((tmp_path / "back").iterdir()), strict=True):
            one, other = pydicom.dcmread(path), pydicom.dcmread(back)
            np.testing.assert_array_equal(other.pixel_array, one.pixel_array)
            assert other.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            del one["PixelData"], other["PixelData"]
            assert other == one

    def test_enhanced_with_frames_in_any_order(self, tmp_path):
        path = write_enhanced(tmp_path / "in" / "all", ct_series(), order=[2, 0, 4, 1, 3])
        original = sealed(tmp_path / "in", tmp_path / "out")
        restore(tmp_path / "out", tmp_path / "back", KEY)
        assert same_files([path], tmp_path / "back")
        np.testing.assert_array_equal(load_volume(tmp_path / "back").hu, original.hu)

    @pytest.mark.slow
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_storage_place_and_change(self, tmp_path_factory, data):
        tmp_path = tmp_path_factory.mktemp("any")
        bits, signed = data.draw(st.sampled_from([12, 13, 16])), data.draw(st.booleans())
        slope = data.draw(st.sampled_from([1, 2, 0.7, 1.37]))
        # Of unsigned integers, only an intercept makes air.
        intercept = data.draw(st.sampled_from([0, -1024, -1000.5] if signed else [-1024, -1000.5]))
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        body = (phantom_hu((3, 12, 10)) - intercept) / slope
        stored = np.clip(np.rint(body), low, high).astype(np.int64)
        stored[:, 0, :2] = low, high
        axes = data.draw(ROTATIONS)
        series = CTSeries(
            stored,
            spacing=data.draw(st.tuples(*[st.floats(0.3, 5.0)] * 3)),
            origin=data.draw(st.tuples(*[st.floats(-1500, 1500)] * 3)),
            orientation=(*axes[:, 0], *axes[:, 1]),
            slope=slope,
            intercept=intercept,
            bits=bits,
            signed=signed,
        )
        paths = series.write(tmp_path / "in")
        original = load_volume(tmp_path / "in")
        protected = changed(original, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([1, 18, 500, 40000])))
        save_sealed(protected, original, tmp_path / "out", KEY)
        restore(tmp_path / "out", tmp_path / "back", KEY)
        assert same_files(paths, tmp_path / "back")

    def test_the_protected_files_are_those_of_plain_protection(self, tmp_path):
        """But for the seal and what is new in each derived series."""
        ct_series().write(tmp_path / "in")
        original = load_volume(tmp_path / "in")
        save_volume(changed(original), tmp_path / "plain")
        save_sealed(changed(original), original, tmp_path / "sealed", KEY)
        for plain, other in zip(
            sorted((tmp_path / "plain").iterdir()), sorted((tmp_path / "sealed").iterdir()), strict=True
        ):
            one, two = pydicom.dcmread(plain), pydicom.dcmread(other)
            assert two.file_meta.MediaStorageSOPInstanceUID == two.SOPInstanceUID
            remove_entries(two)
            different = {element.keyword for element in one if element != two.get(element.tag)}
            assert different <= {
                *("SOPInstanceUID", "SeriesInstanceUID", "InstanceCreationTime", "SeriesTime", "ContentTime"),
                *("ContributingEquipmentSequence", "InstanceCreationDate", "SeriesDate", "ContentDate"),
            }

    def test_renamed_coerced_and_transcoded_files_still_restore(self, tmp_path):
        """What archives do: other UIDs, another patient identifier, other file names, lossless compression."""
        paths = ct_series().write(tmp_path / "in")
        sealed(tmp_path / "in", tmp_path / "out")
        (tmp_path / "archive").mkdir()
        series = pydicom.uid.generate_uid()
        for number, path in enumerate(sorted((tmp_path / "out").iterdir())):
            dataset = pydicom.dcmread(path)
            dataset.SeriesInstanceUID, dataset.PatientID = series, "43"
            dataset.compress(JPEGLSLossless)
            dataset.save_as(tmp_path / "archive" / f"{(number * 7) % 5}.bin", enforce_file_format=True)
        result = restore(tmp_path / "archive", tmp_path / "back", KEY)
        assert same_files(paths, tmp_path / "back")
        assert [warning.name for warning in result.warnings] == ["headers-changed"]
        assert "PatientID" in result.warnings[0].text
        assert "42" not in result.warnings[0].text

    @pytest.mark.slow
    def test_protected_twice_restores_twice(self, tmp_path):
        paths = ct_series().write(tmp_path / "in")
        sealed(tmp_path / "in", tmp_path / "once")
        other = passphrase_key("another passphrase")
        once = sorted((tmp_path / "once").iterdir())
        sealed(tmp_path / "once", tmp_path / "twice", other)
        restore(tmp_path / "twice", tmp_path / "back", other)
        assert same_files(once, tmp_path / "back")
        restore(tmp_path / "back", tmp_path / "first", KEY)
        assert same_files(paths, tmp_path / "first")

    def test_a_series_derived_without_a_key_carries_no_seal_of_its_source(self, tmp_path):
        ct_series().write(tmp_path / "in")
        sealed(tmp_path / "in", tmp_path / "out")
        save_volume(changed(load_volume(tmp_path / "out"), 2), tmp_path / "again")
        with pytest.raises(InputError, match="holds no seal"):
            restore(tmp_path / "again", tmp_path / "back", KEY)

    def test_original_gone_leaves_nothing(self, tmp_path):
        paths = ct_series().write(tmp_path / "in")
        original = load_volume(tmp_path / "in")
        paths[2].unlink()
        with pytest.raises(MITSGANError):
            save_sealed(changed(original), original, tmp_path / "out", KEY)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


class TestDicomRefusals:
    @pytest.fixture(scope="class")
    @classmethod
    def untouched(cls, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("untouched")
        ct_series().write(folder / "in")
        sealed(folder / "in", folder / "out")
        return folder

    @pytest.fixture
    def out(self, untouched, tmp_path) -> Path:
        return shutil.copytree(untouched, tmp_path, dirs_exist_ok=True) / "out"

    def refused(self, out: Path, words: str | None, key: Key = KEY) -> None:
        before = contents(out.parent)
        with pytest.raises(InputError, match=words):
            restore(out, out.parent / "back", key)
        assert contents(out.parent) == before
        assert not (out.parent / "back").exists()

    def test_wrong_key(self, out):
        self.refused(out, "not the one", generate_key())

    @pytest.mark.parametrize("where", ["first", "last"])
    def test_one_voxel_changed_by_one(self, out, where):
        path = sorted(out.iterdir())[0 if where == "first" else -1]
        dataset = pydicom.dcmread(path)
        pixels = bytearray(dataset.PixelData)
        pixels[2 * 55] ^= 1
        dataset.PixelData = bytes(pixels)
        dataset.save_as(path)
        self.refused(out, "changed since")

    @pytest.mark.parametrize(
        ("keyword", "value"),
        [("RescaleIntercept", "-1023"), ("PixelSpacing", ["0.8", "0.71"])],
    )
    def test_geometry_or_rescale_changed(self, out, keyword, value):
        for path in out.iterdir():
            dataset = pydicom.dcmread(path)
            setattr(dataset, keyword, value)
            dataset.save_as(path)
        self.refused(out, "changed since")

    def test_a_missing_file(self, out):
        (out / "IM0005.dcm").unlink()
        self.refused(out, "4 of the 5")

    def test_a_seal_removed_from_one_or_all(self, out):
        for number, path in enumerate(sorted(out.iterdir(), reverse=True)):
            dataset = pydicom.dcmread(path)
            remove_entries(dataset)
            dataset.save_as(path)
            if number == 0:
                self.refused(out, "IM0005.dcm holds no seal")
        self.refused(out, "out holds no seal")

    def test_slices_of_another_protection_of_the_same_scan(self, out):
        """Cut and paste between two sealed series, seals included."""
        sealed(out.parent / "in", out.parent / "other", seed=2)
        series = pydicom.dcmread(out / "IM0001.dcm").SeriesInstanceUID
        dataset = pydicom.dcmread(out.parent / "other" / "IM0003.dcm")
        dataset.SeriesInstanceUID = series
        dataset.save_as(out / "IM0003.dcm")
        shutil.rmtree(out.parent / "other")
        self.refused(out, "several")

    def test_the_seal_of_another_scan(self, out):
        sealed(out.parent / "in", out.parent / "other", seed=2)
        for path in out.iterdir():
            dataset = pydicom.dcmread(path)
            set_entry(dataset, "seal", get_entry(pydicom.dcmread(out.parent / "other" / path.name), "seal"))
            dataset.save_as(path)
        shutil.rmtree(out.parent / "other")
        self.refused(out, "changed since")

    @pytest.mark.slow
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_any_flipped_bit_of_a_share(self, out, data):
        path = data.draw(st.sampled_from(sorted(out.iterdir())))
        before = path.read_bytes()
        dataset = pydicom.dcmread(path)
        share = bytearray(get_entry(dataset, "seal"))
        bit = data.draw(st.integers(0, 8 * len(share) - 1))
        share[bit // 8] ^= 1 << bit % 8
        set_entry(dataset, "seal", bytes(share))
        dataset.save_as(path)
        try:
            self.refused(out, None)
        finally:
            path.write_bytes(before)

    def test_destinations(self, out):
        (out.parent / "mine").mkdir()
        (out.parent / "mine" / "letter.txt").touch()
        for destination, words in [
            (out.parent / "back.nrrd", "restored as DICOM"),
            (out, "protected scan itself"),
            (out / "within", "protected scan itself"),
            (out.parent, "protected scan itself"),
            (out.parent / "mine", "not DICOM"),
        ]:
            before = contents(out.parent)
            with pytest.raises(OutputError, match=words):
                restore(out, destination, KEY, overwrite=True)
            assert contents(out.parent) == before
        with pytest.raises(OutputError, match="already exists"):
            restore(out, out.parent / "in", KEY)

    def test_the_seal_of_a_file_is_not_for_dicom(self, out):
        with pytest.raises(InputError, match="leave the seal out"):
            restore(out, out.parent / "back", KEY, seal=out / "x.seal")


def volume(seed: int = 0) -> CTVolume:
    direction = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return CTVolume(phantom_hu((4, 20, 18), seed), SPACING, (-70.5, 3.25, 1e3 / 3), direction)


class TestFiles:
    @pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd", ".NRRD", ".NII.GZ"])
    def test_values_geometry_and_history_come_back(self, tmp_path, suffix):
        source = tmp_path / f"in{suffix}"
        save_volume(volume(), source)
        original = sealed(source, tmp_path / f"out{suffix}")
        assert (tmp_path / f"out{suffix}.seal").is_file()
        result = restore(tmp_path / f"out{suffix}", tmp_path / f"back{suffix}", KEY)
        back = load_volume(tmp_path / f"back{suffix}")
        np.testing.assert_array_equal(back.hu, original.hu)
        assert (back.spacing, back.origin) == (original.spacing, original.origin)
        np.testing.assert_array_equal(back.direction, original.direction)
        assert back.provenance.steps == original.provenance.steps == ()
        assert result.files == 1

    @pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
    @pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
    def test_values_of_any_type(self, tmp_path, dtype, suffix):
        values = phantom_hu((4, 20, 18)).astype(np.float64)
        if dtype.startswith("float"):
            values += np.random.default_rng(1).uniform(-0.4, 0.4, values.shape)
            values[0, 0, :4] = -0.0, 40000.25, -1e5, 1e-30
        image = sitk.GetImageFromArray(values.astype(dtype))
        image.SetMetaData("note", "kept")
        path = tmp_path / f"in{suffix}"
        sitk.WriteImage(image, path)
        sealed(path, tmp_path / f"out{suffix}")
        restore(tmp_path / f"out{suffix}", tmp_path / f"back{suffix}", KEY)
        one, other = (StoredImage.read(tmp_path / f"{name}{suffix}") for name in ("in", "back"))
        assert other.values.dtype == one.values.dtype
        assert other.values.tobytes() == one.values.tobytes()
        assert {**other.metadata, "modified": ""} == {**one.metadata, "modified": ""}

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
    def test_header_text_that_is_no_utf8_comes_back_as_utf8(self, tmp_path, suffix, monkeypatch):
        """ITK's Python interface gives such bytes as surrogates and does not take them: the scan stayed protected."""
        path = tmp_path / f"in{suffix}"
        image = sitk.GetImageFromArray(phantom_hu((4, 20, 18)))
        image.SetMetaData("note", "Ruecken")
        sitk.WriteImage(image, path, useCompression=False)
        path.write_bytes(path.read_bytes().replace(b"Ruecken", b"R\xfccken"))
        original = sealed(path, tmp_path / f"out{suffix}")
        restore(tmp_path / f"out{suffix}", tmp_path / f"back{suffix}", KEY)
        assert StoredImage.read(tmp_path / f"back{suffix}").metadata["note"] == "R\xfccken"
        # Seals of earlier versions hold the surrogates.
        metadata = {**StoredImage.read(path).metadata, "note": "R\udcfccken"}
        monkeypatch.setattr(sealing.file_original, "read_metadata", lambda _: metadata)
        save_sealed(changed(original), original, tmp_path / f"early{suffix}", KEY, cost=CHEAP)
        monkeypatch.undo()
        restore(tmp_path / f"early{suffix}", tmp_path / f"again{suffix}", KEY)
        assert StoredImage.read(tmp_path / f"again{suffix}").metadata["note"] == "R\xfccken"

    @pytest.mark.slow
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 99), bound=st.sampled_from([0, 1, 18, 300, 65535]), ends=st.booleans())
    def test_any_change(self, tmp_path, seed, bound, ends):
        hu = phantom_hu((3, 12, 10), seed)
        if ends:
            hu[:, 0, :4] = -32768, 32767, -32767, 32766
        original = CTVolume(hu, SPACING)
        out, back = tmp_path / "out.nrrd", tmp_path / "back.nrrd"
        save_sealed(changed(original, seed, bound), original, out, KEY, overwrite=True)
        restore(out, back, KEY, overwrite=True)
        np.testing.assert_array_equal(load_volume(back).hu, hu)

    @pytest.mark.slow
    @settings(max_examples=20, deadline=None)
    @given(
        suffix=st.sampled_from([".nrrd", ".nii", ".nii.gz", ".mha"]),
        dtype=st.sampled_from(["int16", "int32", "int64", "float32", "float64"]),
        spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3),
        origin=st.tuples(*[st.floats(-1500, 1500)] * 3),
        axes=ROTATIONS,
        seed=st.integers(0, 99),
        bound=st.sampled_from([1, 18, 300, 65535]),
    )
    def test_any_type_and_place(self, tmp_path_factory, suffix, dtype, spacing, origin, axes, seed, bound):
        tmp_path = tmp_path_factory.mktemp("any")
        values = phantom_hu((3, 12, 10), seed).astype(dtype)
        if dtype.startswith("float"):
            values += np.random.default_rng(seed).uniform(-0.4, 0.4, values.shape).astype(dtype)
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(axes.ravel())
        sitk.WriteImage(image, tmp_path / f"in{suffix}")
        sealed(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", seed=seed, bound=bound)
        restore(tmp_path / f"out{suffix}", tmp_path / f"back{suffix}", KEY)
        one, other = (StoredImage.read(tmp_path / f"{name}{suffix}") for name in ("in", "back"))
        assert (other.values.dtype, other.values.tobytes()) == (one.values.dtype, one.values.tobytes())
        # What a format rounds when it is written (NIfTI keeps 32 bits) it may round once more.
        for name in ("spacing", "origin", "direction"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-6, atol=1e-5)

    def test_from_dicom_the_hu_come_back(self, tmp_path):
        ct_series().write(tmp_path / "in")
        original = sealed(tmp_path / "in", tmp_path / "out.nrrd")
        restore(tmp_path / "out.nrrd", tmp_path / "back.mha", KEY)
        np.testing.assert_array_equal(load_volume(tmp_path / "back.mha").hu, original.hu)

    def test_another_format_and_another_place_of_the_seal(self, tmp_path):
        """The protected file converted without loss, NIfTI's rounding of positions included."""
        save_volume(volume(), tmp_path / "in.nrrd")
        original = sealed(tmp_path / "in.nrrd", tmp_path / "out.nrrd")
        save_volume(load_volume(tmp_path / "out.nrrd"), tmp_path / "moved.nii.gz")
        restore(tmp_path / "moved.nii.gz", tmp_path / "back.nrrd", KEY, seal=tmp_path / "out.nrrd.seal")
        back = load_volume(tmp_path / "back.nrrd")
        np.testing.assert_array_equal(back.hu, original.hu)
        assert back.origin == original.origin

    def test_a_seal_that_is_there_stays(self, tmp_path):
        (tmp_path / "out.nrrd.seal").write_text("mine")
        with pytest.raises(OutputError, match=r"out\.nrrd\.seal already exists"):
            save_sealed(changed(volume()), volume(), tmp_path / "out.nrrd", KEY)
        assert contents(tmp_path) == {"out.nrrd.seal": b"mine"}

    def test_a_source_that_changed_meanwhile(self, tmp_path):
        save_volume(volume(), tmp_path / "in.nrrd")
        original = load_volume(tmp_path / "in.nrrd")
        save_volume(volume(1), tmp_path / "in.nrrd", overwrite=True)
        with pytest.raises(InputError, match="changed while"):
            save_sealed(changed(original), original, tmp_path / "out.nrrd", KEY)
        assert [path.name for path in tmp_path.iterdir()] == ["in.nrrd"]


class TestFileRefusals:
    @pytest.fixture
    def out(self, tmp_path) -> Path:
        save_sealed(changed(volume()), volume(), tmp_path / "out.nrrd", KEY)
        return tmp_path / "out.nrrd"

    def refused(self, out: Path, words: str | None, key: Key = KEY) -> None:
        before = contents(out.parent)
        with pytest.raises(InputError, match=words):
            restore(out, out.parent / "back.nrrd", key)
        assert contents(out.parent) == before

    def replace(self, out: Path, other: CTVolume) -> None:
        save_volume(other, out.with_name("other.nrrd"))
        out.with_name("other.nrrd").replace(out)

    def test_wrong_key(self, out):
        self.refused(out, "not the one", generate_key())
        self.refused(out, "sealed with a key file", passphrase_key("a passphrase"))

    def test_one_voxel_changed_by_one(self, out):
        protected = load_volume(out)
        hu = protected.hu.copy()
        hu[2, 3, 4] += 1
        self.replace(out, protected.with_hu(hu))
        self.refused(out, "changed since")

    def test_moved_by_a_voxel(self, out):
        self.replace(out, dataclasses.replace(load_volume(out), origin=(1, 2, 3)))
        self.refused(out, "changed since")

    def test_no_seal(self, out):
        out.with_name("out.nrrd.seal").unlink()
        self.refused(out, "name the file of the seal")

    @pytest.mark.slow
    def test_every_byte_of_a_seal(self, out, monkeypatch):
        """Flipped, in turn; the scan is read once, so that this takes seconds."""
        seal, protected = out.with_name("out.nrrd.seal"), load_volume(out)
        monkeypatch.setattr(sealing.volume_files, "read_file", lambda _: protected)
        data = seal.read_bytes()
        for place in (*range(400), *range(400, len(data), 97), len(data) - 1):
            flipped = bytearray(data)
            flipped[place] ^= 0x10
            seal.write_bytes(flipped)
            with pytest.raises(InputError):
                restore(out, out.parent / "back.nrrd", KEY)
        assert not (out.parent / "back.nrrd").exists()
        seal.write_bytes(data)
        restore(out, out.parent / "back.nrrd", KEY)

    def test_destinations(self, out):
        for destination, words in [
            (out.parent / "folder", "restored as one"),
            (out, "protected scan itself"),
        ]:
            with pytest.raises(OutputError, match=words):
                restore(out, destination, KEY, overwrite=True)
        (out.parent / "back.nrrd").write_text("mine")
        with pytest.raises(OutputError, match="already exists"):
            restore(out, out.parent / "back.nrrd", KEY)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_protector(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("strength", [18.0, 400.0])
@pytest.mark.parametrize("kind", ["residual", "image", "TAFIM"])
def test_every_kind_of_model(tmp_path, kind, strength):
    torch.manual_seed(5)
    if kind == "TAFIM":
        network = TAFIM(TAFIMConfig(base_filters=2, levels=2, tile=24))
    else:
        network = Generator(GeneratorConfig(trunk_filters=4, residual_blocks=1, output=kind, unshuffle=2))
    protector = Protector(kind, network.eval(), Budget(strength_hu=strength, soft_tissue=1.0), seed=7)
    paths = ct_series(phantom_hu((3, 40, 36)), spacing=SPACING).write(tmp_path / "in")
    original = load_volume(tmp_path / "in")
    protected = protect(original, model=protector, device="cpu")
    assert (protected.hu != original.hu).any()
    save_sealed(protected, original, tmp_path / "out", KEY)
    restore(tmp_path / "out", tmp_path / "back", KEY)
    assert same_files(paths, tmp_path / "back")


@pytest.mark.slow
@pytest.mark.parametrize("name", [card.name for card in available_protectors()])
def test_every_model_that_is_installed(tmp_path, phantom, name):
    """Voxels at the ends of the range among those that it sees."""
    stored = phantom.volume.hu[20:28].astype(np.int32)
    stored[:, 64, 40:48] = -1023, 3070, -1024, 3071, -32768, 32767, -950, 3069
    paths = CTSeries(stored, spacing=phantom.volume.spacing, intercept=0).write(tmp_path / "in")
    original = load_volume(tmp_path / "in")
    ready = load_protector(name)
    if isinstance(ready.proposer, DiagnosisBlocker):
        # One pass of its search changes voxels as well as forty do.
        once = dataclasses.replace(ready.proposer.config, passes=1)
        ready = dataclasses.replace(ready, proposer=dataclasses.replace(ready.proposer, config=once))
    protected = protect(original, model=ready, device="cpu")
    assert (protected.hu != original.hu).any()
    save_sealed(protected, original, tmp_path / "out", KEY)
    restore(tmp_path / "out", tmp_path / "back", KEY)
    assert same_files(paths, tmp_path / "back")


class TestCommands:
    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        ct_series(phantom_hu((3, 40, 36)), spacing=SPACING).write(tmp_path / "in" / "series")
        save_volume(CTVolume(phantom_hu((3, 40, 36)), SPACING), tmp_path / "in" / "scan.nrrd")
        assert main(["keygen", str(tmp_path / "key")]) == 0
        return tmp_path

    def test_protect_and_restore_dicom(self, tree, model, capsys, caplog):
        arguments = [str(tree / "in" / "series"), str(tree / "out"), "--model", model, "--key", str(tree / "key")]
        with caplog.at_level(logging.DEBUG):
            assert main(["protect", *arguments, "--verbose", "--json", str(tree / "protect.json")]) == 0
            assert (
                main(["restore", str(tree / "out"), str(tree / "back"), "--key", str(tree / "key"), "--json", "-"]) == 0
            )
        assert same_files(sorted((tree / "in" / "series").iterdir()), tree / "back")
        assert json.loads((tree / "protect.json").read_text())["sealed"] is True
        secret = (tree / "key").read_text().split()[1]
        captured = capsys.readouterr()
        written = b"".join(data for name, data in contents(tree).items() if name != "key")
        assert secret not in captured.out + captured.err + caplog.text
        assert secret.encode() not in written

    @pytest.mark.slow
    def test_passphrase_from_environment_descriptor_and_prompt(self, tree, model, monkeypatch, capsys):
        monkeypatch.setenv("SCAN_SECRET", "correct horse battery")
        scan, out = str(tree / "in" / "scan.nrrd"), str(tree / "out.nrrd")
        assert main(["protect", scan, out, "--model", model, "--passphrase-env", "SCAN_SECRET"]) == 0
        reading, writing = os.pipe()
        os.write(writing, b"correct horse battery\n")
        os.close(writing)
        assert main(["restore", out, str(tree / "one.nrrd"), "--passphrase-fd", str(reading)]) == 0
        os.close(reading)
        monkeypatch.setattr("getpass.getpass", lambda _: "correct horse battery")
        assert main(["restore", out, str(tree / "two.nrrd"), "--passphrase"]) == 0
        monkeypatch.setattr("getpass.getpass", lambda _: "another passphrase")
        assert main(["restore", out, str(tree / "three.nrrd"), "--passphrase"]) == 3
        assert not (tree / "three.nrrd").exists()
        for name in ("one", "two"):
            np.testing.assert_array_equal(load_volume(tree / f"{name}.nrrd").hu, load_volume(scan).hu)
        assert "horse" not in "".join(capsys.readouterr())

    def test_passphrases_are_asked_for_twice_when_sealing(self, tree, model, monkeypatch, capsys):
        answers = iter(["correct horse", "correct hose"])
        monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
        scan = str(tree / "in" / "scan.nrrd")
        assert main(["protect", scan, str(tree / "out.nrrd"), "--model", model, "--passphrase"]) == 3
        assert "differ" in capsys.readouterr().err
        assert not (tree / "out.nrrd").exists()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--key", "none"], "cannot be read"),
            (["--passphrase-env", "NOT_SET_ANYWHERE"], "not set"),
            (["--passphrase-fd", "987"], "--passphrase-fd"),
        ],
    )
    def test_keys_that_are_not_there(self, tree, capsys, arguments, words):
        assert main(["restore", str(tree / "in" / "scan.nrrd"), str(tree / "out.nrrd"), *arguments]) == 3
        assert words in capsys.readouterr().err

    def test_restore_needs_a_key_and_a_seal(self, tree, capsys):
        with pytest.raises(SystemExit):
            main(["restore", "x", "y"])
        scan = str(tree / "in" / "scan.nrrd")
        assert main(["restore", scan, str(tree / "out.nrrd"), "--key", str(tree / "key")]) == 3
        assert "protected without a key" in capsys.readouterr().err

    def test_a_key_file_that_others_may_read_is_mentioned(self, tree, capsys):
        (tree / "key").chmod(0o644)
        main(["restore", str(tree / "in" / "scan.nrrd"), str(tree / "out.nrrd"), "--key", str(tree / "key")])
        assert "chmod 600" in capsys.readouterr().err

    def test_keygen_keeps_what_is_there(self, tree, capsys):
        before = (tree / "key").read_bytes()
        capsys.readouterr()
        assert main(["keygen", str(tree / "key")]) == 4
        assert capsys.readouterr().err.endswith("already exists; choose another name.\n")
        assert (tree / "key").read_bytes() == before
        with pytest.raises(SystemExit):
            main(["keygen", str(tree / "other"), "--passphrase"])

    def test_keygen_makes_signing_keys(self, tree):
        assert main(["keygen", str(tree / "sign.pem"), "--signing"]) == 0
        assert "PRIVATE KEY" in (tree / "sign.pem").read_text()
        assert "PUBLIC KEY" in (tree / "sign.pub.pem").read_text()


class TestCollections:
    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        ct_series(phantom_hu((3, 40, 36)), spacing=SPACING).write(tmp_path / "in" / "a" / "series")
        for name in ("scan.nrrd", "detached.mhd"):
            save_volume(CTVolume(phantom_hu((3, 40, 36), 1), SPACING), tmp_path / "in" / name)
        write_key_file(KEY, tmp_path / "key")
        return tmp_path

    def run(self, tree: Path, model: str, *more: str) -> int:
        return main(["protect", str(tree / "in"), str(tree / "out"), "--collection", "--model", model, *more])

    @pytest.mark.slow
    def test_sealed_and_restored(self, tree, model, capsys):
        assert self.run(tree, model, "--key", str(tree / "key")) == 0
        restore(tree / "out" / "a" / "series", tree / "back", KEY)
        assert same_files(sorted((tree / "in" / "a" / "series").iterdir()), tree / "back")
        for name in ("scan.nrrd", "detached.mhd"):
            restore(tree / "out" / name, tree / f"back-{name}", KEY)
            np.testing.assert_array_equal(load_volume(tree / f"back-{name}").hu, load_volume(tree / "in" / name).hu)
        capsys.readouterr()
        assert self.run(tree, model, "--key", str(tree / "key")) == 0
        assert "3 of them by an earlier run" in capsys.readouterr().out
        assert (tree / "key").read_text().split()[1].encode() not in b"".join(contents(tree / "out").values())

    @pytest.mark.slow
    def test_another_key_or_none_does_it_again(self, tree, model):
        shutil.rmtree(tree / "in" / "a")
        assert self.run(tree, model) == 0
        assert not list((tree / "out").rglob("*.seal"))
        assert self.run(tree, model, "--key", str(tree / "key")) == 0
        first = (tree / "out" / "scan.nrrd.seal").read_bytes()
        write_key_file(generate_key(), tree / "other")
        assert self.run(tree, model, "--key", str(tree / "other")) == 0
        assert (tree / "out" / "scan.nrrd.seal").read_bytes() != first
        assert self.run(tree, model) == 0
        assert not list((tree / "out").rglob("*.seal"))

    @pytest.mark.slow
    def test_processes_get_the_passphrase(self, tree, monkeypatch):
        monkeypatch.setenv("SCAN_SECRET", "correct horse battery")
        assert self.run(tree, "none", "--processes", "2", "--passphrase-env", "SCAN_SECRET") == 0
        restore(tree / "out" / "scan.nrrd", tree / "back.nrrd", passphrase_key("correct horse battery"))
        assert b"horse" not in b"".join(contents(tree / "out").values())

    def test_a_passphrase_never_goes_to_a_scheduler(self, tree, model, monkeypatch, capsys):
        monkeypatch.setenv("SCAN_SECRET", "correct horse battery")
        assert self.run(tree, model, "--scheduler", "tcp://127.0.0.1:1", "--passphrase-env", "SCAN_SECRET") == 3
        assert "key file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("proposed", ["-xe", "-xi", "-xb"])
def test_through_an_archive(tmp_path, proposed):
    """DCMTK's storescu sends a sealed series to storescp on loopback, in three transfer syntaxes."""
    if not shutil.which("storescp") or not shutil.which("storescu"):
        pytest.skip("storescp and storescu are not installed (Debian package dcmtk)")
    paths = ct_series().write(tmp_path / "in")
    sealed(tmp_path / "in", tmp_path / "out")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "archive").mkdir()
    with subprocess.Popen(["storescp", "-od", tmp_path / "archive", port], stderr=subprocess.DEVNULL) as server:
        try:
            send = ["storescu", proposed, "+sd", "127.0.0.1", port, tmp_path / "out"]
            for _ in range(100):  # the server takes a moment to listen
                if not subprocess.run(send, capture_output=True, check=False).returncode:
                    break
                time.sleep(0.1)
        finally:
            server.terminate()
    restore(tmp_path / "archive", tmp_path / "back", KEY)
    assert same_files(paths, tmp_path / "back")


@pytest.mark.parametrize("number", ["-1", "99999999999999", "x", "\u0663"])
def test_a_file_descriptor_is_a_number_that_can_be_one(tmp_path, capsys, number):
    with pytest.raises(SystemExit) as stopped:
        main(["restore", str(tmp_path), str(tmp_path / "out"), f"--passphrase-fd={number}"])
    assert stopped.value.code == 2
    assert "no number of a file descriptor" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "limit"),
    [
        ("default", 0.15),
        ("with a watermark's key", 0.15),
        ("block-ai", 0.15),
        # Of whole scans 10 to 14 %: these slices are those with most lung.
        ("strong", 0.2),
    ],
)
def test_the_size_of_a_seal_on_a_real_scan(real_ct, tmp_path, preset, limit):
    """As a share of the slices in JPEG-LS. The preset paper, which is there for comparison, takes far more."""
    from MITSGANLib.files.dicom.read import read_series
    from MITSGANLib.files.dicom.series import choose_series, scan_dicom

    series = choose_series(scan_dicom(real_ct / "dicom" / "LIDC-IDRI-0028"))
    upwards = sorted(series.headers, key=lambda header: float(header.dataset.ImagePositionPatient[2]))
    # A search takes seconds a slice.
    middle = upwards[63:65] if preset == "block-ai" else upwards[60:68]
    original = read_series(DicomSeries(series.uid, tuple(middle)))
    with_key = preset == "with a watermark's key"
    write_key_file(KEY, tmp_path / "key")
    watermark = tmp_path / "key" if with_key else None
    protector, _settings = load_settings("default" if with_key else preset, watermark=watermark)
    protected = protect(original, model=protector, device="cpu")
    known = protector.watermark and protector.watermark.key
    save_sealed(protected, original, tmp_path / "out", KEY, watermark=known)
    compressed = 0
    for path in original.provenance.dicom_files:
        dataset = pydicom.dcmread(path)
        dataset.compress(JPEGLSLossless)
        compressed += len(dataset.PixelData)
    sizes = [len(get_entry(pydicom.dcmread(path), "seal")) for path in (tmp_path / "out").iterdir()]
    assert sum(sizes) < limit * compressed
    restore(tmp_path / "out", tmp_path / "back", KEY)
    assert same_files([Path(path) for path in original.provenance.dicom_files], tmp_path / "back")
