"""The fidelity verdict: each figure against its plain definition, worst slices, largest scale, flicker, the command."""

from __future__ import annotations

import dataclasses
import json

import dicom_factory
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.budget.body import body_mask
from MITSGANLib.budget.budget import Budget
from MITSGANLib.budget.noise import local_noise
from MITSGANLib.errors import InputError
from MITSGANLib.files.volume_files import write_file
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.protection.protector import Protector, protect
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.evaluation.fidelity import (
    WINDOWS,
    jpeg2000,
    largest_scale,
    measure_fidelity,
    z_difference_ratio,
)
from skimage.metrics import structural_similarity


@pytest.fixture(scope="module")
def scan():
    return thorax_phantom((8, 96, 96), spacing_kji=(2.5, 3.7, 3.7), noise_hu=16, seed=2).volume


@pytest.fixture(scope="module")
def body(scan):
    return body_mask(scan.hu, None, scan.spacing_kji)


def changed(scan, change):
    """The scan with a change in whole HU."""
    return scan.with_hu(np.add(scan.hu, change).astype(np.int16))


@pytest.fixture(scope="module")
def change(body):
    """Fair noise of about 2 HU in the body, three times as strong in slice 5."""
    noise = np.random.default_rng(0).normal(0, 2, body.shape) * body
    noise[5] *= 3
    return np.rint(noise).astype(np.int16)


@pytest.fixture(scope="module")
def verdict(scan, change):
    return measure_fidelity(scan, changed(scan, change))


class TestFigures:
    def test_rmse_psnr_and_largest_change_are_of_the_worst_slice(self, verdict, change, body):
        rmse = np.sqrt(np.mean(change[5][body[5]].astype(float) ** 2))
        assert verdict["rmse"].value == pytest.approx(rmse)
        assert verdict["psnr"].value == pytest.approx(20 * np.log10(4096 / rmse))
        assert verdict["max_change"].value == np.abs(change[5]).max()
        assert {verdict[name].worst_slice for name in ("rmse", "psnr", "max_change")} == {5}
        assert len(verdict["rmse"].per_slice) == 8

    def test_noise_ratio_and_mean_change_are_those_of_the_region(self, verdict, scan, change, body):
        lung = body[5] & (scan.hu[5] >= -960) & (scan.hu[5] < -500)
        noise = local_noise(scan.hu[5:6], scan.spacing_kji).at()[0]
        assert verdict["noise_ratio_lung"].value == pytest.approx(
            np.sqrt(np.mean((change[5][lung] / noise[lung]) ** 2))
        )
        assert verdict["noise_ratio_lung"].value == pytest.approx(6 / 16, rel=0.25)
        assert verdict["mean_change_lung"].per_slice[5] == pytest.approx(abs(change[5][lung].mean()))

    @pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.name)
    def test_local_ssim_is_scikit_image_s_lowest_voxel(self, verdict, scan, change, window):
        pictures = (window.scaled(hu) for hu in (scan.hu[5], scan.hu[5] + change[5]))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        local = structural_similarity(*pictures, data_range=1.0, **options)[1][5:-5, 5:-5]
        assert verdict[f"ssim_{window.name}"].per_slice[5] == pytest.approx(local.min(), abs=1e-5)
        assert local.min() < verdict[f"ssim_tile_{window.name}"].per_slice[5] < local.mean()

    def test_jpeg2000_against_itself_is_1(self, scan):
        compressed = scan.with_hu(np.stack([jpeg2000(plane, 5.0) for plane in scan.hu]))
        verdict = measure_fidelity(scan, compressed)
        for name in ("jpeg2000_rmse", "jpeg2000_ssim_lung", "jpeg2000_ssim_mediastinum"):
            assert verdict[name].per_slice == pytest.approx([1.0] * 8)

    def test_a_shift_is_no_noise(self, scan, body):
        verdict = measure_fidelity(scan, changed(scan, np.where(body, 2, 0)))
        for name in ("lung", "soft_tissue"):
            assert verdict[f"mean_change_{name}"].value == 2
            assert verdict[f"mean_change_{name}"].passed is False
        assert verdict["rmse"].passed is True
        assert not verdict.passed

    def test_nothing_changed_passes(self, scan):
        verdict = measure_fidelity(scan, scan)
        assert verdict.passed
        assert verdict["rmse"].value == verdict["max_change"].value == 0
        assert verdict["ssim_lung"].value == 1
        for name in ("psnr", "flicker", "jpeg2000_rmse"):
            assert verdict[name].value is None
            assert verdict[name].reason

    def test_is_json_with_a_definition_for_each_figure(self, verdict):
        read = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
        assert read["figures"]["rmse"]["limit"] == 8
        assert read["figures"]["rmse"]["passed"] is True
        assert all(figure["definition"] for figure in read["figures"].values())

    def test_another_geometry_is_refused(self, scan):
        with pytest.raises(InputError, match="differ"):
            measure_fidelity(scan, dataclasses.replace(scan, spacing=(1.0, 1.0, 1.0)))


class TestJpeg2000:
    def test_is_as_small_as_asked_for_and_closer_where_it_may_be_larger(self, scan):
        rmse = [
            np.sqrt(np.mean(np.subtract(jpeg2000(scan.hu[0], ratio), scan.hu[0], dtype=float) ** 2))
            for ratio in (2.5, 5.0, 10.0)
        ]
        assert 0 < rmse[0] < rmse[1] < rmse[2] < 40

    @pytest.mark.parametrize("shape", [(1, 1), (3, 40), (33, 17)])
    def test_takes_small_slices_and_padding(self, shape):
        plane = np.random.default_rng(0).integers(-3024, 4000, shape).astype(np.int16)
        compressed = jpeg2000(plane, 5.0)
        assert compressed.shape == shape
        assert compressed.dtype == np.int16
        assert compressed.min() >= -1024


class TestLargestScale:
    @pytest.mark.slow
    def test_keeps_all_limits_and_a_little_more_does_not(self, scan, change):
        change = change.astype(np.float64)
        found = largest_scale(scan, change)
        assert (found.figure, found.slice) == ("ssim_mediastinum", 5)
        at, above = (
            measure_fidelity(scan, changed(scan, np.rint(factor * found.scale * change))) for factor in (1.0, 1.08)
        )
        assert {figure.name for figure in at.figures if figure.passed is False} <= {"flicker"}
        assert above[found.figure].passed is False

    def test_is_the_highest_where_nothing_forbids_it_and_0_where_all_does(self, scan, change):
        assert largest_scale(scan, change * 0).scale == 4
        assert largest_scale(scan, change * 0 + 1000).scale == pytest.approx(0, abs=0.01)

    def test_refuses_another_shape_and_nan(self, scan):
        for wrong in (np.zeros((8, 96, 95)), np.full(scan.shape, np.nan)):
            with pytest.raises(InputError, match="shape"):
                largest_scale(scan, wrong)


class TestFlicker:
    """Slice-to-slice behavior of the change (issue: it must not flicker in coronal and sagittal views)."""

    @pytest.mark.parametrize(("kind", "ratio"), [("same", 0.0), ("independent", 2.0), ("alternating", 4.0)])
    def test_z_difference_ratio_of_what_is_known(self, scan, kind, ratio):
        random = np.random.default_rng(1).integers(-4, 5, scan.shape)
        change = {
            "same": np.broadcast_to(random[:1], scan.shape),
            "independent": random,
            "alternating": random[:1] * np.array([1, -1] * 4)[:, None, None],
        }[kind]
        value, by_pair = z_difference_ratio(scan, changed(scan, change))
        assert value == pytest.approx(ratio, abs=0.06)
        assert len(by_pair) == 7

    @settings(deadline=None, max_examples=15)
    @given(st.floats(-0.9, 0.9), st.integers(0, 2**16))
    def test_z_difference_ratio_follows_the_correlation(self, scan, correlation, seed):
        rng = np.random.default_rng(seed)
        slices = [rng.normal(0, 20, scan.shape[1:])]
        for _ in range(7):
            new = rng.normal(0, 20, scan.shape[1:])
            slices.append(correlation * slices[-1] + np.sqrt(1 - correlation**2) * new)
        value, _ = z_difference_ratio(scan, changed(scan, np.rint(slices)))
        assert value == pytest.approx(2 * (1 - correlation), abs=0.12)

    @pytest.mark.slow
    def test_verdict_sets_it_beside_the_scan_s_own_noise(self):
        scan = thorax_phantom((8, 160, 160), noise_hu=16, seed=2).volume
        body = body_mask(scan.hu, None, scan.spacing_kji)
        rng = np.random.default_rng(0)
        calm = np.rint(np.broadcast_to(rng.normal(0, 3, scan.shape[1:]), scan.shape)) * body
        restless = calm * np.array([1, -1] * 4)[:, None, None]
        for change, passed in ((calm, True), (restless, False)):
            verdict = measure_fidelity(scan, changed(scan, change))
            assert verdict.flicker.noise == pytest.approx(2.0, abs=0.15)  # the phantom's slices are independent
            assert verdict["flicker"].passed is passed

    def test_part_of_a_series_protected_alone_is_as_within_the_whole(self, scan):
        network = Generator(GeneratorConfig(trunk_filters=4, residual_blocks=1))
        protector = Protector("untrained", network, Budget(40.0, 1, 1, 1, noise_share=0.5))
        whole = protect(scan, model=protector, device="cpu", batch_size=1)
        part = protect(scan.with_hu(scan.hu), model=protector, device="cpu", batch_size=1)
        alone = protect(dataclasses.replace(scan, hu=scan.hu[3:6]), model=protector, device="cpu", batch_size=1)
        assert np.array_equal(part.hu, whole.hu)
        assert np.array_equal(alone.hu, whole.hu[3:6])
        assert not np.array_equal(whole.hu, scan.hu)


@pytest.fixture(scope="module")
def files(scan, tmp_path_factory):
    """Two scans as files."""
    paths = [str(tmp_path_factory.mktemp("scans") / name) for name in ("scan0.nrrd", "scan1.nrrd")]
    for path, hu in zip(paths, (scan.hu[:3], scan.hu[4:6]), strict=True):
        write_file(dataclasses.replace(scan, hu=hu), path)
    return paths


class TestCommand:
    def test_prints_a_table_for_each_scan_and_for_all(self, files, tmp_path, capsys):
        record = tmp_path / "figures.json"
        assert main(["fidelity", *files, "--device", "cpu", "--json", str(record), "--largest"]) == 0
        text = capsys.readouterr().out
        assert text.count("noise_ratio_lung") == 3 + text.count("more would break noise_ratio_lung")
        assert "All 2 scans" in text
        written = json.loads(record.read_text())
        assert [scan["scan"] for scan in written["scans"]] == files
        for scan in written["scans"]:
            assert scan["figures"]["max_change"]["value"] <= written["budget"]["strength_hu"]
            assert 0 <= scan["largest_scale"]["scale"] <= 4
        assert written["passed"] == all(scan["passed"] for scan in written["scans"])

    def test_stronger_is_worse(self, files, capsys):
        rmse = []
        for strength in ("4", "40"):
            assert main(["fidelity", files[0], "--device", "cpu", "--strength-hu", strength, "--json", "-"]) == 0
            (scan,) = json.loads(capsys.readouterr().out)["scans"]
            rmse.append(scan["figures"]["rmse"]["value"])
        assert 0 < rmse[0] < rmse[1]

    def test_of_many_scans_what_cannot_be_used_is_named(self, files, tmp_path, capsys):
        broken = tmp_path / "broken.nrrd"
        broken.write_text("no scan")
        assert main(["fidelity", str(broken), files[0], "--device", "cpu", "--json", "-"]) == 3
        out, err = capsys.readouterr()
        assert list(json.loads(out)["failed"]) == [str(broken)]
        assert str(broken) in err
        assert main(["fidelity", str(broken), "--device", "cpu"]) == 3

    def test_one_of_several_series_is_chosen(self, scan, tmp_path, capsys):
        for k in range(2):
            series = dicom_factory.ct_series(scan.hu[2 * k : 2 * k + 2], uid=f"1.2.3.{k}", prefix=f"series{k}-")
            series.write(tmp_path / "scan")
        command = ["fidelity", str(tmp_path / "scan"), "--device", "cpu", "--json", "-"]
        assert main(command) == 3
        assert "--series UID" in capsys.readouterr().err
        assert main([*command, "--series", "1.2.3.1", "1.2.3.4"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["scans"]
        assert len(found["figures"]["rmse"]["per_slice"]) == 2
