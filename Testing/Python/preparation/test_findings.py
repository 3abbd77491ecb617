"""Findings from tables, readings and segmentations: where they are, how large, and what is said when they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import InputError
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.data.dataset import Finding
from MITSGANTrainingLib.preparation.findings import measure
from MITSGANTrainingLib.preparation.readings import ReadingFile, merge_readers, open_reading
from MITSGANTrainingLib.preparation.segmentations import Segmentation
from MITSGANTrainingLib.preparation.tables import read_table
from scipy import ndimage
from skimage.draw import disk
from skimage.measure import find_contours

SPACING = (0.5, 0.5, 2.0)  # mm along column, row, slice
ORIGIN = (-40.0, -50.0, 100.0)


@pytest.fixture
def volume() -> CTVolume:
    """An axial scan of 20 slices, 60 rows, 80 columns."""
    return CTVolume(np.zeros((20, 60, 80), np.int16), SPACING, ORIGIN)


def ball(shape: tuple[int, int, int], center: tuple[int, int, int], diameter_mm: float) -> np.ndarray:
    offsets = np.ogrid[tuple(slice(-c, n - c) for c, n in zip(center, shape, strict=True))]
    return sum((offset * mm) ** 2 for offset, mm in zip(offsets, SPACING[::-1], strict=True)) <= (diameter_mm / 2) ** 2


class TestMeasure:
    def test_ball(self):
        voxels = np.argwhere(ball((20, 60, 80), (10, 30, 40), 12.0))
        center, diameter, reach = measure(voxels, SPACING[::-1])
        assert center == pytest.approx((10, 30, 40))
        assert diameter == pytest.approx(12.0, abs=0.6)
        assert 6.0 <= reach <= 7.0

    @given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40))
    def test_diameter_is_the_farthest_pair_of_one_slice(self, voxels):
        """The farthest pair is looked for among the ends of rows only; here among all."""
        voxels = np.array(sorted(voxels))
        _, diameter, reach = measure(voxels, (2.0, 0.5, 0.7))
        pairs = [(a, b) for a in voxels for b in voxels if a[0] == b[0]]
        longest = max(np.hypot(0.5 * (a[1] - b[1]), 0.7 * (a[2] - b[2])) for a, b in pairs)
        assert diameter == pytest.approx(longest + 0.6)
        assert 2 * reach >= longest


class TestTable:
    def write(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "findings.csv"
        path.write_text(text, encoding="utf-8")
        return path

    def test_voxels_are_column_row_slice(self, tmp_path, volume):
        table = read_table(self.write(tmp_path, "filename,x,y,z\nscan-1,70,20,5\n"), "voxel")
        finding = table.marks[0].locate(volume, 1).findings[0]
        assert finding.kji == (5, 20, 70)
        assert finding.diameter_mm is None
        assert finding.kind == "nodule"

    def test_world_is_lps_mm(self, tmp_path, volume):
        x, y, z = volume.voxel_to_lps((5, 20, 70))
        table = read_table(self.write(tmp_path, f"z,y,x,filename\n{z},{y},{x},scan-1\n"), "world")
        assert table.marks[0].locate(volume, 1).findings[0].kji == pytest.approx((5, 20, 70))

    def test_luna16_columns_are_world_whatever_was_asked(self, tmp_path, volume):
        text = "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,-5,-40,110,2.5\n"
        row = read_table(self.write(tmp_path, text), "voxel").marks[0]
        assert row.scan_names == ("1.2.3",)
        finding = row.locate(volume, 1).findings[0]
        assert finding.kji == pytest.approx((5, 20, 70))
        assert (finding.kind, finding.diameter_mm) == ("small nodule", 2.5)

    def test_healthy_places_are_not_findings(self, tmp_path, volume):
        row = read_table(self.write(tmp_path, "filename,x,y,z\nscan-1,70,20,5\n"), "voxel", healthy=True).marks[0]
        assert row.locate(volume, 1).findings[0].kind == "healthy"
        assert not row.may_be_injected

    def test_a_point_outside_is_left_out_and_the_other_coordinates_suggested(self, tmp_path, volume):
        row = read_table(self.write(tmp_path, "filename,x,y,z\nscan-1,80,20,5\n"), "voxel").marks[0]
        located = row.locate(volume, 1)
        assert not located.findings
        ((place, reason),) = located.left_out
        assert place == "line 2 of findings.csv"
        assert "column 80 lies outside" in reason
        assert "--coordinates" in reason

    def test_rows_without_coordinates_are_left_out_as_ctgan_does(self, tmp_path):
        table = read_table(self.write(tmp_path, "filename,x,y,z\na,1,2,\nb,1,2,nan\n\nc,1,2,3\n"), "voxel")
        assert [row.scan_name for row in table.marks] == ["c"]
        assert [place for place, _ in table.left_out] == ["line 2 of findings.csv", "line 3 of findings.csv"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "filename, x, y, z"),
            ("name,x,y,z\na,1,2,3\n", "lacks the column filename"),
            ("filename,x,y\na,1,2\n", "lacks the column z"),
            ("filename,x,y,z\na,one,2,3\n", "x in line 2"),
            ("filename,x,y,z\na,inf,2,3\n", "x in line 2"),
            ("filename,x,y,z,diameter_mm\na,1,2,3,-4\n", "line 2"),
        ],
    )
    def test_wrong_tables_are_errors_that_name_the_place(self, tmp_path, text, words):
        with pytest.raises(InputError, match=words):
            read_table(self.write(tmp_path, text), "voxel")

    def test_a_binary_file_is_no_table(self, tmp_path):
        path = tmp_path / "findings.csv"
        path.write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(InputError, match="CSV table in UTF-8"):
            read_table(path, "voxel")


class TestSegmentation:
    def save(self, path: Path, labels: np.ndarray, origin: tuple[float, float, float] = ORIGIN) -> Path:
        image = sitk.GetImageFromArray(labels.astype(np.uint8))
        image.SetSpacing(SPACING)
        image.SetOrigin(origin)
        sitk.WriteImage(image, str(path), True)
        return path

    def test_each_component_is_a_finding(self, tmp_path, volume):
        labels = ball(volume.shape, (10, 30, 40), 12.0) + 2 * ball(volume.shape, (4, 10, 12), 2.0)
        located = Segmentation(self.save(tmp_path / "labels.nrrd", labels)).locate(volume, 1)
        large, small = sorted(located.findings, key=lambda finding: -finding.diameter_mm)
        assert large.kji == pytest.approx((10, 30, 40))
        assert large.diameter_mm == pytest.approx(12, abs=0.6)
        assert large.readers is None
        assert small.kji == pytest.approx((4, 10, 12))
        assert small.kind == "small nodule"

    def test_votes_are_counted_and_the_rest_stays_known(self, tmp_path, volume):
        votes = ball(volume.shape, (10, 30, 40), 16.0).astype(int) + 2 * ball(volume.shape, (10, 30, 44), 8.0)
        votes += ball(volume.shape, (3, 10, 10), 4.0)
        path = self.save(tmp_path / "votes.nrrd", votes)
        agreed, single = sorted(Segmentation(path).locate(volume, 3).findings, key=lambda f: -f.readers)
        assert agreed.readers == 3
        assert agreed.diameter_mm == pytest.approx(8, abs=0.6)
        assert agreed.kji == pytest.approx((10, 30, 44))
        assert agreed.reach_mm >= 8
        assert single.readers == 1

    def test_a_part_of_the_grid_is_placed_by_its_geometry(self, tmp_path, volume):
        """Slicer saves segmentations cropped to what they hold."""
        part = ball(volume.shape, (10, 30, 40), 12.0)[6:15, 10:50, 20:60]
        origin = tuple(volume.voxel_to_lps((6, 10, 20)))
        located = Segmentation(self.save(tmp_path / "part.seg.nrrd", part, origin)).locate(volume, 1)
        assert located.findings[0].kji == pytest.approx((10, 30, 40))

    def test_a_segmentation_of_another_place_is_left_out(self, tmp_path, volume):
        labels = ball(volume.shape, (10, 30, 40), 12.0)
        located = Segmentation(self.save(tmp_path / "other.nrrd", labels, (500.0, 0.0, 0.0))).locate(volume, 1)
        assert not located.findings
        assert "lies outside the scan" in located.left_out[0][1]

    def test_empty_labels_are_no_findings(self, tmp_path, volume):
        path = self.save(tmp_path / "empty.nrrd", np.zeros(volume.shape))
        assert Segmentation(path).locate(volume, 1).findings == ()

    def test_scans_and_damaged_files_are_refused(self, tmp_path, volume):
        scan, damaged = tmp_path / "scan.nrrd", tmp_path / "damaged.nrrd"
        sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 4, 4), -800, np.int16)), str(scan))
        damaged.write_bytes(scan.read_bytes()[:60])
        for path in (scan, damaged):
            with pytest.raises(InputError, match=path.name):
                Segmentation(path).locate(volume, 1)

    def test_its_name_begins_with_that_of_its_scan(self):
        names = Segmentation(Path("LIDC-IDRI-0002-votes.seg.nrrd")).scan_names
        assert names.index("LIDC-IDRI-0002-votes") < names.index("LIDC-IDRI-0002") < names.index("LIDC-IDRI")
        assert Segmentation(Path("LIDC-IDRI-0002-votes.seg.nrrd"), "other").scan_names == ("other",)


def disk_outline(row: int, column: int, radius: int) -> list[tuple[int, int]]:
    """The first pixels outside of a disk, in order around it, as readers' tools draw them."""
    middle = radius + 4
    mask = np.zeros((2 * middle + 1, 2 * middle + 1), bool)
    mask[disk((middle, middle), radius + 0.5)] = True
    around = find_contours(ndimage.binary_dilation(mask).astype(float), 0.99)[0]
    return list(dict.fromkeys((round(r) - middle + row, round(c) - middle + column) for r, c in around))


def roi(z: float, pixels: list[tuple[int, int]], inclusion: bool = True) -> str:
    points = "".join(f"<edgeMap><xCoord>{c}</xCoord><yCoord>{r}</yCoord></edgeMap>" for r, c in pixels)
    return f"<roi><imageZposition>{z}</imageZposition><inclusion>{str(inclusion).upper()}</inclusion>{points}</roi>"


def nodule(*rois: str) -> str:
    return f"<unblindedReadNodule><noduleID>N</noduleID>{''.join(rois)}</unblindedReadNodule>"


def non_nodule(z: float, row: int, column: int) -> str:
    locus = f"<locus><xCoord>{column}</xCoord><yCoord>{row}</yCoord></locus>"
    return f"<nonNodule><imageZposition>{z}</imageZposition>{locus}</nonNodule>"


def write_reading(path: Path, *sessions: str, root: str = "LidcReadMessage", uid: str = "1.2.3") -> Path:
    text = "".join(f"<readingSession>{session}</readingSession>" for session in sessions)
    header = f"<ResponseHeader><SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader>"
    path.write_text(f'<?xml version="1.0"?><{root} xmlns="http://www.nih.gov">{header}{text}</{root}>')
    return path


class TestReading:
    def test_outlines_of_several_readers_become_one_nodule(self, tmp_path, volume):
        """Slices 4 to 6 (z 108 to 112 mm), a disk of 21 pixels (10.5 mm) that the second reader saw 2 pixels aside."""
        readers = [nodule(*(roi(z, disk_outline(30, column, 10)) for z in (108, 110, 112))) for column in (40, 42)]
        path = write_reading(tmp_path / "069.xml", *readers)
        located = open_reading(path).locate(volume, 1)
        assert located.left_out == ()
        (found,) = located.findings
        assert found.kji == pytest.approx((5, 30, 41), abs=0.2)
        assert found.diameter_mm == pytest.approx(10.5, abs=0.8)
        assert (found.kind, found.readers) == ("nodule", 2)

    def test_the_outline_itself_is_not_part_of_the_nodule(self, tmp_path, volume):
        square = [(r, c) for r in range(20, 25) for c in range(30, 35) if r in (20, 24) or c in (30, 34)]
        ring = sorted(square, key=lambda p: np.arctan2(p[0] - 22, p[1] - 32))
        path = write_reading(tmp_path / "r.xml", nodule(roi(110, ring)))
        (found,) = open_reading(path).locate(volume, 1).findings
        assert found.diameter_mm == pytest.approx(np.hypot(1.0, 1.0) + 0.5)
        assert found.kji == pytest.approx((5, 22, 32))

    def test_holes_are_left_out(self, tmp_path, volume):
        whole, hole = disk_outline(30, 40, 12), disk_outline(30, 46, 4)
        paths = [
            write_reading(tmp_path / "whole.xml", nodule(roi(110, whole))),
            write_reading(tmp_path / "hole.xml", nodule(roi(110, whole), roi(110, hole, inclusion=False))),
        ]
        full, holed = (open_reading(path).locate(volume, 1).findings[0] for path in paths)
        assert holed.kji[2] < full.kji[2] - 0.3
        assert holed.kji[1] == pytest.approx(full.kji[1], abs=0.1)

    def test_points_are_small_nodules_and_non_nodules(self, tmp_path, volume):
        path = write_reading(tmp_path / "r.xml", nodule(roi(110, [(20, 30)])) + non_nodule(120, 40, 50))
        small, other = open_reading(path).locate(volume, 1).findings
        assert (small.kind, small.kji, small.diameter_mm) == ("small nodule", (5, 20, 30), None)
        assert (other.kind, other.kji) == ("non-nodule", (10, 40, 50))

    @pytest.mark.parametrize(("z", "row"), [(99.9, 30), (98.9, 30), (139.1, 30), (110, 60), (110, -1)])
    def test_marks_outside_are_left_out_one_by_one(self, tmp_path, volume, z, row):
        """z within half a slice of the first slice is that slice."""
        path = write_reading(tmp_path / "r.xml", nodule(roi(z, [(row, 40)])), nodule(roi(110, [(20, 30)])))
        located = open_reading(path).locate(volume, 1)
        expected = 0 if (z, row) == (99.9, 30) else 1
        assert len(located.left_out) == expected
        assert len(located.findings) == 2 - expected
        if expected:
            what, reason = located.left_out[0]
            assert "reader 1" in what
            assert "outside the scan" in reason

    def test_a_flipped_scan_asks_for_the_original(self, tmp_path, volume):
        flipped = CTVolume(volume.hu, SPACING, ORIGIN, np.diag((1.0, -1.0, 1.0)))
        path = write_reading(tmp_path / "r.xml", nodule(roi(110, [(20, 30)])))
        with pytest.raises(InputError, match="original DICOM"):
            open_reading(path).locate(flipped, 1)

    def test_slices_may_run_downwards(self, tmp_path, volume):
        downwards = CTVolume(volume.hu, SPACING, ORIGIN, np.diag((1.0, 1.0, -1.0)))
        path = write_reading(tmp_path / "r.xml", nodule(roi(90, [(20, 30)])))
        assert open_reading(path).locate(downwards, 1).findings[0].kji == (5, 20, 30)

    def test_readings_of_radiographs_are_none(self, tmp_path):
        assert open_reading(write_reading(tmp_path / "x.xml", root="IdriReadMessage")) is None

    def test_series_is_named_by_its_uid_first(self, tmp_path):
        assert open_reading(write_reading(tmp_path / "069.xml", uid=" 1.2.3 ")).scan_names[:2] == ("1.2.3", "069")

    def test_damage_is_named(self, tmp_path, volume):
        path = tmp_path / "cut.xml"
        path.write_text("<LidcReadMessage><readingSession>")
        with pytest.raises(InputError, match=r"cut\.xml cannot be read as XML"):
            open_reading(path)
        path = write_reading(tmp_path / "lacking.xml", nodule("<roi><edgeMap><xCoord>3</xCoord></edgeMap></roi>"))
        with pytest.raises(InputError, match="lacks a coordinate"):
            ReadingFile(path, "").locate(volume, 1)


def placed(reader: int, kind: str, kji: tuple, diameter_mm: float | None, reach_mm: float) -> tuple[int, Finding]:
    return reader, Finding(kji, diameter_mm, kind, 1, reach_mm)


@st.composite
def placed_marks(draw) -> list[tuple[int, Finding]]:
    kinds = st.sampled_from(["nodule", "small nodule", "non-nodule"])
    marks = []
    for _ in range(draw(st.integers(0, 10))):
        kind = draw(kinds)
        kji = tuple(draw(st.integers(0, 12)) * 1.0 for _ in range(3))
        diameter = draw(st.integers(3, 12)) * 1.0 if kind == "nodule" else None
        marks.append(placed(draw(st.integers(0, 3)), kind, kji, diameter, (diameter or 3) / 2))
    return marks


class TestMerging:
    @settings(deadline=None)
    @given(placed_marks())
    def test_every_mark_is_in_reach_of_one_finding_and_no_reader_counts_twice(self, marks):
        findings = merge_readers(marks, (1.0, 1.0, 1.0))
        assert len(findings) <= len(marks)
        assert all(1 <= finding.readers <= 4 for finding in findings)
        for reader in range(4):
            assert len(findings) >= sum(of == reader for of, _ in marks)
        for _, mark in marks:
            distances = [np.linalg.norm(np.subtract(mark.kji, f.kji)) + mark.reach_mm - f.reach_mm for f in findings]
            assert min(distances) <= 1e-9

    @pytest.mark.slow
    @settings(deadline=None)
    @given(placed_marks(), st.randoms(use_true_random=False))
    def test_numbering_of_the_readers_does_not_matter(self, marks, random):
        numbers = list(range(4))
        random.shuffle(numbers)
        renamed = [(numbers[reader], mark) for reader, mark in marks]
        assert merge_readers(renamed, (1.0, 1.0, 1.0)) == merge_readers(marks, (1.0, 1.0, 1.0))

    def test_an_outline_outranks_a_point(self):
        marks = [
            placed(0, "non-nodule", (5, 5, 5), None, 5.0),
            placed(1, "nodule", (5, 5, 6), 8.0, 4.0),
            placed(2, "nodule", (5, 6, 6), 10.0, 5.0),
            placed(3, "small nodule", (5, 50, 50), None, 1.5),
        ]
        merged, alone = merge_readers(marks, (1.0, 1.0, 1.0))
        assert (merged.kind, merged.readers, merged.diameter_mm) == ("nodule", 2, 9.0)
        assert merged.kji == (5, 5.5, 6)
        assert (alone.kind, alone.readers) == ("small nodule", 1)
