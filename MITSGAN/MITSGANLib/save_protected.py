"""A protected scan saved, sealed and signed in one act: all of it appears at its destination, or nothing does."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from .files.atomic import refuse_existing_file
from .files.storage import check_output, is_dicom_output, save_volume
from .keys.key_files import Key
from .runtime.progress import Progress
from .scan.volume import CTVolume, VolumeWarning
from .seal.sealing import check_sealed_output, save_sealed, seal_file
from .signature.manifest import manifest_path
from .signature.signing import Signers, signed_output
from .watermark.pattern import WatermarkKey


@dataclass(frozen=True)
class Proofs:
    """What is added to a protected scan: a seal with ``key``, a signature by ``signers``, both or neither."""

    key: Key | None = None
    signers: Signers | None = None

    def __bool__(self) -> bool:
        return self.key is not None or self.signers is not None

    def companions(self, path: Path) -> tuple[list[Path], list[Path]]:
        """The places beside a volume file where its seal and its manifest lie: those it has, and those it lacks."""
        has, lacks = [], []
        for place, proof in ((seal_file(path), self.key), (manifest_path(path), self.signers)):
            (lacks if proof is None else has).append(place)
        return has, lacks


def check_protected_output(
    volume: CTVolume, path: str | os.PathLike[str], proofs: Proofs, *, overwrite: bool = False
) -> None:
    """Refuse at once, before long work, what :func:`save_protected` would refuse."""
    (check_output if proofs.key is None else check_sealed_output)(volume, path, overwrite=overwrite)
    if proofs.signers is not None and not is_dicom_output(path):
        refuse_existing_file(manifest_path(Path(path)), overwrite)


def save_protected(
    protected: CTVolume,
    path: str | os.PathLike[str],
    proofs: Proofs,
    original: CTVolume | None = None,
    *,
    watermark: WatermarkKey | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[VolumeWarning, ...]:
    """Save a protected volume as :func:`storage.save_volume` does, sealed and signed.

    A seal or a manifest of a file that is replaced goes with it.

    :param original: what the seal restores; its files must still be there. Needed with a key, and not for DICOM.
    :param watermark: key of a watermark that the volume carries; see :func:`sealing.save_sealed`.
    :returns: what the output does not show exactly as the volume (DICOM only).
    :raises OutputError, InputError, DependencyError: as :func:`sealing.save_sealed`.
    """
    path, signers = Path(path), proofs.signers
    with nullcontext(path) if signers is None else signed_output(path, signers, overwrite=overwrite) as place:
        options = {"overwrite": overwrite and signers is None, "progress": progress}
        if proofs.key is None:
            warnings = save_volume(protected, place, **options)
        else:
            warnings = save_sealed(protected, original, place, proofs.key, watermark=watermark, **options)
    if overwrite and not is_dicom_output(path):
        remove_stale(path, proofs)
    return warnings


def remove_stale(path: Path, proofs: Proofs) -> None:
    """Remove a seal and a manifest of the file that one saved with ``proofs`` has replaced."""
    for stale in proofs.companions(path)[1]:
        stale.unlink(missing_ok=True)
