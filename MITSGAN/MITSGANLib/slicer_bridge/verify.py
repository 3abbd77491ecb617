"""Telling whether a signed scan on the disk is as it was signed, and showing what was changed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from ..errors import InputError
from ..scan.volume import CTVolume
from ..signature.contents import read_contents_to_verify
from ..signature.verification import Verification, find_manifest, verify_scan
from .change_map import change_map_node, show_changes, signature_legend
from .dicom_source import reversed_slices
from .key_files import public_key_identity
from .operations import Compute, compute_here
from .privacy import paths_kept_from_log
from .scan_on_disk import ScanOnDisk
from .volumes import node_from_volume, same_scan, volume_from_node

if TYPE_CHECKING:
    from ..signature.dicom.digital_signature import ImageSignatures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SignatureCheck:
    """What became of checking a scan on disk.

    :param volume: the scan, where its slices form one.
    :param verification: against its manifest; None where only DICOM's own signatures are there.
    :param signatures: DICOM's own.
    :param is_signer_known: whether a public key that was given is the signer's.
    """

    volume: CTVolume | None
    verification: Verification | None
    signatures: ImageSignatures
    is_signer_known: bool

    @property
    def is_intact(self) -> bool:
        """Whether nothing differs from what was signed, by the manifest where there is one."""
        if self.verification is None:
            return self.signatures.all_valid
        return self.verification.is_intact and not self.signatures.changed


def check_scan(
    scan: ScanOnDisk,
    public_key: Path | None = None,
    *,
    progress: Callable[..., None] | None = None,
    compute: Compute = compute_here,
) -> SignatureCheck:
    """Tell whether a signed scan on the disk is as it was signed, and if not, what was changed.

    :param public_key: file with the public key of the expected signer.
    :raises InputError: it is not signed, is no CT, or a public key is none.
    :raises ManifestError: its manifest was altered.
    """
    known = public_key_identity(public_key) if public_key else None

    def work(report: Any) -> SignatureCheck:
        from ..signature.dicom.digital_signature import verify_images

        read = read_contents_to_verify(scan.path, scan.series, report)
        if report:
            report(0, 0)
        signed = find_manifest(read)
        signatures = verify_images(read.files)
        if signed is None and not signatures.signed:
            raise InputError(_("The scan is not signed: it carries no manifest, and none lies beside it."))
        verification = signed and verify_scan(read, signed)
        is_known = bool(verification) and verification.manifest.fingerprint == known
        return SignatureCheck(read.volume, verification, signatures, is_known)

    with paths_kept_from_log({scan.path: _("the scan")}):
        checked = compute(work, progress)
    logger.info("MITSGAN checked a signed scan")
    return checked


def show_signed_changes(
    checked: SignatureCheck,
    candidates: Sequence[slicer.vtkMRMLScalarVolumeNode | None] = (),
    *,
    visible: bool = True,
) -> tuple[slicer.vtkMRMLLabelMapVolumeNode | None, slicer.vtkMRMLScalarVolumeNode | None]:
    """Lay a map of what was changed over the scan; the map and the volume below it, None where nothing was changed.

    :param candidates: volumes that may hold the scan; where none does, it is added to the scene.
    """
    if checked.verification is None or not checked.verification.tiles.any():
        return None, None
    over = next((node for node in candidates if node is not None and _holds(node, checked.volume)), None)
    if over is None and checked.volume is not None:
        over = node_from_volume(checked.volume, _("Verified scan"))
    change_map = change_map_node(checked.verification.map_volume(), over, signature_legend())
    show_changes(change_map, over, visible=visible)
    return change_map, over


def _holds(node: slicer.vtkMRMLScalarVolumeNode, volume: CTVolume | None) -> bool:
    """Whether a node shows a scan; Slicer may count slices from the other end than DICOM's normal does."""
    try:
        shown = volume_from_node(node)
    except InputError:
        return False
    return volume is not None and any(same_scan(shown, turned) for turned in (volume, reversed_slices(volume)))
