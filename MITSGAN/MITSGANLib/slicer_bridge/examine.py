"""Examining a volume: voxels, watermark, headers and the signature of its files, in one verdict with a map."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from ..errors import CancelledError, InputError, MITSGANError, OutputError
from ..examination import examiner
from ..examination.signed import SIGNATURE, with_signatures
from ..examination.verdict import ChangedPlace, Evidence, Outcome, Verdict
from ..keys.key_files import Key
from ..scan.volume import SIMULATED_ATTACK, CTVolume
from ..signature.contents import read_contents_to_verify
from ..signature.dicom.digital_signature import ImageSignatures, verify_images
from ..signature.envelope import ManifestError
from ..signature.verification import Verification, find_manifest, verify_scan
from ..watermark.checking import check_watermark
from ..watermark.pattern import OPEN_KEY, watermark_key
from .change_map import (
    LEGEND_CHANGED,
    LEGEND_UNTOLD,
    Legend,
    change_map_node,
    examination_legend,
    image_of_labels,
    show_changes,
    signature_legend,
)
from .dicom_source import reversed_slices
from .history import place_of_attack
from .key_files import public_key_identity
from .operations import Compute, compute_here
from .packages import NETWORKS, are_installed
from .privacy import paths_kept_from_log
from .scan_on_disk import ScanOnDisk, may_be_on_disk, scan_of_node
from .volumes import require_ct, require_in_scene, same_scan, scan_from_node, watermark_kind

if TYPE_CHECKING:
    from vtk import vtkImageData

logger = logging.getLogger(__name__)

# Half of what is between the lungs' middles; less is one lung alone.
_BOTH_LUNGS_MM = 60.0


@dataclass(frozen=True, eq=False)
class SignatureCheck:
    """What the signature of the files behind a volume says.

    :param verification: against the manifest; None where there is none.
    :param is_signer_known: whether a public key that was given is the signer's.
    :param is_altered: whether the manifest itself was altered.
    """

    verification: Verification | None
    signatures: ImageSignatures | None
    is_signer_known: bool
    is_altered: bool = False


@dataclass(frozen=True, eq=False)
class ExaminedVolume:
    """What was found in a volume.

    :param is_keyed: whether the watermark that was looked for is that of a key, and not the open one.
    :param signed: None where the files carry no signature, or there are none.
    :param note: what kept the files' signature from being counted; empty when nothing.
    :param labels, image: of the map, made in the background; None where it would show nothing.
    :param asked: what was found at voxels that somebody asked about.
    """

    examination: examiner.Examination
    verdict: Verdict
    is_keyed: bool
    signed: SignatureCheck | None = None
    note: str = ""
    labels: CTVolume | None = None
    image: vtkImageData | None = None
    asked: dict[tuple[int, int, int], ChangedPlace] = field(default_factory=dict)

    @property
    def volume(self) -> CTVolume:
        """The scan that was examined."""
        return self.examination.volume

    @property
    def changed_since_signing(self) -> Verification | None:
        """What the signature says, where it says that voxels were changed."""
        verification = self.signed.verification if self.signed else None
        return verification if verification is not None and verification.tiles.any() else None

    @property
    def legend(self) -> Legend:
        """The legend of the map."""
        return signature_legend() if self.changed_since_signing is not None else examination_legend()

    def at(self, kji: tuple[int, int, int]) -> ChangedPlace | None:
        """What was found at a voxel (slice, row, column); None before :meth:`look_at`."""
        return self.asked.get(kji)

    def look_at(self, *places: tuple[int, int, int]) -> None:
        """Find out what is to be said of voxels (slice, row, column) in the scan; a second each, so in a thread."""
        for kji in places:
            if kji not in self.asked and self.volume.contains(kji):
                self.asked[kji] = self.examination.at(kji)

    @functools.cached_property
    def _lung_columns(self) -> tuple[float, float]:
        """Where the lungs begin and end along the columns of blocks, in blocks."""
        columns = np.flatnonzero(self.examination.lungs) % self.examination.lungs.shape[2]
        low, high = np.percentile(columns, (5, 95))
        return float(low), float(high)

    def side(self, place: ChangedPlace) -> str:
        """Where in the body a place is, as well as the lungs tell."""
        blocks, lungs = self.examination.blocks, self.examination.lungs
        if not lungs.any():
            return ""
        block = self.examination.block_of(place.kji)
        if not lungs[block]:
            return _("outside the lungs")
        # Blocks are turned so that columns run along growing LPS: to the patient's left.
        low, high = (column * blocks.mm[2] for column in self._lung_columns)
        if high - low < 2 * _BOTH_LUNGS_MM:
            return _("lung")
        here = block[2] * blocks.mm[2]
        return _("left lung") if here > (low + high) / 2 else _("right lung")


def examine_node(
    node: slicer.vtkMRMLScalarVolumeNode,
    key: Key | None = None,
    public_key: Path | None = None,
    *,
    places: Sequence[tuple[int, int, int]] = (),
    progress: Callable[[int, int], None] | None = None,
    compute: Compute = compute_here,
) -> ExaminedVolume:
    """Examine a CT volume and the files that it was loaded from.

    :param key: of a watermark to look for besides the open one, which is looked for where this one is not found.
    :param public_key: file with the public key of the expected signer.
    :param places: voxels (slice, row, column) to ask about, besides that of a simulated attack.
    :param progress: called with (done, all) in percent.
    :raises InputError: the node is no CT, or a key is none.
    """
    scanned = scan_from_node(node)
    known = public_key_identity(public_key) if public_key else None
    kind = watermark_kind(node)
    scan, note = _files_of(node)

    def find(report: Any) -> ExaminedVolume:
        volume = require_ct(scanned)
        own = None
        if key is not None and kind != "open":
            own = watermark_key(key)
            # A volume from a file or from DICOM may have either.
            if kind != "keyed" and not check_watermark(volume, own).is_found:
                own = None
        examination = examiner.examine(
            volume, key=own or OPEN_KEY, with_judge=are_installed(*NETWORKS), progress=report
        )
        finding = ExaminedVolume(examination, examination.verdict, own is not None, note=note)
        if scan is None:
            return finding
        try:
            signed, on_disk = _check_files(scan, known)
        except CancelledError:
            raise
        except MITSGANError:
            words = _("The files on the disk cannot be read any more, so no signature was checked.")
            return dataclasses.replace(finding, note=words)
        if signed is None:
            return finding
        shown = on_disk is None or any(same_scan(volume, turned) for turned in (on_disk, reversed_slices(on_disk)))
        if not shown:
            words = _("The file on the disk shows another image than this volume, so its signature was not counted.")
            return dataclasses.replace(finding, note=words)
        trusted = {known} if known else set()
        if signed.signatures is not None:
            verdict = with_signatures(finding.verdict, volume, signed.verification, signed.signatures, trusted)
            finding = dataclasses.replace(finding, verdict=verdict)
        return dataclasses.replace(finding, verdict=_with_altered(finding.verdict, signed), signed=signed)

    def work(report: Any) -> ExaminedVolume:
        finding = find(report)
        attack = scanned.provenance.last(SIMULATED_ATTACK)
        finding.look_at(*filter(None, [*places, attack and place_of_attack(attack)]))
        labels = _labels(finding)
        if not labels.hu.any():
            return finding
        return dataclasses.replace(finding, labels=labels, image=image_of_labels(labels))

    with paths_kept_from_log({scan.path: _("the scan")} if scan else {}):
        finding = compute(work, progress)
    require_in_scene(node)
    logger.info("MITSGAN examined %s: %s", node.GetID(), finding.verdict.outcome.value)
    return finding


def show_finding(
    finding: ExaminedVolume, node: slicer.vtkMRMLScalarVolumeNode, *, visible: bool = True
) -> slicer.vtkMRMLLabelMapVolumeNode | None:
    """Lay a map over the volume that was examined, and go to the surest place; None where there is nothing to show."""
    if finding.labels is None:
        return None
    change_map = change_map_node(finding.labels, node, finding.legend, finding.image)
    places = finding.verdict.places
    show_changes(change_map, node, visible=visible, kji=places[0].kji if places else None)
    return change_map


def _labels(finding: ExaminedVolume) -> CTVolume:
    """What was changed since the scan was signed; else what is listed as changed, and where nothing can be told."""
    if finding.changed_since_signing is not None:
        return finding.changed_since_signing.map_volume()
    examination = finding.examination
    told = np.any([one.told for one in examination.suspicions], axis=0)
    labels = np.where(examination.voxels(examination.lungs & ~told), LEGEND_UNTOLD, 0).astype(np.int16)
    # Single suspicious blocks are no finding; those around a listed place show its shape.
    changed = examination.class_volume()
    for place in examination.places:
        half = np.maximum(np.array(place.size_mm) / 2 / examination.volume.spacing_kji, 1) + 1
        box = tuple(slice(max(0, int(at - n)), int(at + n) + 1) for at, n in zip(place.kji, half, strict=True))
        labels[box][changed.hu[box] == examiner.CHANGED] = LEGEND_CHANGED
    return dataclasses.replace(changed, hu=labels)


def _files_of(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[ScanOnDisk | None, str]:
    """The files behind a volume; None where there are none, with the reason where there should be."""
    if not may_be_on_disk(node):
        return None, ""
    try:
        return scan_of_node(node), ""
    except (InputError, OutputError) as error:
        return None, _("No signature was looked for: {reason}").format(reason=error)


def _check_files(scan: ScanOnDisk, known: str | None) -> tuple[SignatureCheck | None, CTVolume | None]:
    """What the signature of files says, and the scan that they hold; None where there is no signature, or no scan."""
    read = read_contents_to_verify(scan.path, scan.series)
    signatures = verify_images(read.files)
    try:
        signed = find_manifest(read)
    except ManifestError:
        return SignatureCheck(None, signatures, is_signer_known=False, is_altered=True), read.volume
    if signed is None and not signatures.signed:
        return None, read.volume
    verification = signed and verify_scan(read, signed)
    is_known = bool(verification) and verification.manifest.fingerprint == known
    return SignatureCheck(verification, signatures, is_known), read.volume


def _with_altered(verdict: Verdict, signed: SignatureCheck) -> Verdict:
    """An altered manifest is a change, and so is a scan that does not fit its manifest."""
    if not signed.is_altered:
        return verdict
    evidence = Evidence(SIGNATURE, "its signature was altered, or is of something else", 2.0)
    return dataclasses.replace(verdict, outcome=Outcome.CHANGED, evidence=(evidence, *verdict.evidence))
