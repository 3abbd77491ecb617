"""The manifest of a scan: what its signer vouches for, and its two forms, beside a file and inside DICOM.

The signed payload holds the scan's geometry, digests of its identifying headers, and the root of a hash tree with one
record for each slice: the digests of its 32x32 tiles, and of its own headers. Beside a file, the manifest has all
records; inside DICOM, each file has those of its slices and the proofs that they belong to the root.

Geometry is signed as numbers and not as a digest, because no rounding before a digest survives every format: NIfTI
keeps 32-bit numbers, DICOM decimal text. Voxels are digested in the order of the signed scan; to compare, a scan is
turned to that orientation first (see ``alignment``).

HU are int16 as ``MITSGANLib.files.storage`` reads them. A change of stored values that shows in no HU, as below half
a HU where Rescale Slope is a fraction, or beyond the range of int16, is not seen.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import InputError, reading
from ..keys.signing_keys import fingerprint, raw_public_key
from ..scan.volume import CTVolume
from .digests import (
    DIGEST_BYTES,
    SALT_BYTES,
    SERIES_KEYWORDS,
    TILE,
    HeaderDigests,
    HeaderKey,
    Headers,
    tile_digests,
    tile_grid,
)
from .envelope import (
    ManifestError,
    canonical_json,
    decode_bytes,
    open_envelope,
    parse_canonical_json,
    seal_payload,
    short_text,
)
from .merkle import merkle_paths, merkle_root, root_from_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SUFFIX = ".manifest.json"
LARGEST_FILE = 1 << 28
# Of a hostile manifest, so that its map does not fill the memory: ten times the longest scans.
LARGEST_SIDE, LARGEST_VOXELS = 1 << 16, 1 << 33


@dataclass(frozen=True)
class Manifest:
    """What is signed.

    ``shape`` is (slices, rows, columns); ``spacing`` (mm), ``origin`` (LPS mm) and ``direction`` (nine numbers, row by
    row) as in ``CTVolume``. ``headers`` is None for a scan that did not come from DICOM. ``root`` is that of the hash
    tree over the records of all slices. ``created`` is the signer's own clock.
    """

    created: str
    tool: str
    public_key: bytes
    salt: bytes
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    headers: HeaderDigests | None
    root: bytes

    @property
    def fingerprint(self) -> str:
        """The name of the key that signed (see ``keys.fingerprint``)."""
        return fingerprint(self.public_key)

    @property
    def tiles(self) -> tuple[int, int, int]:
        """(slices, tile rows, tile columns)."""
        return self.shape[0], *tile_grid(*self.shape[1:])

    def empty_volume(self) -> CTVolume:
        """A volume of 0 in the signed geometry; it takes no memory for its voxels."""
        return CTVolume(
            np.broadcast_to(np.int16(0), self.shape), self.spacing, self.origin, np.reshape(self.direction, (3, 3))
        )


@dataclass(frozen=True, eq=False)
class SliceRecord:
    """The leaf of one slice: ``tiles`` uint8 (tile rows, tile columns, 32); ``image`` 32 bytes, none without DICOM."""

    tiles: np.ndarray
    image: bytes = b""

    @property
    def leaf(self) -> bytes:
        """The bytes that the hash tree covers."""
        return self.tiles.tobytes() + self.image


@dataclass(frozen=True, eq=False)
class SignedManifest:
    """A manifest whose signature and records were checked. ``records`` may lack slices whose DICOM files are gone."""

    manifest: Manifest
    envelope: Mapping[str, Any]
    records: Mapping[int, SliceRecord]

    def document(self) -> bytes:
        """The form beside a file: all records.

        :raises ManifestError: records are missing.
        """
        if len(self.records) != self.manifest.shape[0]:
            raise ManifestError("The manifest lacks slices whose files are gone, so it cannot be written as a whole.")
        return self._encode(dict.fromkeys(range(self.manifest.shape[0]), ()))

    def shares(self, slices: Sequence[Sequence[int]]) -> list[bytes]:
        """The form inside DICOM: for each file, the records of the slices that it holds, with their proofs."""
        paths = merkle_paths([self.records[k].leaf for k in range(self.manifest.shape[0])])
        if len(slices) == 1:
            return [self.document()]
        return [self._encode({k: paths[k] for k in sorted(one)}) for one in slices]

    def _encode(self, paths: Mapping[int, Sequence[bytes]]) -> bytes:
        records = [
            {"index": k, "tiles": self.records[k].tiles.tobytes(), "image": self.records[k].image, "path": path}
            for k, path in paths.items()
        ]
        return canonical_json({"envelope": self.envelope, "slices": records})


def sign_volume(
    volume: CTVolume,
    key: Ed25519PrivateKey,
    salt: bytes,
    time: datetime.datetime,
    headers: Sequence[Headers] | None = None,
) -> SignedManifest:
    """Make and sign the manifest of a scan.

    :param salt: 32 random bytes, new for every manifest (``secrets.token_bytes``).
    :param time: the moment of signing, with a time zone.
    :param headers: the headers of each slice's image (``digests.read_headers``), for a scan from DICOM.
    """
    header_key = HeaderKey(salt, headers[0]["StudyInstanceUID"]) if headers else None
    records = {
        k: SliceRecord(tile_digests(hu, salt), header_key.image(headers[k]) if header_key else b"")
        for k, hu in enumerate(volume.hu)
    }
    manifest = Manifest(
        created=time.isoformat(timespec="seconds"),
        tool=f"MITSGAN {__version__}",
        public_key=raw_public_key(key.public_key()),
        salt=salt,
        shape=volume.shape,
        spacing=volume.spacing,
        origin=volume.origin,
        direction=tuple(volume.direction.ravel().tolist()),
        headers=header_key.headers(headers) if header_key else None,
        root=merkle_root([record.leaf for record in records.values()]),
    )
    payload = canonical_json({**dataclasses.asdict(manifest), "tile": TILE})
    return SignedManifest(manifest, seal_payload(payload, key), records)


def read_document(data: bytes) -> SignedManifest:
    """A manifest from either form, all of it checked: form, signature, and that its records are the signed ones.

    :raises ManifestError: anything in it is not as it was signed.
    """
    document = parse_canonical_json(data)
    match document:
        case {"envelope": dict(envelope), "slices": [*entries]} if len(document) == 2 and entries:
            manifest = _manifest(envelope)
        case _:
            raise ManifestError(
                "This is no manifest of a scan; give the one that was written when the scan was signed."
            )
    records, paths = {}, {}
    for entry in entries:
        index, record, path = _record(entry, manifest)
        if index in records:
            raise ManifestError("The manifest was altered: it names a slice twice.")
        records[index], paths[index] = record, path
    if len(records) == manifest.shape[0]:
        is_signed = merkle_root([records[k].leaf for k in sorted(records)]) == manifest.root and not any(paths.values())
    else:
        is_signed = all(
            root_from_path(records[k].leaf, k, manifest.shape[0], paths[k]) == manifest.root for k in records
        )
    if not is_signed:
        raise ManifestError("The manifest was altered: its digests are not the signed ones.")
    return SignedManifest(manifest, envelope, records)


def merge(shares: Iterable[SignedManifest]) -> SignedManifest:
    """One manifest of the shares of several files.

    :param shares: shares with equal envelopes.
    """
    shares = list(shares)
    records = {k: record for share in shares for k, record in share.records.items()}
    return SignedManifest(shares[0].manifest, shares[0].envelope, records)


def manifest_path(path: Path) -> Path:
    """Where the manifest of a file or folder lies: ``scan.nrrd.manifest.json`` beside ``scan.nrrd``."""
    path = path.absolute()
    return path.with_name(path.name + SUFFIX)


def read_manifest_file(path: Path) -> SignedManifest:
    """Read the manifest in a file; see :func:`read_document`.

    :raises InputError: the file is missing or unreadable.
    :raises ManifestError: its content is not as it was signed.
    """
    with reading(path, "check the name of the manifest"):
        if path.stat().st_size > LARGEST_FILE:
            raise ManifestError("is no manifest: it is too large", path=path)
        data = path.read_bytes()
    return read_document(data)


def _manifest(envelope: dict[str, Any]) -> Manifest:
    """The manifest of an envelope.

    :raises ManifestError: its signature is wrong, or the payload is of another kind.
    """
    try:
        values = open_envelope(envelope)
        if values.get("tile") != TILE:
            raise ManifestError("This is no manifest of a scan, or one of another version of MITSGAN.")
        manifest = Manifest(
            created=short_text(values["created"]),
            tool=short_text(values["tool"]),
            public_key=decode_bytes(values["public_key"]),
            salt=decode_bytes(values["salt"], SALT_BYTES),
            shape=_shape(values["shape"]),
            spacing=tuple(map(float, values["spacing"])),
            origin=tuple(map(float, values["origin"])),
            direction=tuple(map(float, values["direction"])),
            headers=_headers(values["headers"]),
            root=decode_bytes(values["root"], DIGEST_BYTES),
        )
        manifest.empty_volume()  # refuses a geometry that is none
    except ManifestError:
        raise
    except (InputError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ManifestError("The manifest is damaged: a part of it is missing or of the wrong kind.") from error
    return manifest


def _headers(values: Any) -> HeaderDigests | None:
    if values is None:
        return None
    series = {keyword: decode_bytes(values["series"][keyword], DIGEST_BYTES) for keyword in SERIES_KEYWORDS}
    return HeaderDigests(decode_bytes(values["study"], DIGEST_BYTES), series)


def _record(entry: Any, manifest: Manifest) -> tuple[int, SliceRecord, tuple[bytes, ...]]:
    grid = (*manifest.tiles[1:], DIGEST_BYTES)
    match entry:
        case {"index": int(index), "tiles": tiles, "image": image, "path": [*path]} if len(entry) == 4:
            digests = np.frombuffer(decode_bytes(tiles, int(np.prod(grid))), np.uint8).reshape(grid)
            record = SliceRecord(digests, decode_bytes(image, DIGEST_BYTES if manifest.headers else 0))
            if 0 <= index < manifest.shape[0]:
                return index, record, tuple(decode_bytes(sibling, DIGEST_BYTES) for sibling in path)
    raise ManifestError("The manifest is damaged: the record of a slice is unreadable.")


def _shape(values: Any) -> tuple[int, int, int]:
    slices, rows, columns = values
    if not all(isinstance(size, int) and 0 < size <= LARGEST_SIDE for size in values):
        raise ValueError("sizes must be whole numbers")
    if slices * rows * columns > LARGEST_VOXELS:
        raise ValueError("more voxels than a scan has")
    return slices, rows, columns
