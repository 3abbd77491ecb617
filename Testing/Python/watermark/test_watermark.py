"""The keyed watermark: bounded, bound to key, place and content; what is painted over it shows, and nothing else."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from MITSGANLib.budget.budget import WATERMARK_BUDGET, Budget, allowed_in_slices
from MITSGANLib.errors import CancelledError, InputError, OutputError, TargetError
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.key_files import Key, passphrase_key, write_key_file
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.targets import Target
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep, Provenance
from MITSGANLib.watermark.checking import (
    ALTERED,
    MARKED,
    UNKNOWN,
    Check,
    MissingRegion,
    Place,
    check_place,
    check_watermark,
)
from MITSGANLib.watermark.embedding import recorded_watermark
from MITSGANLib.watermark.pattern import (
    LAYER_MM,
    OPEN_KEY,
    TILE,
    UNCHECKERED,
    VERSION,
    Grid,
    GridSecret,
    ScanSigns,
    SlicePlace,
    block_sums,
    grid_secret,
    keystream,
    keystream_of_tiles,
    layers,
    of_signs,
    products_of_tiles,
    signs,
    signs_of_tiles,
    tile_levels,
    watermark_key,
)
from MITSGANLib.watermark.whitening import whitening_kernel
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.commands.check import exit_code
from MITSGANTrainingLib.evaluation.fidelity import jpeg2000
from scipy import ndimage

KEY = watermark_key(Key(bytes(range(32))))
OTHER = watermark_key(Key(bytes(32)))
SPACING = (2.5, 0.9, 0.9)

pytestmark = pytest.mark.usefixtures("on_its_grid")


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    """The right half of a thorax with a scanner's noise."""
    whole = thorax_phantom(shape=(16, 340, 404), spacing_kji=SPACING, seed=5, noise_hu=0).volume
    volume = dataclasses.replace(whole, hu=whole.hu[:, 50:250, :200])
    noisy = np.clip(volume.hu + scanner_noise(volume.shape, 1), -1023, 3000)
    hu = np.where(volume.hu > -1000, noisy, volume.hu)
    return dataclasses.replace(volume, hu=np.rint(hu).astype(np.int16), origin=(-170.3, -150.1, 40.5))


@pytest.fixture(scope="module")
def marked(scan) -> CTVolume:
    return protect(scan, model=watermark_alone(KEY))


@pytest.fixture(scope="module")
def intact(marked) -> Check:
    return check_watermark(marked, KEY)


@pytest.fixture(scope="module")
def lung() -> tuple[int, int, int]:
    """A voxel in the middle of the lung."""
    return 8, 96, 113


def with_box(volume: CTVolume, kji: tuple[int, int, int], size_mm: float, values) -> CTVolume:
    """The scan with ``values(box of its voxels)`` in a cube around a voxel."""
    half = [max(1, round(size_mm / 2 / step)) for step in volume.spacing_kji]
    box = tuple(slice(index - n, index + n) for index, n in zip(kji, half, strict=True))
    hu = volume.hu.copy()
    hu[box] = np.rint(values(hu[box])).astype(np.int16)
    return volume.with_hu(hu)


def scanner_noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Noise with a standard deviation of about 24 HU, of which neighboring voxels share a part."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 60, shape), (0, 0.7, 0.7))


def painted(volume: CTVolume, kji: tuple[int, int, int]) -> CTVolume:
    """24 mm of other noise around a voxel."""
    return with_box(volume, kji, 24, lambda part: part.mean() + scanner_noise(part.shape, 7))


class TestPattern:
    @given(st.binary(min_size=32, max_size=32), st.binary(max_size=60), st.floats(-200, 200), st.integers(-20, 60))
    @settings(max_examples=20, deadline=None)
    def test_signs_follow_key_place_layer_and_level_and_nothing_else(self, secret, plane, depth, level):
        def found(secret=secret, plane=plane, depth=depth, level=level):
            of_grid = grid_secret(watermark_key(Key(secret)), SlicePlace(plane, depth))
            return signs(of_grid, depth, np.full((3, 4), level), (25, 33))

        first = found()
        assert np.array_equal(first, found())
        assert set(np.unique(first[:24, :32])) == {-1, 1}
        assert not first[24:].any()
        assert not first[:, 32:].any()
        others = found(plane=plane + b"x"), found(depth=depth + 1), found(level=level + 1)
        for other in (*others, found(secret=bytes(32))):
            # 192 fair coins: 5 standard deviations are 0.36.
            assert secret == bytes(32) or abs(np.mean(first[:24, :32] * other[:24, :32])) < 0.36

    @given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40), st.binary(min_size=32, max_size=32))
    @settings(max_examples=30, deadline=None)
    def test_signs_of_a_tile_are_where_it_lies_in_the_keystream_of_its_level(self, levels, key):
        tiles = np.arange(len(levels))[::-1].copy()
        found = keystream_of_tiles(key, np.array(levels, np.int32), tiles)
        whole = [keystream(key, level, 8 * len(levels)) for level in levels]
        assert [row.tobytes() for row in found] == [of[8 * t : 8 * t + 8] for of, t in zip(whole, tiles, strict=True)]

    @given(st.binary(min_size=32, max_size=32), st.integers(-20, 60))
    @settings(max_examples=20, deadline=None)
    def test_four_voxels_share_a_sign_and_add_nothing_to_their_mean(self, secret, level):
        levels = np.full((3, 4), level)
        found = signs(GridSecret(secret), 0.0, levels, (25, 33))[:24, :32]
        cells = found.reshape(12, 2, 16, 2)
        assert not cells.sum(axis=(1, 3)).any()
        assert (cells[:, 0, :, 0] == cells[:, 1, :, 1]).all()
        assert not np.array_equal(found, signs(GridSecret(secret, UNCHECKERED), 0.0, levels, (24, 32)))

    @pytest.mark.slow
    @given(
        arrays(np.float32, (2, 19, 22), elements=st.floats(-8, 8, width=16)), st.sampled_from([VERSION, UNCHECKERED])
    )
    def test_what_voxels_come_to_is_the_same_sign_by_sign(self, products, version):
        shared = of_signs(products, version)
        inside = products if version == UNCHECKERED else products[:, :18]
        assert shared.sum() == pytest.approx(inside.sum(), abs=1e-3)
        assert np.count_nonzero(shared) <= (products.size if version == UNCHECKERED else 2 * 9 * 11)

    @given(arrays(np.float32, (3, 4, 8, 8), elements=st.floats(-8, 8, width=16)), st.binary(min_size=32, max_size=32))
    @settings(max_examples=20, deadline=None)
    def test_tiles_come_to_the_same_with_their_signs_as_voxel_by_voxel(self, products, secret):
        of_grid = GridSecret(secret)
        found = signs_of_tiles(of_grid, 0.0, np.zeros(12, int), np.arange(12), (3, 4))
        told = np.vdot(found, products_of_tiles(products, of_grid.version))
        assert told == pytest.approx(np.vdot(found, products.reshape(12, 64)), abs=1e-3)

    def test_a_tile_changes_its_signs_alone(self):
        levels = np.zeros((3, 4), int)
        before = signs(GridSecret(bytes(32)), 0.0, levels, (24, 32))
        levels[1, 2] = 1
        differs = before != signs(GridSecret(bytes(32)), 0.0, levels, (24, 32))
        assert differs[8:16, 16:24].any()
        differs[8:16, 16:24] = False
        assert not differs.any()

    def test_tiles_change_their_signs_one_after_the_other(self):
        """Over half a layer about half of the tiles change, over a whole one each does, once."""
        shape = (40, 40)
        at = [layers(GridSecret(bytes(32)), depth, shape) for depth in (3.2, 3.7, 4.2)]
        assert 0.4 < np.mean(at[1] != at[0]) < 0.6
        assert (at[2] - at[0] == 1).all()

    def test_what_a_scans_signs_depend_on_can_be_kept(self, scan):
        kept = ScanSigns.from_dict(json.loads(json.dumps(ScanSigns.of(scan, KEY).to_dict())))
        for k in (0, 7):
            turned = flipped(scan, (1, 2))
            mine, other = kept.of_slice(k, scan.hu[k]), ScanSigns.of(turned, KEY).of_slice(k, turned.hu[k])
            assert np.array_equal(mine, ScanSigns.of(scan, KEY).of_slice(k, scan.hu[k]))
            # Of scans whose edges are whole tiles the same signs lie at the same places.
            assert mine.shape == other.shape == scan.shape[1:]
        assert KEY.secret.hex() not in json.dumps(kept.to_dict())

    @pytest.mark.slow
    @given(arrays(np.int16, st.tuples(st.integers(8, 30), st.integers(8, 30)), elements=st.integers(-1024, 3071)))
    def test_blocks_hold_all_that_whole_tiles_hold(self, plane):
        rows, columns = (size // TILE * TILE for size in plane.shape)
        for edge in (1, 2, 4, 8):
            assert block_sums(plane, edge).sum() == plane[:rows, :columns].sum(dtype=np.int64)

    @given(st.floats(-900, 900), st.sampled_from([0.25, 0.5, 0.7999999680851063, 1.25, 2.5]), st.integers(0, 400))
    def test_the_rounding_of_files_keeps_the_place(self, origin, step, k):
        def grid(y: float) -> Grid:
            return Grid.of(CTVolume(np.zeros((1, 16, 16), np.int16), (0.7, 0.7, step), (-12.5, y, y)))

        place = grid(origin).place(k)
        for error in (-0.009, 0.0, 0.009):
            assert place.plane in {other.plane for other in grid(origin + error).places(k)}
            # Along the slices, rounding moves the limits of layers by less than a hundredth of one.
            assert abs(place.depth - grid(origin + error).place(k).depth) < 0.01
        assert grid(origin).place(k + 2).depth - place.depth == pytest.approx(2 * step / LAYER_MM)

    def test_levels_near_a_step_are_not_sure(self):
        for mean, sure in ((-864, True), (-832, False), (-828, False), (-820, True)):
            levels, unsure = tile_levels(np.full((8, 8), mean, np.int16))
            assert (not unsure[0, 0]) == sure, mean
            assert not sure or levels[0, 0] == mean // 64

    def test_a_passphrase_is_refused(self):
        with pytest.raises(InputError, match="key file"):
            watermark_key(passphrase_key("correct horse battery"))

    def test_no_secret_is_shown(self):
        assert repr(KEY) == "WatermarkKey(version=2)"


class TestEmbedding:
    @pytest.mark.slow
    @given(
        arrays(np.int16, (2, 40, 48), elements=st.integers(-1024, 3071)),
        st.floats(0, 60),
        st.sampled_from([None, 0.0, 0.1, 0.7]),
    )
    @settings(max_examples=25, deadline=None)
    def test_no_voxel_changes_by_more_than_is_allowed(self, hu, strength, share):
        volume = CTVolume(hu, (8.0, 8.0, 2.5))
        budget = Budget(strength, noise_share=share)
        marked = protect(volume, model=watermark_alone(KEY, budget))
        allowed = allowed_in_slices(hu, budget, volume.spacing_kji)
        assert (np.abs(marked.hu.astype(int) - hu) <= allowed).all()

    def test_changes_the_body_and_stays_below_its_noise(self, scan, marked):
        change = marked.hu.astype(int) - scan.hu
        assert 0.2 < np.mean(change != 0) < 0.9
        assert np.abs(change).max() <= WATERMARK_BUDGET.strength_hu
        assert abs(change.mean()) < 0.05
        assert marked.provenance.steps[-1].parameters["watermark"] == "keyed"
        assert protect(scan, model=watermark_alone(OPEN_KEY)).provenance.steps[-1].parameters["watermark"] == "open"

    def test_a_part_of_a_series_gets_what_the_whole_gets(self, scan, marked):
        part = dataclasses.replace(scan, hu=scan.hu[7:12], origin=tuple(scan.voxel_to_lps((7, 0, 0))))
        assert np.array_equal(protect(part, model=watermark_alone(KEY)).hu, marked.hu[7:12])

    @pytest.mark.slow
    @pytest.mark.parametrize("flips", [(0,), (1,), (2,), (0, 1, 2)])
    def test_files_that_store_the_axes_the_other_way_round_get_the_same_signs(self, scan, marked, flips):
        # How much is allowed depends on blocks that are counted from the first voxel, so only the signs are the same.
        turned = flipped(protect(flipped(scan, flips), model=watermark_alone(KEY)), flips)
        product = np.subtract(turned.hu, scan.hu, dtype=int) * np.subtract(marked.hu, scan.hu, dtype=int)
        assert (product >= 0).all()
        assert (product > 0).mean() > 0.2
        assert check_watermark(flipped(marked, flips), KEY).regions == ()

    @pytest.mark.slow
    def test_cancel(self, scan):
        with pytest.raises(CancelledError):
            protect(scan, model=watermark_alone(KEY), progress=cancel)
        with pytest.raises(CancelledError):
            check_watermark(scan, KEY, progress=cancel)


class TestCheck:
    def test_an_untouched_copy_has_it_everywhere(self, intact):
        assert intact.is_found
        assert not intact.is_degraded
        assert intact.sd > 50
        assert intact.gain == pytest.approx(1, abs=0.1)
        assert intact.regions == ()
        assert intact.telling_share > 0.2
        assert not (intact.classes == ALTERED).any()

    @pytest.mark.slow
    @pytest.mark.parametrize("which", ["unmarked", "another key"])
    def test_where_it_is_not_every_window_is_by_chance(self, scan, marked, which):
        check = check_watermark(scan, KEY) if which == "unmarked" else check_watermark(marked, OTHER)
        assert abs(check.sd) < 5
        assert not check.is_found
        assert check.regions == ()
        assert not check.classes.any()
        # The statement that thresholds rest on: mean 0, standard deviation 1, whatever the image.
        for seen in check.seen:
            values = seen[seen != 0]
            assert abs(values.mean()) < 0.25
            assert values.std() == pytest.approx(1, abs=0.15)

    @pytest.mark.slow
    def test_what_is_painted_shows_and_nothing_else(self, marked, intact, lung):
        check = check_watermark(painted(marked, lung), KEY)
        assert check.at(lung).is_missing
        assert not intact.at(lung).is_missing
        (region,) = check.regions
        off_mm = np.abs(np.subtract(region.kji, lung)) * marked.spacing_kji
        assert off_mm.max() < 8
        assert region.share < 0.3
        assert region.lps_mm == pytest.approx(tuple(marked.voxel_to_lps(region.kji)), abs=0.1)

    @pytest.mark.slow
    def test_a_smooth_nodule_that_keeps_every_voxels_noise_shows(self, marked, lung):
        def add(part: np.ndarray) -> np.ndarray:
            place = np.meshgrid(*(np.linspace(-1, 1, n) for n in part.shape), indexing="ij")
            return part + 700 * np.exp(-3 * sum(axis**2 for axis in place))

        assert check_watermark(with_box(marked, lung, 24, add), KEY).at(lung).is_missing

    @pytest.mark.slow
    def test_noise_that_drowns_it_is_told_as_such(self, marked, lung):
        rng = np.random.default_rng(3)
        check = check_watermark(with_box(marked, lung, 24, lambda part: part + rng.normal(0, 150, part.shape)), KEY)
        place = check.at(lung)
        assert not place.can_tell
        assert not place.is_missing
        assert "cannot be told" in place.words
        assert check.class_volume().hu[lung] == UNKNOWN

    @pytest.mark.slow
    def test_copied_lung_shows(self, marked, lung):
        k, j, i = lung
        copied = with_box(
            marked,
            lung,
            24,
            lambda part: np.roll(marked.hu, (0, TILE, 2 * TILE), (0, 1, 2))[
                tuple(slice(c - n // 2, c - n // 2 + n) for c, n in zip((k, j, i), part.shape, strict=True))
            ],
        )
        assert check_watermark(copied, KEY).at(lung).is_missing

    @pytest.mark.slow
    def test_a_slice_of_another_place_shows(self, marked):
        hu = marked.hu.copy()
        hu[4:10] = hu[4:10][::-1]
        check = check_watermark(marked.with_hu(hu), KEY)
        assert any(4 <= region.kji[0] < 10 for region in check.regions)

    @pytest.mark.slow
    @pytest.mark.parametrize("flips", [(1,), (0, 2)])
    def test_regions_are_where_they_are_however_axes_are_stored(self, marked, lung, flips):
        altered = painted(marked, lung)
        straight, turned = check_watermark(altered, KEY), check_watermark(flipped(altered, flips), KEY)
        assert turned.regions[0].lps_mm == pytest.approx(straight.regions[0].lps_mm, abs=6)
        found = flipped(turned.class_volume(), flips)
        assert np.mean(found.hu == straight.class_volume().hu) > 0.98

    @pytest.mark.slow
    def test_the_map_is_of_the_scans_geometry(self, marked, lung):
        check = check_watermark(painted(marked, lung), KEY)
        labels = check.class_volume()
        assert labels.same_geometry(marked)
        assert labels.hu[lung] == ALTERED
        assert (labels.hu == MARKED).mean() > 0.1

    @pytest.mark.slow
    def test_lossy_copies_are_told_as_such(self, marked):
        lossy = marked.with_hu(np.stack([jpeg2000(plane, 6) for plane in marked.hu]))
        check = check_watermark(lossy, KEY)
        assert check.is_found
        assert check.is_degraded
        assert check.regions == ()

    @pytest.mark.slow
    @pytest.mark.parametrize("strength_hu", [5.0, 30.0])
    def test_another_strength_is_no_loss_where_the_copy_says_so(self, scan, lung, strength_hu):
        marked = protect(scan, model=watermark_alone(KEY, WATERMARK_BUDGET.at_strength(strength_hu)))
        check = check_watermark(marked, KEY)
        assert check.gain == pytest.approx(1, abs=0.15)
        assert not check.is_degraded
        assert check.regions == ()
        assert not check.at(lung).is_missing
        nameless = dataclasses.replace(marked, provenance=Provenance())
        unsaid = check_watermark(nameless, KEY)
        assert (unsaid.gain > 2) if strength_hu > 10 else unsaid.is_degraded
        assert check_watermark(nameless, KEY, budget=WATERMARK_BUDGET.at_strength(strength_hu)).gain == check.gain

    @pytest.mark.parametrize("said", ["much", -1, 0, 1e9, float("nan"), None])
    def test_a_strength_that_cannot_be_is_not_believed(self, scan, said):
        step = ProcessingStep(PROTECTION, "", {"watermark_strength_hu": said})
        assert recorded_watermark(scan.with_hu(scan.hu, step)) is None

    @pytest.mark.slow
    def test_a_part_of_a_series_is_checked_as_the_whole(self, marked):
        part = dataclasses.replace(marked, hu=marked.hu[3:13], origin=tuple(marked.voxel_to_lps((3, 0, 0))))
        check = check_watermark(part, KEY)
        assert check.is_found
        assert check.regions == ()

    @pytest.mark.slow
    def test_a_place_is_told_from_the_slices_around_it(self, marked, lung):
        forged = painted(marked, lung)
        assert check_place(forged, lung, KEY).is_missing
        assert not check_place(marked, lung, KEY).is_missing
        assert check_place(marked, lung, KEY).kji == lung
        assert check_place(marked, lung, OTHER) is None
        with pytest.raises(TargetError, match="outside the scan"):
            check_place(marked, (99, 0, 0), KEY)

    def test_places_outside_the_scan_are_refused(self, intact):
        with pytest.raises(TargetError, match="outside"):
            intact.at((0, 0, 9999))

    def test_report(self, intact):
        found = json.loads(json.dumps(intact.to_dict()))
        assert found["found"] is True
        assert found["regions"] == []

    @pytest.mark.slow
    @given(arrays(np.int16, (2, 16, 24), elements=st.integers(-3024, 3071)))
    @settings(max_examples=15, deadline=None)
    def test_any_voxels_can_be_checked(self, hu):
        check = check_watermark(CTVolume(hu), KEY)
        assert np.isfinite(check.seen).all()
        assert np.isfinite(check.expected).all()

    def test_scans_smaller_than_a_tile_hold_none(self):
        small = CTVolume(np.full((2, 7, 40), 40, np.int16))
        assert np.array_equal(protect(small, model=watermark_alone(KEY)).hu, small.hu)
        check = check_watermark(small, KEY)
        assert not check.is_found
        with pytest.raises(TargetError, match="hold no watermark"):
            check.at((0, 3, 3))


def test_the_filter_takes_out_what_is_smooth():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(0, 100, (3, 64, 64)), (0, 1.2, 1.2)).astype(np.int16)
    kernel = whitening_kernel(smooth, np.ones(smooth.shape, bool))
    assert kernel.sum() == pytest.approx(0, abs=1e-9)
    assert kernel[2, 2] == 1
    left = ndimage.correlate(smooth[0].astype(float), kernel)
    assert left.std() < 0.3 * smooth[0].std()


class TestDemonstration:
    @pytest.mark.slow
    def test_says_where_the_forgery_shows(self, scan, lung, untrained_attackers, tmp_path, monkeypatch, capsys):
        attacker = untrained_attackers["remove"]
        monkeypatch.setattr("MITSGANLib.attack.attacker.load_attacker", lambda *_: attacker)
        monkeypatch.setattr(
            "MITSGANTrainingLib.commands.demo.choose_targets", lambda *_: (Target("remove", lung, "in the lung"),)
        )
        save_volume(scan, tmp_path / "scan.nrrd")
        words = ["demo", tmp_path / "scan.nrrd", tmp_path / "report", "--model", "none", "--device", "cpu"]
        assert main([str(word) for word in words]) == 0
        assert "the forgery shows at 1 of 1 attacked places; alarms there before: 0" in capsys.readouterr().out
        record = json.loads((tmp_path / "report" / "report.json").read_text())
        assert record["summary"]["watermark"] == {"places": 1, "missing_before": 0, "missing_after_attack": 1}
        assert record["targets"][0]["watermark"]["missing"] is True
        html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
        assert (
            "The watermark check shows the forgery at 1 of 1 attacked places, and raised no alarm there before" in html
        )


class TestCommand:
    @pytest.fixture(scope="class")
    @classmethod
    def files(cls, scan, tmp_path_factory):
        folder = tmp_path_factory.mktemp("watermark")
        save_volume(scan, folder / "scan.nrrd")
        write_key_file(Key(bytes(range(32))), folder / "clinic.key")
        write_key_file(Key(bytes(32)), folder / "other.key")
        words = ["protect", folder / "scan.nrrd", folder / "marked.nrrd", "--watermark", folder / "clinic.key"]
        assert main([str(word) for word in [*words, "--model", "none"]]) == 0
        assert main(["protect", str(folder / "scan.nrrd"), str(folder / "default.nrrd"), "--device", "cpu"]) == 0
        return folder

    def check(self, folder, name="marked.nrrd", key="clinic.key", *words):
        return main([str(word) for word in ("check", folder / name, "--watermark", folder / key, *words)])

    @pytest.mark.slow
    def test_marks_and_finds(self, files, marked, capsys):
        assert np.array_equal(load_volume(files / "marked.nrrd").hu, marked.hu)
        assert self.check(files) == 0
        assert "No place stands out" in capsys.readouterr().out

    @pytest.mark.slow
    def test_another_format_is_no_alarm(self, files):
        save_volume(load_volume(files / "marked.nrrd"), files / "marked.nii.gz")
        assert self.check(files, "marked.nii.gz") == 0

    @pytest.mark.slow
    def test_painting_is_found_and_mapped(self, files, lung, capsys):
        save_volume(painted(load_volume(files / "marked.nrrd"), lung), files / "painted.nrrd", overwrite=True)
        place = ",".join(map(str, lung))
        words = ("--map", files / "map.nrrd", "--overwrite", "--json", files / "found.json", "--voxel", place)
        assert self.check(files, "painted.nrrd", "clinic.key", *words) == 7
        said = capsys.readouterr().out
        assert "MISSING in 1 place" in said
        assert f"Voxel {lung}: watermark MISSING" in said
        assert sitk.GetArrayFromImage(sitk.ReadImage(files / "map.nrrd"))[lung] == ALTERED
        found = json.loads((files / "found.json").read_text())
        assert found["place"]["missing"] is True
        assert len(found["regions"]) == 1

    @pytest.mark.parametrize(
        ("regions", "is_degraded", "place", "code"),
        [
            (0, False, None, 0),
            (0, False, (5.0, 5.5), 0),
            (0, False, (1.0, 5.5), 7),
            (1, False, (5.0, 5.5), 7),
            (0, True, None, 8),
            (0, True, (5.0, 5.5), 0),
            (0, True, (1.0, 5.5), 7),
            (0, True, (1.0, 1.5), 8),
        ],
    )
    def test_the_exit_code_answers_for_the_place_asked_about(self, intact, regions, is_degraded, place, code):
        region = MissingRegion((0, 0, 0), (0.0, 0.0, 0.0), (9.0, 9.0, 9.0), 0.1)
        check = dataclasses.replace(intact, regions=(region,) * regions, gain=0.2 if is_degraded else 1.0)
        assert exit_code(check, place and Place((0, 0, 0), 9.0, *place)) == code

    def test_the_scan_is_not_replaced_by_its_map(self, files, capsys):
        before = (files / "marked.nrrd").read_bytes()
        assert self.check(files, "marked.nrrd", "clinic.key", "--map", files / "marked.nrrd", "--overwrite") == 4
        assert "the source itself" in capsys.readouterr().err
        assert (files / "marked.nrrd").read_bytes() == before

    def test_what_cannot_be_written_or_asked_is_said_before_the_check(self, files, capsys, monkeypatch):
        monkeypatch.delattr("MITSGANTrainingLib.commands.check.check_watermark")
        (files / "mine.nrrd").write_text("mine")
        assert self.check(files, "marked.nrrd", "clinic.key", "--map", files / "mine.nrrd") == 4
        assert self.check(files, "marked.nrrd", "clinic.key", "--voxel", "0,0,9999") == 3
        assert "outside the scan" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_full_disk_keeps_the_verdict_from_nobody(self, files, capsys, monkeypatch):
        def full(*_arguments, **_options):
            raise OutputError("no space left")

        monkeypatch.setattr("MITSGANTrainingLib.commands.check.write_file", full)
        assert self.check(files, "marked.nrrd", "clinic.key", "--map", files / "full.nrrd") == 4
        assert "No place stands out" in capsys.readouterr().out

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("suffix", "gain", "words_for_it"),
        [
            ("nrrd", 1, "as strong as it was made"),
            ("mha", 1, "as strong as it was made"),
            ("nii.gz", 3, "as strong as the default makes it"),
        ],
    )
    def test_strong_protection_is_checked_at_its_strength(self, files, capsys, suffix, gain, words_for_it):
        """NIfTI does not say how strong it was."""
        strong = files / f"strong.{suffix}"
        words = ["protect", files / "scan.nrrd", strong, "--watermark", files / "clinic.key", "--model", "none"]
        assert main([*map(str, words), "--strength-hu", "30"]) == 0
        assert self.check(files, strong.name, "clinic.key", "--json", files / "strong.json") == 0
        assert json.loads((files / "strong.json").read_text())["gain"] == pytest.approx(gain, rel=0.1)
        assert words_for_it in capsys.readouterr().out
        told = ("--model", "none", "--strength-hu", "30", "--json", files / "told.json")
        assert self.check(files, strong.name, "clinic.key", *told) == 0
        assert json.loads((files / "told.json").read_text())["gain"] == pytest.approx(1, abs=0.1)
        assert "as strong as it was made" in capsys.readouterr().out

    def test_a_protection_without_a_watermark_cannot_be_checked(self, files, capsys):
        assert main(["check", str(files / "marked.nrrd"), "--model", "mitsgan-small"]) == 3
        assert "leaves no watermark" in capsys.readouterr().err

    @pytest.mark.slow
    def test_another_key_finds_nothing(self, files, capsys):
        assert self.check(files, "marked.nrrd", "other.key") == 8
        assert "No watermark of this key" in capsys.readouterr().out

    @pytest.mark.slow
    def test_the_key_is_never_said(self, files, capsys, caplog):
        secret = (files / "clinic.key").read_text().split()[1]
        self.check(files, "marked.nrrd", "clinic.key", "--verbose", "--json", "-")
        captured = capsys.readouterr()
        assert secret not in captured.out + captured.err + caplog.text

    @pytest.mark.slow
    def test_the_default_carries_the_open_watermark(self, files, lung, capsys):
        assert main(["check", str(files / "default.nrrd")]) == 0
        assert self.check(files, "default.nrrd") == 8
        save_volume(painted(load_volume(files / "default.nrrd"), lung), files / "forged.nrrd", overwrite=True)
        assert main(["check", str(files / "forged.nrrd")]) == 7
        assert "MISSING in 1 place" in capsys.readouterr().out
        assert main(["check", str(files / "marked.nrrd")]) == 8
        assert "name it with --watermark" in capsys.readouterr().out

    @pytest.mark.slow
    def test_without_a_model_there_is_the_open_watermark_alone(self, files, scan):
        words = ["protect", str(files / "scan.nrrd"), str(files / "open.nrrd"), "--model", "none"]
        assert main(words) == 0
        assert np.array_equal(load_volume(files / "open.nrrd").hu, protect(scan, model=watermark_alone(OPEN_KEY)).hu)
        assert main([*words, "--strength-hu", "20", "--overwrite"]) == 0
        stronger = protect(scan, model=watermark_alone(OPEN_KEY, WATERMARK_BUDGET.at_strength(20)))
        assert np.array_equal(load_volume(files / "open.nrrd").hu, stronger.hu)

    @pytest.mark.slow
    def test_a_key_takes_the_place_of_the_open_one(self, files, scan):
        words = ["protect", files / "scan.nrrd", files / "both.nrrd", "--watermark", files / "clinic.key"]
        assert main([str(word) for word in [*words, "--device", "cpu"]]) == 0
        both = load_volume(files / "both.nrrd")
        assert check_watermark(both, KEY).is_found
        assert not check_watermark(both).is_found
        change = np.abs(both.hu.astype(int) - scan.hu)
        assert change.max() > np.abs(load_volume(files / "marked.nrrd").hu.astype(int) - scan.hu).max()

    @pytest.mark.slow
    def test_collections_are_marked_and_marked_anew_with_another_key(self, files, tmp_path):
        tree, out = tmp_path / "tree", tmp_path / "out"
        tree.mkdir()
        save_volume(load_volume(files / "scan.nrrd"), tree / "a.nrrd")
        words = ["protect", str(tree), str(out), "--collection", "--processes", "1", "--model", "none", "--watermark"]
        for name, other in (("clinic.key", "other.key"), ("other.key", "clinic.key")):
            assert main([*words, str(files / name)]) == 0
            assert self.check(out.parent, out.name + "/a.nrrd", files / name) == 0
            assert self.check(out.parent, out.name + "/a.nrrd", files / other) == 8


def flipped(volume: CTVolume, axes: tuple[int, ...]) -> CTVolume:
    """The same voxels at the same places, stored the other way round along some axes (slice, row, column)."""
    direction, first = volume.direction.copy(), [0, 0, 0]
    for axis in axes:
        direction[:, 2 - axis] *= -1
        first[axis] = volume.shape[axis] - 1
    origin = tuple(volume.voxel_to_lps(first))
    return dataclasses.replace(volume, hu=np.flip(volume.hu, axes).copy(), origin=origin, direction=direction)


def cancel(_done: int, _total: int) -> None:
    raise CancelledError("stopped")
