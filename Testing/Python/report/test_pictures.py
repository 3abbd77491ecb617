import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.report.pictures import (
    Look,
    color_limit,
    difference_overlay,
    render_slice,
    render_square,
    rmse_bars,
    save_heatmaps,
    window_image,
)
from MITSGANLib.scan.regions import Region
from MITSGANLib.scan.volume import SIMULATED_ATTACK, CTVolume, ProcessingStep
from MITSGANLib.scan.windows import LUNG, MEDIASTINUM, Window
from PIL import Image

HEADLINE_PIXELS = 74  # 0.62 inches of text above the picture at 120 dpi
MARGIN_PIXELS = 14


def decode(png):
    """(rows, columns, 3) float 0..1"""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float64) / 255


def picture_of(png, height=768, width=768):
    """The pixels of the slice itself, without text and color bar."""
    pixels = decode(png)
    return pixels[HEADLINE_PIXELS + 2 : HEADLINE_PIXELS + height - 2, MARGIN_PIXELS + 2 : MARGIN_PIXELS + width - 2]


def quarters(pixels):
    """Mean color of the top left, top right, bottom left, bottom right quarter, away from letters and edges."""
    height, width = pixels.shape[:2]
    rows = (slice(height // 8, height // 4), slice(3 * height // 4, 7 * height // 8))
    columns = (slice(width // 8, width // 4), slice(3 * width // 4, 7 * width // 8))
    return [pixels[j, i].mean(axis=(0, 1)) for j in rows for i in columns]


def marked_corner(size=32):
    """Air with soft tissue in the corner of the first rows and first columns."""
    hu = np.full((size, size), -1350, np.int16)
    hu[: size // 2, : size // 2] = 150
    return hu


def test_window_image_is_black_below_and_white_above():
    hu = np.array([[-3000, -1350, -600, 150, 3000]], np.int16)
    assert window_image(hu, LUNG).tolist() == [[0, 0, 128, 255, 255]]
    assert window_image(hu, LUNG).dtype == np.uint8
    assert window_image(np.array([[-160, 40, 240]]), MEDIASTINUM).tolist() == [[0, 128, 255]]


def test_presets_by_name():
    assert (LUNG.low, LUNG.high) == (-1350, 150)
    assert str(MEDIASTINUM) == "mediastinum window 40/400 HU"


@pytest.mark.parametrize("width", [0, -5, float("nan")])
def test_window_without_width_is_refused(width):
    with pytest.raises(InputError, match="positive width"):
        Window(40, width, "broken")


@pytest.mark.parametrize(
    ("direction", "bright"),
    [
        (None, 0),
        (np.eye(3), 0),
        (np.diag([-1, 1, 1]), 1),  # columns run to the patient's right, which belongs on the left
        (np.diag([1, -1, 1]), 2),  # rows run to anterior, which belongs at the top
        (np.diag([-1, -1, 1]), 3),
        (np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]), 0),  # rows and columns exchanged
        (np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), 1),
        (np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]]), 2),  # coronal, rows to superior, which belongs at the top
        (np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), 0),  # coronal, rows to inferior
    ],
)
def test_stands_as_radiologists_expect(direction, bright):
    levels = [color.mean() for color in quarters(picture_of(render_slice(marked_corner(), Look(direction=direction))))]
    assert int(np.argmax(levels)) == bright
    _, _, second, first = sorted(levels)
    assert first > 0.9
    assert second < 0.1


@pytest.mark.parametrize(
    ("direction", "place"),
    [
        (np.eye(3), (10, 20)),
        (np.diag([-1, -1, 1]), (31 - 10, 31 - 20)),
        (np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]), (20, 10)),
        (np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), (20, 31 - 10)),
    ],
)
@pytest.mark.parametrize("mark", [{"crosshair": (10, 20)}, {"square": Region(0, 1, 8, 13, 18, 23)}])
def test_marks_follow_the_turned_picture(direction, place, mark):
    pixels = decode(render_slice(np.full((32, 32), -1350, np.int16), Look(direction=direction, **mark)))
    j, i = np.nonzero(pixels[..., 1] - pixels[..., 0] > 0.3)
    middle = ((j.min() + j.max()) / 2 - HEADLINE_PIXELS, (i.min() + i.max()) / 2 - MARGIN_PIXELS)
    assert middle == pytest.approx([(index + 0.5) * 768 / 32 for index in place], abs=2)


def test_aspect_follows_the_spacing():
    pixels = decode(render_slice(np.full((32, 32), 150, np.int16), Look(spacing=(0.5, 1.0))))[HEADLINE_PIXELS:]
    white = pixels.min(axis=2) > 0.9
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(2, abs=0.02)


def test_no_change_is_fully_transparent():
    hu = marked_corner()
    pixels = picture_of(difference_overlay(hu, hu.copy()))
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 1], pixels[..., 2])
    assert pixels.max() > 0.5  # anatomy is there


def test_signed_colors_tell_higher_from_lower():
    hu = np.full((32, 32), -900, np.int16)
    other = hu.copy()
    other[:16, :16] += 10
    other[16:, 16:] -= 10
    top_left, top_right, bottom_left, bottom_right = quarters(picture_of(difference_overlay(hu, other, limit_hu=10)))
    assert top_left[0] > top_left[2] + 0.3
    assert bottom_right[2] > bottom_right[0] + 0.3
    for unchanged in (top_right, bottom_left):
        assert np.ptp(unchanged) == 0


def test_absolute_colors_do_not_tell_sign_but_size():
    hu = np.full((32, 32), -900, np.int16)
    other = hu.copy()
    other[:16, :16] += 10
    other[16:, 16:] -= 10
    other[:16, 16:] += 3
    png = difference_overlay(hu, other, kind="absolute", limit_hu=10)
    top_left, top_right, bottom_left, bottom_right = quarters(picture_of(png))
    assert top_left == pytest.approx(bottom_right, abs=0.01)
    assert top_left.mean() > top_right.mean() > bottom_left.mean()


@pytest.mark.slow
def test_color_range_is_part_of_the_picture():
    hu = np.full((32, 32), -900, np.int16)
    narrow, wide = (decode(difference_overlay(hu, hu + np.int16(5), limit_hu=limit)) for limit in (5, 50))
    assert np.any(narrow[:, 800:] != wide[:, 800:])


def test_color_limit_is_a_round_number_that_ignores_outliers():
    difference = np.zeros((100, 100))
    assert color_limit(difference) == 1
    difference[:50] = -17
    assert color_limit(difference) == 20
    difference[0, 0] = 900
    assert color_limit(difference) == 20
    assert color_limit(np.full((4, 4), 20)) == 20
    assert color_limit(np.full((4, 4), 0.004)) == pytest.approx(0.005)


@pytest.mark.slow
def test_square_shows_the_cut_out_part():
    reference = np.full((64, 64), -900, np.int16)
    other = reference.copy()
    other[20:30, 30:40] = 150
    pixels = decode(
        render_square(reference, other, Region(0, 1, 20, 30, 30, 40), limit_hu=100, titles=("before", "after"))
    )
    middle = pixels[108:-14]
    panels = [middle[60:150, start + 60 : start + 150].mean(axis=(0, 1)) for start in (14, 410, 806)]
    assert panels[0] == pytest.approx([0.302, 0.302, 0.302], abs=0.01)
    assert panels[1] == pytest.approx([1, 1, 1], abs=0.01)
    assert panels[2][0] > panels[2][2] + 0.3


@pytest.mark.parametrize(("bounds", "problem"), [((70, 80, 0, 5), "outside"), ((5, 5, 0, 5), "bounds")])
def test_square_outside_is_refused(bounds, problem):
    hu = np.zeros((64, 64), np.int16)
    with pytest.raises(InputError, match=problem):
        render_square(hu, hu, Region(0, 1, *bounds))


def test_wrong_slices_and_kinds_are_refused():
    hu = np.zeros((16, 16), np.int16)
    with pytest.raises(InputError, match="differ in shape"):
        difference_overlay(hu, hu[:8])
    with pytest.raises(InputError, match="signed or absolute"):
        difference_overlay(hu, hu, kind="relative")
    with pytest.raises(InputError, match="slice must be"):
        render_slice(np.zeros((2, 3, 4), np.int16))


def test_bars_mark_the_named_slice():
    pixels = decode(rmse_bars([1.0, 5.0, 2.0], marked=(1,), title="RMSE"))
    green = np.flatnonzero(((pixels[..., 1] - pixels[..., 2]) > 0.3).any(axis=0))
    blue = np.flatnonzero(((pixels[..., 2] - pixels[..., 0]) > 0.3).any(axis=0))
    assert blue.min() < green.min() < green.max() < blue.max()


def test_same_input_gives_the_same_bytes_and_no_global_state():
    before = dict(matplotlib.rcParams)
    hu = marked_corner()
    assert difference_overlay(hu, hu + np.int16(3)) == difference_overlay(hu, hu + np.int16(3))
    assert dict(matplotlib.rcParams) == before


def volumes(slices=12, **geometry):
    reference = np.full((slices, 24, 24), -900, np.int16)
    other = reference + np.int16(2)
    other[7] -= 30
    return CTVolume(reference, **geometry), CTVolume(other, **geometry)


@pytest.mark.slow
def test_files_of_a_comparison(tmp_path):
    reference, other = volumes(spacing=(1.0, 1.0, 2.0))
    calls = []
    paths = save_heatmaps(
        reference,
        other,
        tmp_path / "new" / "maps",
        target_kji=(4, 12, 10),
        square=Region(0, 1, 8, 16, 6, 14),
        evenly_spaced=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    # Slice 7 has the largest RMSE, 4 is the target's and evenly spaced, 7 is evenly spaced too.
    expected = ["overview.png"]
    expected += ["slice-04-signed.png", "slice-04-absolute.png", "square-04.png"]
    expected += ["slice-07-signed.png", "slice-07-absolute.png"]
    assert [path.name for path in paths] == expected
    assert sorted(path.name for path in (tmp_path / "new" / "maps").iterdir()) == sorted(expected)
    assert all(decode(path.read_bytes()).std() > 0 for path in paths)
    assert calls[-1] == (len(expected), len(expected))
    assert "largest RMSE" in Image.open(paths[4]).info["Title"]


@pytest.mark.slow
def test_existing_files_are_replaced(tmp_path):
    reference, other = volumes()
    (tmp_path / "overview.png").write_text("old")
    paths = save_heatmaps(reference, other, tmp_path, evenly_spaced=0)
    assert [path.name for path in paths] == ["overview.png", "slice-07-signed.png", "slice-07-absolute.png"]
    assert decode(paths[0].read_bytes()).size


@pytest.mark.slow
def test_simulated_attack_is_named_in_every_picture(tmp_path):
    reference, other = volumes()
    attacked = other.with_hu(other.hu, ProcessingStep(SIMULATED_ATTACK, "injection"))
    for path in save_heatmaps(reference, attacked, tmp_path, target_kji=(4, 12, 10), square=Region(0, 1, 8, 16, 6, 14)):
        assert Image.open(path).info["Title"].startswith("SIMULATED ATTACK")


def test_unusable_input_and_folder_are_refused(tmp_path):
    reference, other = volumes()
    with pytest.raises(InputError, match="differ in shape"):
        save_heatmaps(reference, CTVolume(other.hu[:5]), tmp_path)
    with pytest.raises(InputError, match="outside the scan"):
        save_heatmaps(reference, other, tmp_path, target_kji=(12, 0, 0))
    assert list(tmp_path.iterdir()) == []
    blocked = Path(tmp_path / "file")
    blocked.write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be written"):
        save_heatmaps(reference, other, blocked, evenly_spaced=0)
