"""A protected scan written with its seal, and the original restored from both.

In DICOM the seal travels in the private block of the files themselves, a share in each; beside a file it is a second
file, ``scan.nrrd.seal`` beside ``scan.nrrd``.

The seal holds, encrypted, the original headers with all that identifies the patient in them. So whoever has the key
learns what the original said, even where headers of the protected scan were changed since. De-identification has to
happen before protection, or has to take the seal away (PS3.15 removes private elements).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LEAVE_SEAL_OUT, LEAVE_SERIES_OUT, NAME_SEAL, InputError, OutputError, reading
from ..files import volume_files
from ..files.atomic import atomic_file, atomic_folder, refuse_existing_file, refuse_existing_folder
from ..files.dicom.headers import quiet_pydicom, read_dataset, read_encoded
from ..files.dicom.private_block import cut_shares, entry_changes, get_entry, join_shares
from ..files.dicom.series import choose_series, scan_dicom
from ..files.dicom.write import refuse_foreign_files, write_series
from ..files.storage import check_output, is_dicom_output
from ..keys.key_files import Key, ScryptCost, require_cryptography
from ..runtime.progress import Progress
from ..scan.volume import PROTECTION, CTVolume, VolumeWarning
from ..watermark.embedding import recorded_watermark
from ..watermark.pattern import OPEN_KEY, ScanSigns, WatermarkKey
from . import dicom_original, file_original
from .container import close_container, open_container, read_identity
from .dicom_original import StoredSeries
from .file_original import StoredImage

SEAL_SUFFIX = ".seal"
ENTRY = "seal"

_CHANGED = (
    "The scan is not as it was when it was sealed: its voxels or its geometry were changed since. The original cannot "
    "be restored from it; get the protected scan again from its source."
)


@dataclass(frozen=True)
class Restored:
    """What was restored.

    :param format: "dicom", "nrrd", "nifti" or "metaimage".
    :param sha256: over the bytes of the files in slice order (DICOM), else over the values as little-endian numbers.
    :param warnings: what a reader of the restored scan should know.
    """

    format: str
    files: int
    sha256: str
    warnings: tuple[VolumeWarning, ...] = ()


def save_sealed(
    protected: CTVolume,
    original: CTVolume | None,
    path: str | os.PathLike[str],
    key: Key,
    *,
    watermark: WatermarkKey | None = None,
    overwrite: bool = False,
    cost: ScryptCost | None = None,
    progress: Progress | None = None,
) -> tuple[VolumeWarning, ...]:
    """Save a protected volume as :func:`storage.save_volume` does, with a seal that restores the original.

    What is written is restored once, in memory, before it appears at ``path``: what cannot be restored never appears.

    :param original: the volume that was protected; not needed for DICOM. Its DICOM or other file must still be there.
    :param watermark: key of a watermark that the protected volume carries, which makes the seal shorter; not needed for
        the open one.
    :param cost: of guessing a passphrase; see :class:`ScryptCost`.
    :returns: what the output does not show exactly as the volume (DICOM only).
    :raises OutputError, InputError: as ``storage.save_volume``.
    :raises DependencyError: the package cryptography is missing.
    """
    path = Path(path)
    check_sealed_output(protected, path, overwrite=overwrite)
    if not is_dicom_output(path):
        with atomic_file(path, overwrite=overwrite) as temporary:
            volume_files.write_file(protected, temporary, progress=progress)
            # That the voxels are the same was seen when they were written; reading them again would take more memory.
            header = volume_files.read_file_header(temporary)
            written = CTVolume(protected.hu, header.spacing, header.origin, header.direction)
            payload = file_original.describe_image(StoredImage.of(original), written, _record(protected, watermark))
            file_original.check_payload(payload, written)
            container = close_container(payload, file_original.identity(written), key, cost=cost)
            seal_file(temporary).write_bytes(container)
        return ()
    with atomic_folder(path, overwrite=overwrite) as temporary:
        warnings = write_series(protected, temporary, progress=progress)
        originals, files = map(Path, protected.provenance.dicom_files), sorted(temporary.iterdir())
        series = StoredSeries(files)
        payload = dicom_original.describe_series(originals, series, _record(protected, watermark))
        for _ in dicom_original.restored_files(payload, series):
            pass
        container = close_container(payload, dicom_original.identity(series), key, cost=cost)
        for file, share in zip(files, cut_shares(container, len(files)), strict=True):
            encoded = read_encoded(file)
            with quiet_pydicom():
                changes = entry_changes(encoded.dataset, ENTRY, share)
                with file.open("wb") as stream:
                    encoded.write(stream, changes)
    return warnings


def check_sealed_output(volume: CTVolume, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse at once, before long work, what :func:`save_sealed` would refuse for this volume and this destination."""
    require_cryptography()
    path = Path(path)
    check_output(volume, path, overwrite=overwrite)
    if not is_dicom_output(path):
        refuse_existing_file(seal_file(path), overwrite)


def restore(
    path: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    key: Key,
    *,
    series: str | None = None,
    seal: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Restore the original of a sealed, protected scan.

    DICOM gives the original files, named in slice order (IM0001.dcm ...), every byte of them, original UIDs included;
    those that were compressed come uncompressed. A file gives a file of the same values, type, place and history.
    Nothing is written unless seal, key and scan belong together.

    :param path: a DICOM folder, or a NRRD, NIfTI or MetaImage file.
    :param destination: a folder for DICOM; a file name for the others, of any of these formats.
    :param series: Series Instance UID, where a folder holds several.
    :param seal: the seal of a file, where it does not lie beside it.
    :raises InputError: no seal, the wrong key, or the scan or the seal was changed.
    :raises OutputError: the destination is of the other kind, exists, or cannot be written.
    """
    require_cryptography()
    path, destination = Path(path), Path(destination)
    is_file = path.is_file() and volume_files.format_of(path) is not None
    if is_file and series is not None:
        raise InputError("is one volume and has no series to choose", path=path, hint=LEAVE_SERIES_OUT)
    if not is_file and seal is not None:
        raise InputError("The seal of a DICOM series is in its files", hint=LEAVE_SEAL_OUT)
    if is_file and is_dicom_output(destination):
        raise OutputError(
            "is a file, so its original is restored as one", path=path, hint="give a name such as restored.nrrd"
        )
    if not is_file and not is_dicom_output(destination):
        raise OutputError("is DICOM, so its original is restored as DICOM", path=path, hint="give the name of a folder")
    new, old = destination.resolve(), path.resolve()
    if new == old or new in old.parents or old in new.parents:
        raise OutputError(
            "is, holds or lies in the protected scan itself", path=destination, hint="choose another place"
        )
    if is_file:
        refuse_existing_file(destination, overwrite)
        return _restore_file(path, destination, key, Path(seal) if seal else seal_file(path), overwrite)
    refuse_existing_folder(destination, overwrite)
    refuse_foreign_files(destination)
    return _restore_series(path, destination, key, series, overwrite, progress)


def seal_file(path: Path) -> Path:
    """Where the seal of a NRRD, NIfTI or MetaImage file lies."""
    return path.with_name(path.name + SEAL_SUFFIX)


def read_seal(paths: list[Path]) -> tuple[bytes, list[Path]]:
    """Read what the private blocks of a series' files hold of its seal.

    :returns: the container, and the files in the order in which they were sealed.
    :raises InputError: files of the series are missing, hold no seal, or are of several series.
    """
    shares = [get_entry(read_dataset(path), ENTRY) for path in paths]
    if None in shares:
        raise InputError(
            "holds no seal: it was protected without a key, or private elements were removed on the way. Without the "
            "seal the original cannot be restored",
            path=paths[shares.index(None)] if any(shares) else paths[0].parent,
        )
    container, places = join_shares(shares)
    return container, [path for _, path in sorted(zip(places, paths, strict=True))]


def _record(volume: CTVolume, key: WatermarkKey | None) -> dict[str, Any] | None:
    """What the signs of a protected volume derive from; None where it has no watermark, or its key is not known.

    :param key: of a watermark that is not the open one.
    """
    step = volume.provenance.last(PROTECTION)
    used = {"open": OPEN_KEY, "keyed": key}.get(str(step.parameters.get("watermark") if step else None))
    if used is None:
        return None
    recorded = recorded_watermark(volume, used)
    return ScanSigns.of(volume, recorded.key if recorded else used).to_dict()


def _restore_file(path: Path, destination: Path, key: Key, seal: Path, overwrite: bool) -> Restored:
    with reading(seal):
        if not seal.exists():
            what = "is not there: the scan was protected without a key, or its seal was left behind"
            raise InputError(what, path=seal, hint=NAME_SEAL)
        container = seal.read_bytes()
    _require_kind(read_identity(container), file_original.KIND)
    volume = volume_files.read_file(path)
    sealed, payload = open_container(container, key)
    if not file_original.is_same(volume, sealed):
        raise InputError(_CHANGED)
    image = file_original.restored_image(payload, volume)
    with atomic_file(destination, overwrite=overwrite) as temporary:
        image.write(temporary, destination)
    digest = hashlib.sha256(image.values.astype(image.values.dtype.newbyteorder("<"), copy=False).tobytes())
    return Restored(volume_files.format_of(destination).name, 1, digest.hexdigest())


def _restore_series(
    path: Path, destination: Path, key: Key, series: str | None, overwrite: bool, progress: Progress | None
) -> Restored:
    found = choose_series(scan_dicom(path, progress), series)
    container, paths = read_seal([header.path for header in found.images])
    _require_kind(read_identity(container), dicom_original.KIND)
    protected = StoredSeries(paths)
    sealed, payload = open_container(container, key)
    if dicom_original.identity(protected) != sealed:
        raise InputError(_CHANGED)
    digits, digest, first = max(4, len(str(len(paths)))), hashlib.sha256(), b""
    with atomic_folder(destination, overwrite=overwrite) as temporary:
        for number, data in enumerate(dicom_original.restored_files(payload, protected), start=1):
            (temporary / f"IM{number:0{digits}d}.dcm").write_bytes(data)
            digest.update(data)
            first = first or data
    return Restored("dicom", len(paths), digest.hexdigest(), dicom_original.correction_warnings(paths[0], first))


def _require_kind(identity: Mapping[str, Any], kind: str) -> None:
    if identity.get("kind") != kind:
        raise InputError(
            "The seal belongs to a scan in another format; give the scan as it was written when protected."
        )
