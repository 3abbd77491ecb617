"""A scan against its signed manifest: what was changed, and where.

Every slice is looked for at its place in the patient, not by file name or number. Where its tiles are not the signed
ones, it is looked for among the others, so that a slice put in another's place is named as such and not as a slice full
of changes.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..files.dicom.geometry import STRAIGHT_TOLERANCE_MM
from ..files.volume_files import GEOMETRY_TOLERANCE_MM
from ..scan.alignment import aligned
from ..scan.filters import enlarged
from ..scan.volume import CTVolume, ProcessingStep
from .contents import ImageFile, ScanContents
from .digests import IMAGE_KEYWORDS, SERIES_KEYWORDS, STUDY, TILE, HeaderKey, tile_digests
from .envelope import ManifestError
from .manifest import Manifest, SignedManifest, SliceRecord, manifest_path, merge, read_document, read_manifest_file
from .study import is_study_manifest

# Values of the map.
INTACT, CHANGED_TILE, WRONG_SLICE, MISSING_SLICE = range(4)
MAP_VALUES = {
    INTACT: "as signed",
    CHANGED_TILE: "changed tile",
    WRONG_SLICE: "slice of another place or scan",
    MISSING_SLICE: "slice missing, or not to be checked",
}
# A slice is called replaced, not edited, where hardly a tile is left; air may be alike in any two scans.
REPLACED_SHARE = 0.8
# A slice of a heap belongs to a place within this share of the slice spacing.
PLACE_TOLERANCE = 0.2


@dataclass(frozen=True)
class Discrepancy:
    """One difference: ``kind`` is stable and meant for programs, ``text`` for people; ``slices`` count from 0."""

    kind: str
    text: str
    slices: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Verification:
    """What a comparison found.

    ``tiles`` is uint8 (slices, tile rows, tile columns) in the signed order, of :data:`MAP_VALUES`. ``notes`` say what
    could not be compared. Whether the signer is who they should be is another question: see ``manifest.fingerprint``.
    """

    manifest: Manifest
    discrepancies: tuple[Discrepancy, ...]
    tiles: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Whether nothing differs from what was signed."""
        return not self.discrepancies and not self.tiles.any()

    def changed_boxes(self) -> Iterator[tuple[int, slice, slice]]:
        """(slice, rows, columns) of every changed tile."""
        _, rows, columns = self.manifest.shape
        for k, j, i in np.argwhere(self.tiles == CHANGED_TILE).tolist():
            yield k, slice(j * TILE, min((j + 1) * TILE, rows)), slice(i * TILE, min((i + 1) * TILE, columns))

    def map_volume(self) -> CTVolume:
        """A label map of :data:`MAP_VALUES` in the signed geometry: what an overlay shows."""
        labels = enlarged(self.tiles, TILE, self.manifest.shape)
        step = ProcessingStep(
            "tamper-map", "Map of what differs from the signed scan", {str(k): v for k, v in MAP_VALUES.items()}
        )
        return self.manifest.empty_volume().with_hu(labels.astype(np.int16), step)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without the map."""
        return {
            "intact": self.is_intact,
            "signed": self.manifest.created,
            "signer": self.manifest.fingerprint,
            "findings": [dataclasses.asdict(one) for one in self.discrepancies],
            "changed_tiles": [
                {"slice": k, "rows": [rows.start, rows.stop], "columns": [columns.start, columns.stop]}
                for k, rows, columns in self.changed_boxes()
            ],
            "shape": list(self.manifest.shape),
            "notes": list(self.notes),
        }


def manifest_within(scan: ScanContents) -> SignedManifest | None:
    """The manifest in a scan's DICOM files, from the shares that are as signed; None if there is none.

    Where files carry shares of several manifests, most of them decide; the others are then slices of another scan.

    :raises ManifestError: there are shares, and none of them is as signed.
    """
    groups: dict[str, list[SignedManifest]] = defaultdict(list)
    error = None
    for share in scan.shares:
        try:
            signed = read_document(share)
        except ManifestError as refused:
            error = refused
            continue
        groups[signed.envelope["signatures"][0]["sig"]].append(signed)
    if not groups:
        if error:
            raise error
        return None
    return merge(max(groups.values(), key=len))


def find_manifest(scan: ScanContents) -> SignedManifest | None:
    """The manifest of a scan: that within its DICOM files, else the one beside it; None if there is neither.

    :raises ManifestError: there is one, and it was altered.
    """
    beside = manifest_path(scan.path)
    is_of_scan = beside.exists() and not is_study_manifest(beside)
    return manifest_within(scan) or (read_manifest_file(beside) if is_of_scan else None)


def verify_scan(scan: ScanContents, signed: SignedManifest, *, headers: bool = True) -> Verification:
    """Compare a scan with a manifest.

    :param headers: whether identifying headers count; leave it out for a copy that was de-identified on purpose.
    :raises InputError: the slices form no volume, and the manifest is of a grid turned against theirs.
    """
    manifest = signed.manifest
    discrepancies, notes, tiles = [], [], np.full(manifest.tiles, INTACT, np.uint8)
    placed, geometry = _place(scan, signed)
    discrepancies += geometry
    if placed and all(one.tiles is None for one in placed):
        tiles[:] = MISSING_SLICE
    else:
        discrepancies += _compare_slices([one for one in placed if one.tiles is not None], signed, tiles)
    if scan.unreadable:
        text = f"{len(scan.unreadable)} files are damaged and cannot be read, such as {scan.unreadable[0].name}."
        discrepancies.append(Discrepancy("file-unreadable", text))
    if manifest.headers is None:
        notes.append("Headers were not compared: the manifest covers none.")
    elif scan.format != "dicom":
        notes.append("Headers (patient, study, series) were not compared: this format has none.")
    elif headers:
        discrepancies += _compare_headers(placed, signed)
    else:
        notes.append("Headers were not compared, as asked.")
    if scan.format == "nifti":
        notes.append("NIfTI keeps geometry in 32-bit numbers; it was compared to 0.01 mm.")
    if scan.problem and not discrepancies:
        discrepancies.append(Discrepancy("no-volume", scan.problem))
    return Verification(manifest, tuple(discrepancies), tiles, tuple(notes))


@dataclass(frozen=True, eq=False)
class _Placed:
    """A slice of the scan and the place ``k`` where it should be, None for one too many.

    ``tiles`` are its digests, None where its size is not the signed one, which is a discrepancy of its own.
    """

    k: int | None
    tiles: np.ndarray | None
    file: ImageFile | None

    @property
    def content(self) -> bytes:
        return self.tiles.tobytes()


def _place(scan: ScanContents, signed: SignedManifest) -> tuple[list[_Placed], list[Discrepancy]]:
    """The slices of a scan at their places, and what is wrong with its geometry."""
    if scan.volume is None:
        return _place_heap(scan, signed.manifest)
    turned = aligned(scan.volume, np.reshape(signed.manifest.direction, (3, 3)))
    first = _place_volume(turned, scan, signed)
    if np.array_equal(turned.direction, scan.volume.direction) or _matches(first[0], signed) == len(first[0]):
        return first
    # Either voxels were turned, or the axes in the header were edited and voxels left alone: the better match tells.
    second = _place_volume(scan.volume, scan, signed)
    return max(first, second, key=lambda attempt: _matches(attempt[0], signed))


def _place_volume(
    volume: CTVolume, scan: ScanContents, signed: SignedManifest
) -> tuple[list[_Placed], list[Discrepancy]]:
    manifest = signed.manifest
    images = _images_along(volume, scan)
    if volume.shape[1:] != manifest.shape[1:]:
        text = "Slices have {} x {} pixels, {} x {} were signed.".format(*volume.shape[1:], *manifest.shape[1:])
        return [_Placed(None, None, image) for image in images], [Discrepancy("size", text)]
    digests = [tile_digests(hu, manifest.salt) for hu in volume.hu]
    places = _places_in_order([one.tobytes() for one in digests], signed)
    placed = [_Placed(k, one, image) for k, one, image in zip(places, digests, images, strict=True)]
    at, place = next(((at, place) for at, place in enumerate(places) if place is not None), (0, 0))
    return placed, list(_compare_geometry(volume, manifest, at, place))


def _images_along(volume: CTVolume, scan: ScanContents) -> Sequence[ImageFile | None]:
    """The DICOM file, or None, of each slice of ``volume``, which is the scan turned."""
    along = scan.volume.direction[:, 2] @ volume.direction[:, 2]
    if not scan.images or abs(along) < 0.5:  # slices run along another axis than the files
        return [None] * volume.shape[0]
    return scan.images if along > 0 else scan.images[::-1]


def _places_in_order(contents: list[bytes], signed: SignedManifest) -> list[int | None]:
    """Places of slices that stand in a row: one by one if their number is right, else by what fits best."""
    count = signed.manifest.shape[0]
    if len(contents) == count:
        return list(range(count))
    wanted = [signed.records[k].tiles.tobytes() if k in signed.records else b"" for k in range(count)]
    places: list[int | None] = [None] * len(contents)
    matcher = difflib.SequenceMatcher(None, contents, wanted, autojunk=False)
    for _, start, stop, wanted_start, wanted_stop in matcher.get_opcodes():
        for place, k in zip(range(start, stop), range(wanted_start, wanted_stop), strict=False):
            places[place] = k
    return places


def _place_heap(scan: ScanContents, manifest: Manifest) -> tuple[list[_Placed], list[Discrepancy]]:
    """Place slices that form no volume, each where its own header puts it."""
    whole = manifest.empty_volume()
    placed, sized, changed = [], [], defaultdict(list)
    for loose in scan.loose:
        one = aligned(loose.volume, whole.direction)
        if one.shape[0] != 1:
            raise InputError(f"{scan.problem} (The manifest is of slices along another axis, so they cannot be found.)")
        along = whole.lps_to_voxel(one.origin)[0]
        place = round(along)
        fits = abs(along - place) <= PLACE_TOLERANCE and 0 <= place < manifest.shape[0]
        k = place if fits else None
        if one.shape[1:] != manifest.shape[1:]:
            placed.append(_Placed(None, None, loose.file))
            sized.append(k)
            continue
        placed.append(_Placed(k, tile_digests(one.hu[0], manifest.salt), loose.file))
        if not fits:
            continue
        if _direction_error(one, whole) > GEOMETRY_TOLERANCE_MM:
            changed["orientation"].append(k)
        if _spacing_error(one, whole)[:2].max() > GEOMETRY_TOLERANCE_MM:
            changed["spacing"].append(k)
        if np.linalg.norm(one.voxel_to_lps((0, 0, 0)) - whole.voxel_to_lps((k, 0, 0))) > STRAIGHT_TOLERANCE_MM:
            changed["position"].append(k)
    names = {"orientation": "Image Orientation", "spacing": "Pixel Spacing", "position": "Image Position"}
    discrepancies = [
        Discrepancy(kind, f"{names[kind]} was changed in {_numbers(changed[kind])}.", tuple(changed[kind]))
        for kind in names
        if changed[kind]
    ]
    if sized:
        text = f"{len(sized)} {_plural(len(sized), 'slice')} of another size than signed."
        discrepancies.append(Discrepancy("size", text, tuple(sorted(k for k in sized if k is not None))))
    return placed, discrepancies


def _matches(placed: Iterable[_Placed], signed: SignedManifest) -> int:
    """How many slices are as signed at their places."""
    return sum(
        one.k in signed.records and one.tiles is not None and np.array_equal(one.tiles, signed.records[one.k].tiles)
        for one in placed
    )


def _compare_geometry(volume: CTVolume, manifest: Manifest, at: int, place: int) -> Iterator[Discrepancy]:
    """Findings about a volume whose slice ``at`` should have ``place`` in the signed one."""
    whole = manifest.empty_volume()
    if _spacing_error(volume, whole).max() > GEOMETRY_TOLERANCE_MM:
        text = "Voxel spacing is {:.4g} x {:.4g} x {:.4g} mm (column, row, slice), {:.4g} x {:.4g} x {:.4g} was signed."
        yield Discrepancy("spacing", text.format(*volume.spacing, *whole.spacing))
    if _direction_error(volume, whole) > GEOMETRY_TOLERANCE_MM:
        yield Discrepancy("orientation", "The scan lies in another orientation in the patient than was signed.")
    moved = volume.voxel_to_lps((at, 0, 0)) - whole.voxel_to_lps((place, 0, 0))
    if np.abs(moved).max() > GEOMETRY_TOLERANCE_MM:
        text = "The scan was moved by {:.4g}, {:.4g}, {:.4g} mm (LPS) against where it was signed."
        yield Discrepancy("position", text.format(*moved))


def _spacing_error(volume: CTVolume, whole: CTVolume) -> np.ndarray:
    """How far (mm) the other end of the scan moves by the difference of spacing along (column, row, slice)."""
    return np.abs(np.subtract(volume.spacing, whole.spacing)) * whole.shape[::-1]


def _direction_error(volume: CTVolume, whole: CTVolume) -> float:
    """How far (mm) the other end of the scan moves by the difference of direction."""
    extent = np.multiply(whole.spacing, whole.shape[::-1])
    return float((np.linalg.norm(volume.direction - whole.direction, axis=0) * extent).max())


def _compare_slices(placed: list[_Placed], signed: SignedManifest, tiles: np.ndarray) -> Iterator[Discrepancy]:
    """Findings about voxels; marks the map ``tiles``."""
    count = signed.manifest.shape[0]
    at: dict[int, list[_Placed]] = defaultdict(list)
    for one in placed:
        if one.k is not None:
            at[one.k].append(one)
    homes: dict[bytes, int] = {record.tiles.tobytes(): k for k, record in sorted(signed.records.items(), reverse=True)}
    missing = [k for k in range(count) if k not in at]
    elsewhere = [one for one in placed if one.k is None]
    extra = [one for one in elsewhere if one.content not in homes]
    twice = {k for k in at if len(at[k]) > 1} | {homes[one.content] for one in elsewhere if one.content in homes}
    unsigned, moved, replaced, edited = [], {}, [], {}
    for k, found in sorted(at.items()):
        record = signed.records.get(k)
        if record is None:
            unsigned.append(k)
            continue
        # Of two, the one that is not as signed is the one to show.
        worst = max(found, key=lambda one: _difference(one, record).sum())
        difference = _difference(worst, record)
        home = homes.get(worst.content, k)
        if not difference.any():
            continue
        if home != k:
            moved[k] = home
            tiles[k] = WRONG_SLICE
        elif difference.size > 1 and difference.mean() >= REPLACED_SHARE:
            replaced.append(k)
            tiles[k] = WRONG_SLICE
        else:
            edited[k] = int(difference.sum())
            tiles[k][difference] = CHANGED_TILE
    tiles[missing] = MISSING_SLICE
    tiles[unsigned] = MISSING_SLICE
    yield from _slice_findings(missing, sorted(twice), unsigned, replaced)
    if extra:
        text = "more than signed: of another scan, or outside the signed one."
        yield Discrepancy("slice-extra", f"{len(extra)} {_plural(len(extra), 'slice')} {text}")
    yield from _moves(moved)
    if edited:
        total = sum(edited.values())
        size = f"{total} {_plural(total, 'tile')} of {TILE} x {TILE} pixels"
        yield Discrepancy("voxels", f"Voxels were changed in {size} in {_numbers(edited)}.", tuple(edited))


def _difference(one: _Placed, record: SliceRecord) -> np.ndarray:
    """bool (tile rows, tile columns)."""
    return (one.tiles != record.tiles).any(axis=2)


def _slice_findings(
    missing: list[int], twice: list[int], unsigned: list[int], replaced: list[int]
) -> Iterator[Discrepancy]:
    for kind, slices, text in (
        ("slice-missing", missing, "{} {} missing"),
        ("slice-duplicated", twice, "{} {} there more than once"),
        ("slice-unsigned", unsigned, "{} {} not from the signed scan, or lost what was signed of it"),
        ("slice-replaced", replaced, "{} {} replaced, or changed as a whole"),
    ):
        if slices:
            verb = {"slice-replaced": ("was", "were")}.get(kind, ("is", "are"))[len(slices) > 1]
            words = text.format(_numbers(slices).capitalize(), verb)
            yield Discrepancy(kind, f"{words}.", tuple(slices))


def _moves(moved: dict[int, int]) -> Iterator[Discrepancy]:
    """Findings about slices that show what was signed for another place."""
    swapped = sorted((k, home) for k, home in moved.items() if k < home and moved.get(home) == k)
    if swapped:
        pairs = ", ".join(f"{k} and {home}" for k, home in swapped[:4])
        more = f", and {len(swapped) - 4} more pairs" if len(swapped) > 4 else ""
        slices = tuple(sorted(k for pair in swapped for k in pair))
        yield Discrepancy("slices-swapped", f"Slices {pairs}{more} were swapped.", slices)
    others = {k: home for k, home in sorted(moved.items()) if moved.get(home) != k}
    if others:
        listed = ", ".join(f"{k} shows slice {home}" for k, home in list(others.items())[:4])
        more = f", and {len(others) - 4} more" if len(others) > 4 else ""
        yield Discrepancy("slice-misplaced", f"Slices stand in the place of others: {listed}{more}.", tuple(others))


def _compare_headers(placed: list[_Placed], signed: SignedManifest) -> Iterator[Discrepancy]:
    """Findings about identifying headers. Values, old or new, are never told."""
    manifest = signed.manifest
    files = [one for one in placed if one.file]
    if not files:
        yield Discrepancy("header", "The images are not the signed ones: they are slices along another axis.")
        return
    studies = Counter(one.file.headers[STUDY] for one in files)
    keys = {study: HeaderKey(manifest.salt, study) for study in list(studies)[:8]}
    study = next((study for study, key in keys.items() if key.study == manifest.headers.study), None)
    foreign = tuple(sorted({one.k for one in files if one.k is not None and one.file.headers[STUDY] != study}))
    if study is None:
        text = "The Study Instance UID is not the signed one, so the other headers could not be compared."
        yield Discrepancy("header", text)
        return
    if foreign:
        yield Discrepancy("header", f"StudyInstanceUID is not the signed one in {_numbers(foreign)}.", foreign)
    key, same = keys[study], [one for one in files if one.file.headers[STUDY] == study]
    for keyword in SERIES_KEYWORDS:
        wanted = manifest.headers.series[keyword]
        if key.series(keyword, (one.file.headers[keyword] for one in same)) == wanted:
            continue
        digests = {value: key.series(keyword, [value]) for value in {one.file.headers[keyword] for one in same}}
        wrong = sorted({one.k for one in same if one.k is not None and digests[one.file.headers[keyword]] != wanted})
        where = f" in {_numbers(wrong)}" if 0 < len(wrong) < manifest.shape[0] else ""
        yield Discrepancy("header", f"{keyword} is not the signed one{where}.", tuple(wrong))
    images = [one for one in same if one.k in signed.records]
    wrong = sorted({one.k for one in images if key.image(one.file.headers) != signed.records[one.k].image})
    if wrong:
        text = f"One of {', '.join(IMAGE_KEYWORDS)} is not the signed one in {_numbers(wrong)}."
        yield Discrepancy("header", text, tuple(wrong))


def _numbers(slices: Iterable[int]) -> str:
    """Slices as people write them: "slice 4", "slices 4, 7-9"."""
    ranges: list[list[int]] = []
    for k in sorted(slices):
        if ranges and k == ranges[-1][1] + 1:
            ranges[-1][1] = k
        else:
            ranges.append([k, k])
    words = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges]
    text = ", ".join(words[:8]) + (" ..." if len(words) > 8 else "")
    is_one = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"{'slice' if is_one else 'slices'} {text}"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
