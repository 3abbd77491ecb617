"""One Ed25519 manifest of a whole study: which instances of which series are intact, changed, missing or extra.

It lies beside the study and touches no file. It comes in two kinds. One *covers all*: of every instance the public
elements and the decoded pixels, found by SOP Instance UID. Lossless compression of CT is no change, unlike to DICOM's
own signatures. The other *covers pixels* alone, with their place in the patient: for copies that are de-identified
later, where UIDs, names, dates, private elements and signatures are gone. It holds nothing of them.

As in the manifest of a series (``digests``), all digests are keyed: by the salt, and where headers are covered by the
Study Instance UID, too. Which elements are covered stands in the manifest, so elements added later are no change.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import secrets
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import InputError, reading
from ..files.atomic import atomic_file
from ..files.dicom.headers import Header, damage_named, quiet_pydicom, read_dataset
from ..files.dicom.pixels import decode_stored
from ..files.dicom.series import DicomScan, image_problem
from ..keys.signing_keys import fingerprint, raw_public_key
from ..runtime.progress import Progress, counted
from .contents import loose_slices
from .dicom.byte_stream import PIXEL_DATA, byte_stream
from .dicom.exam import exam_documents, public_tags, read_exam, scan_study, some_names
from .digests import DIGEST_BYTES, SALT_BYTES, HeaderKey, keyed_digest
from .envelope import (
    STUDY_TYPE,
    ManifestError,
    canonical_json,
    decode_bytes,
    open_envelope,
    parse_canonical_json,
    seal_payload,
    short_text,
)
from .manifest import LARGEST_FILE, manifest_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from pydicom import Dataset

ALL, PIXELS = "all", "pixels"
KINDS = ("intact", "changed", "missing", "extra")

_PIXEL_GROUP = 0x7FE0
_MOST_STUDIES = 8  # of a hostile folder: each costs a stretched key


@dataclass(frozen=True)
class Instance:
    """One instance, or one slice where pixels alone are covered.

    ``uid`` is the digest of its SOP Instance UID, ``place`` that of its place in the patient; empty where the other is
    used. ``tags`` is the number of the list of elements that ``digest`` covers.
    """

    uid: bytes
    place: bytes
    digest: bytes
    tags: int = 0


@dataclass(frozen=True)
class StudyManifest:
    """What is signed of a study. ``study`` is the digest of its UID, empty where pixels alone are covered."""

    created: str
    tool: str
    public_key: bytes
    salt: bytes
    covers: str
    study: bytes
    tag_lists: tuple[tuple[int, ...], ...]
    series: tuple[tuple[Instance, ...], ...]

    @property
    def fingerprint(self) -> str:
        """The name of the key that signed."""
        return fingerprint(self.public_key)


@dataclass(frozen=True)
class SeriesResult:
    """The instances of a signed series by what became of them: names of files, or of places for what is missing."""

    name: str
    intact: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Whether nothing of it differs."""
        return not (self.changed or self.missing or self.extra)


@dataclass(frozen=True)
class StudyVerification:
    """A study against its manifest. ``extra`` are files of no signed series. Nothing here quotes a header."""

    manifest: StudyManifest
    series: tuple[SeriesResult, ...]
    extra: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Whether nothing differs from what was signed."""
        return not self.extra and all(one.is_intact for one in self.series)

    def summary(self) -> list[str]:
        """What to tell a person."""
        lines = []
        for one in self.series:
            counts = [f"{len(names)} {kind}" for kind in KINDS if (names := getattr(one, kind)) or kind == "intact"]
            lines.append(f"{one.name}: {', '.join(counts)}")
            for kind in KINDS[1:]:
                lines += [f"  {kind}: {text}" for text in some_names(getattr(one, kind))]
        if self.extra:
            lines.append(f"in no signed series: {len(self.extra)} extra")
            lines += [f"  extra: {text}" for text in some_names(self.extra)]
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "intact": self.is_intact,
            "covers": self.manifest.covers,
            "signed": self.manifest.created,
            "signer": self.manifest.fingerprint,
            "series": [dataclasses.asdict(one) for one in self.series],
            "extra": list(self.extra),
            "notes": list(self.notes),
        }


def sign_study(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    key: Ed25519PrivateKey,
    *,
    pixels_only: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[StudyManifest, Path]:
    """Sign a study. No file of it is changed.

    :param output: the file of the manifest; None puts it beside the study, as ``NAME.manifest.json``.
    :param pixels_only: cover pixels and geometry of CT alone, for copies that will be de-identified.
    :raises InputError: as ``dicom.exam.read_exam``.
    :raises OutputError: the output exists without ``overwrite``, or cannot be written.
    """
    exam = read_exam(path)
    salt = secrets.token_bytes(SALT_BYTES)
    lists: dict[tuple[int, ...], int] = {}
    series: list[list[Instance]] = [[] for _ in exam.series]
    header_key = None if pixels_only else HeaderKey(salt, exam.instances[0].text("StudyInstanceUID"))
    numbered = [(number, header) for number, headers in enumerate(exam.series) for header in headers]
    for number, header in counted(numbered, progress):
        if header_key is None:
            series[number] += _slices(header, salt)
            continue
        with quiet_pydicom():
            dataset = read_dataset(header.path)
            tags = _covered_tags(dataset)
            digest = header_key.instance(_pieces(header, dataset, tags))
        uid = header_key.uid(header.text("SOPInstanceUID"))
        series[number].append(Instance(uid, b"", digest, lists.setdefault(tags, len(lists))))
    manifest = StudyManifest(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tool=f"MITSGAN {__version__}",
        public_key=raw_public_key(key.public_key()),
        salt=salt,
        covers=PIXELS if pixels_only else ALL,
        study=header_key.study if header_key else b"",
        tag_lists=tuple(lists),
        series=tuple(map(tuple, filter(None, series))),
    )
    payload = {**vars(manifest), "series": [list(map(dataclasses.astuple, one)) for one in manifest.series]}
    output = manifest_path(Path(path)) if output is None else Path(output)
    with atomic_file(output, overwrite=overwrite) as temporary:
        temporary.write_bytes(canonical_json({"envelope": seal_payload(canonical_json(payload), key, STUDY_TYPE)}))
    return manifest, output


def find_study_manifest(path: Path) -> StudyManifest | None:
    """The manifest of a study in a file, or beside a folder; None if there is none, or one of a single series.

    :raises InputError: it cannot be read.
    :raises ManifestError: it was altered.
    """
    file = manifest_path(path) if path.is_dir() else path
    return read_study_manifest(file.read_bytes()) if is_study_manifest(file) else None


def is_study_manifest(file: Path) -> bool:
    """Whether a file is a manifest of a study, altered or not, rather than one of a series.

    :raises InputError: it cannot be read.
    """
    with reading(file):
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            return False
        return b'"' + STUDY_TYPE.encode() + b'"' in file.read_bytes()


def read_study_manifest(data: bytes) -> StudyManifest:
    """A manifest of a study, its form and its signature checked.

    :raises ManifestError: anything in it is not as it was signed.
    """
    document = parse_canonical_json(data)
    envelope = document.get("envelope") if isinstance(document, dict) and len(document) == 1 else None
    if not isinstance(envelope, dict):
        raise ManifestError("This is no manifest of a study; give the one that was written when it was signed.")
    try:
        values = open_envelope(envelope, STUDY_TYPE)
        covers = values["covers"]
        if covers not in (ALL, PIXELS):
            raise ManifestError("This manifest is one of a newer version of MITSGAN.")
        sizes = (DIGEST_BYTES, 0) if covers == ALL else (0, DIGEST_BYTES)
        manifest = StudyManifest(
            created=short_text(values["created"]),
            tool=short_text(values["tool"]),
            public_key=decode_bytes(values["public_key"]),
            salt=decode_bytes(values["salt"], SALT_BYTES),
            covers=covers,
            study=decode_bytes(values["study"], sizes[0]),
            tag_lists=tuple(tuple(map(_whole, tags)) for tags in values["tag_lists"]),
            series=tuple(tuple(_instance(one, *sizes) for one in instances) for instances in values["series"]),
        )
        numbers = {one.tags for instances in manifest.series for one in instances}
        if covers == ALL and max(numbers, default=0) >= len(manifest.tag_lists):
            raise ValueError("no such list")
    except ManifestError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ManifestError("The manifest is damaged: a part of it is missing or of the wrong kind.") from error
    return manifest


def verify_study(
    path: str | os.PathLike[str], manifest: StudyManifest, progress: Progress | None = None
) -> StudyVerification:
    """Compare a study with its manifest.

    :raises InputError: the folder cannot be read, or holds no DICOM.
    """
    scan = scan_study(path)
    documents = set(exam_documents(scan))
    headers = [header for one in scan.series for header in one.headers if header.path not in documents]
    if manifest.covers == PIXELS:
        return _verify_pixels(scan, manifest, headers, progress)
    headers += scan.others
    studies = Counter(header.text("StudyInstanceUID") for header in headers)
    key = next(
        (
            key
            for study, _ in studies.most_common(_MOST_STUDIES)
            if (key := HeaderKey(manifest.salt, study)).study == manifest.study
        ),
        None,
    )
    by_uid: dict[bytes, list[Header]] = defaultdict(list)
    for header in headers:
        by_uid[key.uid(header.text("SOPInstanceUID")) if key else b""].append(header)
    notes, added = [], set()
    if key is None:
        notes.append("The Study Instance UID is not the signed one, so no instance could be compared.")
    found: list[dict[str, list[str]]] = [defaultdict(list) for _ in manifest.series]
    for number, text, one in counted(_numbered(manifest, "instance"), progress):
        candidates = by_uid.pop(one.uid, [])
        if not candidates:
            found[number]["missing"].append(text)
            continue
        # Of several under one UID the one that was signed is the instance, and the others are extra.
        intact = [header for header in candidates if _is_signed(header, key, one, manifest, added)]
        best = (intact or candidates)[0]
        found[number]["intact" if intact else "changed"].append(scan.name(best.path))
        found[number]["extra"] += [scan.name(header.path) for header in candidates if header is not best]
    extra = [header.path for left in by_uid.values() for header in left] + [*scan.damaged, *scan.without_series]
    if added:
        notes.append(f"Elements were added that the manifest does not cover: {', '.join(sorted(added))}.")
    return _verification(manifest, found, map(scan.name, extra), notes)


def _verify_pixels(
    scan: DicomScan, manifest: StudyManifest, headers: Sequence[Header], progress: Progress | None
) -> StudyVerification:
    """Find slices by what they show and where, whatever their series: a de-identified copy has other UIDs."""
    other = 0
    unreadable = [scan.name(file) for file in scan.damaged]
    left: dict[bytes, list[tuple[bytes, str]]] = defaultdict(list)
    for header in counted(headers, progress):
        try:
            slices = list(_slices(header, manifest.salt))
        except InputError:
            unreadable.append(scan.name(header.path))
            continue
        for one in slices:
            left[one.place].append((one.digest, scan.name(header.path)))
        other += not slices
    found: list[dict[str, list[str]]] = [defaultdict(list) for _ in manifest.series]
    unmatched = []
    for number, text, one in _numbered(manifest, "slice"):
        match = next((pair for pair in left[one.place] if pair[0] == one.digest), None)
        if match:
            left[one.place].remove(match)
            found[number]["intact"].append(match[1])
        else:
            unmatched.append((number, text, one))
    for number, text, one in unmatched:
        if left[one.place]:
            found[number]["changed"].append(left[one.place].pop(0)[1])
        else:
            found[number]["missing"].append(text)
    extra = [text for pairs in left.values() for _, text in pairs]
    notes = ["Headers were not compared: the manifest covers pixels and geometry of CT alone."]
    if other:
        notes.append(f"Not covered, since they are no CT images: {other} {'file' if other == 1 else 'files'}.")
    return _verification(manifest, found, [*extra, *unreadable], notes)


def _numbered(manifest: StudyManifest, word: str) -> list[tuple[int, str, Instance]]:
    """Each signed instance with the number of its series and what it is called if it is missing."""
    return [
        (number, f"{word} {k} of {len(instances)}", one)
        for number, instances in enumerate(manifest.series)
        for k, one in enumerate(instances, 1)
    ]


def _verification(
    manifest: StudyManifest, found: Sequence[dict[str, list[str]]], extra: Iterable[str], notes: Sequence[str]
) -> StudyVerification:
    results = (
        SeriesResult(f"series {number} of {len(found)}", **{kind: tuple(sorted(one[kind])) for kind in KINDS})
        for number, one in enumerate(found, 1)
    )
    return StudyVerification(manifest, tuple(results), tuple(sorted(extra)), tuple(notes))


def _is_signed(header: Header, key: HeaderKey, one: Instance, manifest: StudyManifest, added: set[str]) -> bool:
    """Whether a file is what was signed; adds what the manifest does not cover of it to ``added``."""
    from pydicom.datadict import keyword_for_tag

    tags = manifest.tag_lists[one.tags]
    with quiet_pydicom():
        try:
            dataset = read_dataset(header.path)
            if key.instance(_pieces(header, dataset, tags)) != one.digest:
                return False
        except InputError:
            return False
        more = set(_covered_tags(dataset)).difference(tags)
    added |= {keyword_for_tag(tag) or "a retired one" for tag in more}
    return True


def _covered_tags(dataset: Dataset) -> tuple[int, ...]:
    """The elements that a manifest covers as they are; of pixels it covers what they decode to."""
    return tuple(tag for tag in public_tags(dataset) if tag >> 16 != _PIXEL_GROUP)


def _pieces(header: Header, dataset: Dataset, tags: Sequence[int]) -> Iterator[bytes]:
    """What a manifest that covers all holds fast of an instance.

    :raises InputError: its pixels cannot be decoded.
    """
    with damage_named(header.path):
        yield from byte_stream(dataset, tags)
        yield b"pixels"
        if PIXEL_DATA in dataset and image_problem(header) is None:
            stored = decode_stored(dataset, header.path)
            yield stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        else:
            pixels = [tag for tag in dataset.keys() if tag.group == _PIXEL_GROUP]  # noqa: SIM118 - tags, not elements
            yield from byte_stream(dataset, pixels, dataset.file_meta.TransferSyntaxUID.is_encapsulated)


def _slices(header: Header, salt: bytes) -> Iterator[Instance]:
    """The slices of a CT image as a manifest of pixels has them; none of anything else.

    :raises InputError: it is damaged.
    """
    if not header.is_ct_image or image_problem(header) is not None:
        return
    with damage_named(header.path):
        slices = loose_slices(header)
    for loose in slices:
        volume = loose.volume
        # In micrometers and millionths: what decimal texts say, and no rounding of theirs.
        lengths = [round(1000 * value) for value in (*volume.origin, *volume.spacing[:2])]
        cosines = [round(1e6 * value) for value in volume.direction[:, :2].ravel()]
        place = struct.pack("<13q", *volume.shape[1:], *lengths, *cosines)
        pixels = volume.hu.astype("<i2", copy=False).tobytes()
        yield Instance(
            b"",
            keyed_digest(salt, b"MITSGAN place v1", [place]),
            keyed_digest(salt, b"MITSGAN pixels v1", [place[:16], pixels]),
        )


def _instance(values: Any, uid_bytes: int, place_bytes: int) -> Instance:
    uid, place, digest, tags = values
    return Instance(
        decode_bytes(uid, uid_bytes), decode_bytes(place, place_bytes), decode_bytes(digest, DIGEST_BYTES), _whole(tags)
    )


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError("no whole number")
    return value
