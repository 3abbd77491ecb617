"""Giving back the original of a sealed scan on the disk, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..errors import OutputError
from ..files.storage import load_volume
from ..keys.key_files import Key
from ..scan.volume import CTVolume
from ..seal.sealing import Restored, restore
from .export import new_output
from .operations import Compute, compute_here
from .privacy import paths_kept_from_log
from .scan_on_disk import ScanOnDisk
from .volumes import node_from_volume

logger = logging.getLogger(__name__)


def restore_scan(
    scan: ScanOnDisk,
    destination: str | Path,
    key: Key,
    *,
    name: str | None = None,
    progress: Callable[..., None] | None = None,
    compute: Compute = compute_here,
) -> tuple[Restored, slicer.vtkMRMLScalarVolumeNode | None]:
    """Restore the original of a sealed scan on the disk; what was restored, and its node.

    :param destination: a new folder for DICOM; a file for a file, which is replaced if it exists.
    :param name: of a new node with the original; None to load none.
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

            def work(report: Any) -> tuple[Restored, CTVolume | None]:
                restored = restore(scan.path, new, key, series=scan.series, progress=report)
                return restored, load_volume(new) if name is not None else None

            restored, volume = compute(work, progress)
    logger.info("MITSGAN restored a scan")
    return restored, node_from_volume(volume, name) if volume is not None else None
