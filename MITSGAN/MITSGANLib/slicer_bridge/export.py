"""Writing protected volumes, as a derived DICOM series or a file, sealed and signed, and restoring their originals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..errors import MITSGANError, OutputError
from ..files.atomic import atomic_file, atomic_folder
from ..files.storage import is_dicom_output, load_volume
from ..files.volume_files import SUFFIXES, format_of, read_file
from ..keys.key_files import Key
from ..save_protected import Proofs, remove_stale, save_protected
from ..scan.volume import CTVolume
from ..seal.sealing import Restored, restore
from ..watermark.pattern import watermark_key
from .operations import Run, matching_scans, run_here
from .origin import ScanOnDisk, dicom_files_of, file_behind, with_dicom_source
from .privacy import path_kept_from_log, paths_kept_from_log
from .volumes import is_simulated_attack, node_from_volume, require_ct, same_scan, source_of, volume_from_node

logger = logging.getLogger(__name__)


def exportable_files(
    protected_node: slicer.vtkMRMLScalarVolumeNode, source_node: slicer.vtkMRMLScalarVolumeNode | None = None
) -> tuple[Path, ...]:
    """The original DICOM files that an export takes its headers from.

    :param source_node: where they are, if the protected node does not know its source.
    :raises OutputError: with the reason, when the volume is not to be exported or did not come from DICOM.
    """
    if is_simulated_attack(protected_node):
        raise OutputError(
            _("A simulated attack is never exported as DICOM, so that it cannot pass for a patient's scan.")
        )
    return dicom_files_of(source_of(protected_node) or source_node or protected_node)


def export_dicom(
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    folder: str | Path,
    source_node: slicer.vtkMRMLScalarVolumeNode | None = None,
    proofs: Proofs | None = None,
    *,
    run: Run = run_here,
) -> Path:
    """Write a protected volume as a derived DICOM series that keeps the headers of its source.

    :param folder: an empty or new folder; in a folder with other files a new one is made.
    :param source_node: where the headers come from, if the protected node does not know its source.
    :param proofs: seals and signs it.
    :return: the folder that holds the series.
    """
    files, folder = exportable_files(protected_node, source_node), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        folder = free_folder(folder, "protected")
    volume = with_dicom_source(volume_from_node(protected_node), files)

    with path_kept_from_log(folder), new_output(folder) as new:
        run(lambda report: _save(volume, volume, new, proofs or Proofs(), report))
    logger.info("MITSGAN exported %s as DICOM", protected_node.GetID())
    return folder


def export_file(
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    path: str | Path,
    source_node: slicer.vtkMRMLScalarVolumeNode | None = None,
    proofs: Proofs | None = None,
    *,
    run: Run = run_here,
) -> None:
    """Write a protected volume as NRRD, NIfTI or MetaImage, by suffix; a file that exists is replaced.

    The seal restores the file that the source was loaded from, where it is still there; else the source's HU.

    :param source_node: what is sealed, if the protected node does not know its source.
    :param proofs: seals and signs it; seal and manifest lie beside it.
    :raises OutputError: the suffix is of no such format, or the file is the source's own.
    """
    source_node, path, proofs = source_of(protected_node) or source_node, Path(path), proofs or Proofs()
    if format_of(path) is None:
        raise OutputError(_("Give the file a name that ends in {suffixes}.").format(suffixes=", ".join(SUFFIXES)))
    own = file_behind(source_node)
    if own is not None and path.exists() and path.samefile(own):
        raise OutputError(_("The file of the CT volume itself is never replaced; choose another name."))
    source, protected = matching_scans(source_node, protected_node)

    with path_kept_from_log(path), new_output(path, overwrite=True) as new:

        def work(report: Any) -> None:
            original = require_ct(source)
            _save(require_ct(protected), _as_in_file(original, own) if proofs.key else original, new, proofs, report)

        run(work)
    remove_stale(path, proofs)
    logger.info("MITSGAN exported %s as a file", protected_node.GetID())


def restore_scan(
    scan: ScanOnDisk,
    destination: str | Path,
    key: Key,
    *,
    name: str,
    run: Run = run_here,
) -> tuple[Restored, slicer.vtkMRMLScalarVolumeNode]:
    """Restore the original of a sealed scan on the disk; what was restored, and a new node of this name that shows it.

    :param destination: a new folder for DICOM; a file for a file, which is replaced if it exists.
    :raises InputError: no seal, the wrong key, or the scan or the seal was changed.
    :raises OutputError: the destination cannot be written.
    """
    destination = Path(destination)
    words = {destination: _("the chosen place"), scan.path: _("the protected scan")}
    with paths_kept_from_log(words):
        if not scan.is_file and (destination.is_relative_to(scan.path) or scan.path.is_relative_to(destination)):
            raise OutputError(_("The original cannot lie within the protected scan; choose another folder."))
        if scan.is_file and destination.exists() and destination.samefile(scan.path):
            raise OutputError(_("The original cannot take the place of the protected scan; choose another name."))
        with new_output(destination, overwrite=scan.is_file) as new:

            def work(report: Any) -> tuple[Restored, CTVolume]:
                return restore(scan.path, new, key, series=scan.series, progress=report), load_volume(new)

            restored, volume = run(work)
    logger.info("MITSGAN restored a scan")
    return restored, node_from_volume(volume, name)


def free_folder(parent: Path, name: str) -> Path:
    """A folder in ``parent`` that does not exist: ``name-1`` or the next number that is free."""
    return next(path for number in range(1, 10000) if not (path := parent / f"{name}-{number}").exists())


def new_output(path: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """A path for work in the background to write to; the result appears at ``path`` when the block ends well.

    So it is the thread of the application that lets it appear, and whoever cancels before that finds nothing.
    """
    return (atomic_folder if is_dicom_output(path) else atomic_file)(path, overwrite=overwrite)


def _save(volume: CTVolume, original: CTVolume, path: Path, proofs: Proofs, report: Callable[..., None] | None) -> None:
    """Save a protected volume as DICOM or a file, sealed and signed.

    :param original: what the seal restores; for DICOM, its files.
    """
    key = proofs.key
    # Mostly the same key file made the watermark; with another's the seal is as exact, but longer.
    watermark = None if key is None or key.is_passphrase else watermark_key(key)

    def while_writing(done: int, total: int) -> None:
        if report:
            # How long sealing and signing take is not known beforehand.
            report(*((done, total) if done < total or not proofs else (0, 0)))

    save_protected(volume, path, proofs, original, watermark=watermark, progress=while_writing)


def _as_in_file(original: CTVolume, own: Path | None) -> CTVolume:
    """The original as its file has it, with the type of its values and its header, if that shows the same; or as it is.

    :param own: the file that it may have been loaded from.
    """
    if own is None:
        return original
    try:
        loaded = read_file(own)
    except MITSGANError:
        return original
    return loaded if same_scan(loaded, original) else original
