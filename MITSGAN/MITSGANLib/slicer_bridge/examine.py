"""Examining a volume: voxels, watermark, headers and the signature of its files, in one verdict with a map."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from ..errors import CancelledError, InputError, MITSGANError, OutputError
from ..examination import examiner
from ..examination.signed import SIGNATURE, with_signatures
from ..examination.verdict import ChangedPlace, Evidence, Outcome, Verdict, Voxel
from ..keys.key_files import Key
from ..scan.volume import SIMULATED_ATTACK, CTVolume
from ..signature.contents import read_contents_to_verify
from ..signature.dicom.digital_signature import verify_images
from ..signature.envelope import ManifestError
from ..signature.verification import Verification, find_manifest, verify_scan
from ..watermark.checking import check_watermark
from ..watermark.pattern import OPEN_KEY, watermark_key
from . import change_map, layout
from .key_files import public_key_identity
from .operations import Run, run_here
from .origin import ScanOnDisk, may_be_on_disk, place_of_attack, reversed_slices, scan_of_node
from .packages import NETWORKS, are_installed
from .privacy import paths_kept_from_log
from .volumes import ras_from_voxel, require_ct, require_in_scene, same_scan, scan_from_node, watermark_kind

logger = logging.getLogger(__name__)

# Half of what is between the lungs' middles; less is one lung alone.
_BOTH_LUNGS_MM = 60.0


@dataclass(frozen=True, eq=False)
class ExaminedVolume:
    """What was found in a volume."""

    examination: examiner.Examination
    verdict: Verdict
    is_keyed: bool  # whether the watermark that was looked for is that of a key, and not the open one
    verification: Verification | None = None  # of the files; None without a manifest, or with one that was altered
    is_signer_known: bool = False  # whether a public key that was given is the signer's
    note: str = ""  # what kept the files' signature from being counted
    # Of the map, made in the background; None where it would show nothing.
    labels: CTVolume | None = None
    image: vtk.vtkImageData | None = None
    asked: dict[Voxel, ChangedPlace] = field(default_factory=dict)  # at voxels that somebody asked about

    @property
    def volume(self) -> CTVolume:
        """The scan that was examined."""
        return self.examination.volume

    @property
    def is_changed_since_signing(self) -> bool:
        """Whether the signature says that voxels were changed."""
        return self.verification is not None and bool(self.verification.tiles.any())

    @property
    def legend(self) -> change_map.Legend:
        """The legend of the map."""
        return change_map.signature_legend() if self.is_changed_since_signing else change_map.examination_legend()

    def look_at(self, *places: Voxel) -> None:
        """Find out what is to be said of voxels (slice, row, column) in the scan; a second each, so in a thread."""
        for kji in places:
            if kji not in self.asked and self.volume.contains(kji):
                self.asked[kji] = self.examination.at(kji)

    def side(self, place: ChangedPlace) -> str:
        """Where in the body a place is, as well as the lungs tell."""
        blocks, lungs = self.examination.blocks, self.examination.lungs
        if not lungs.any():
            return ""
        block = self.examination.block_of(place.kji)
        if not lungs[block]:
            return _("outside the lungs")
        # Blocks are turned so that columns run along growing LPS: to the patient's left.
        columns = np.flatnonzero(lungs) % lungs.shape[2]
        low, high = np.percentile(columns, (5, 95)) * blocks.mm[2]
        if high - low < 2 * _BOTH_LUNGS_MM:
            return _("lung")
        here = block[2] * blocks.mm[2]
        return _("left lung") if here > (low + high) / 2 else _("right lung")


def examine_node(
    node: slicer.vtkMRMLScalarVolumeNode,
    key: Key | None = None,
    public_key: Path | None = None,
    *,
    places: Sequence[Voxel] = (),
    run: Run = run_here,
) -> ExaminedVolume:
    """Examine a CT volume and the files that it was loaded from.

    :param key: of a watermark to look for besides the open one, which is looked for where this one is not found.
    :param public_key: file with the public key of the expected signer.
    :param places: voxels (slice, row, column) to ask about, besides that of a simulated attack.
    :param run: hears (done, all) in percent.
    :raises InputError: the node is no CT, or a key is none.
    """
    scanned = scan_from_node(node)
    known = public_key_identity(public_key) if public_key else None
    kind = watermark_kind(node)
    scan, note = None, ""
    if may_be_on_disk(node):
        try:
            scan = scan_of_node(node)
        except (InputError, OutputError) as error:
            note = _("No signature was looked for: {reason}").format(reason=error)

    def work(report: Any) -> ExaminedVolume:
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
        examined = ExaminedVolume(examination, examination.verdict, own is not None, note=note)
        if scan is not None:
            examined = _with_signature(examined, scan, known)
        attack = scanned.provenance.last(SIMULATED_ATTACK)
        examined.look_at(*filter(None, [*places, attack and place_of_attack(attack)]))
        labels = _labels(examined)
        if not labels.hu.any():
            return examined
        return dataclasses.replace(examined, labels=labels, image=change_map.image_of_labels(labels))

    with paths_kept_from_log({scan.path: _("the scan")} if scan else {}):
        examined = run(work)
    require_in_scene(node)
    logger.info("MITSGAN examined %s: %s", node.GetID(), examined.verdict.outcome.value)
    return examined


def show_examined(
    examined: ExaminedVolume, node: slicer.vtkMRMLScalarVolumeNode, *, visible: bool = True
) -> slicer.vtkMRMLLabelMapVolumeNode | None:
    """Lay a map over the volume that was examined, and go to the surest place; None where there is nothing to show."""
    if examined.labels is None:
        return None
    map_node = change_map.change_map_node(examined.labels, node, examined.legend, examined.image)
    layout.restore_layout()
    layout.show_in_ordinary_views(node)
    layout.show_labels(map_node)
    layout.set_labels_visible(map_node, visible)
    if examined.verdict.places:
        layout.go_to(ras_from_voxel(node, examined.verdict.places[0].kji))
    return map_node


def _labels(examined: ExaminedVolume) -> CTVolume:
    """What was changed since the scan was signed; else what is listed as changed, and where nothing can be told."""
    if examined.is_changed_since_signing:
        return examined.verification.map_volume()
    examination = examined.examination
    told = np.any([one.told for one in examination.suspicions], axis=0)
    labels = np.where(examination.voxels(examination.lungs & ~told), change_map.LEGEND_UNTOLD, 0).astype(np.int16)
    # Single suspicious blocks are no change; those around a listed place show its shape.
    changed = examination.class_volume()
    for place in examination.places:
        half = np.maximum(np.array(place.size_mm) / 2 / examination.volume.spacing_kji, 1) + 1
        box = tuple(slice(max(0, int(at - n)), int(at + n) + 1) for at, n in zip(place.kji, half, strict=True))
        labels[box][changed.hu[box] == examiner.CHANGED] = change_map.LEGEND_CHANGED
    return dataclasses.replace(changed, hu=labels)


def _with_signature(examined: ExaminedVolume, scan: ScanOnDisk, known: str | None) -> ExaminedVolume:
    """What was examined, after the signature of its files had its say, where they have one and show the same scan.

    :param known: fingerprint of the expected signer.
    """
    signed, is_altered = None, False
    try:
        read = read_contents_to_verify(scan.path, scan.series)
        signatures = verify_images(read.files)
        try:
            signed = find_manifest(read)
        except ManifestError:
            is_altered = True
        verification = signed and verify_scan(read, signed)
    except CancelledError:
        raise
    except MITSGANError:
        words = _("The files on the disk cannot be read any more, so no signature was checked.")
        return dataclasses.replace(examined, note=words)
    if signed is None and not signatures.signed and not is_altered:
        return examined
    volume, on_disk = examined.volume, read.volume
    if on_disk is not None and not any(same_scan(volume, turned) for turned in (on_disk, reversed_slices(on_disk))):
        words = _("The file on the disk shows another image than this volume, so its signature was not counted.")
        return dataclasses.replace(examined, note=words)
    trusted = {known} if known else set()
    verdict = with_signatures(examined.verdict, volume, verification, signatures, trusted)
    if is_altered:
        # That is a change, and so is a scan that does not fit its manifest.
        evidence = Evidence(SIGNATURE, "its signature was altered, or is of something else", 2.0)
        verdict = dataclasses.replace(verdict, outcome=Outcome.CHANGED, evidence=(evidence, *verdict.evidence))
    is_known = verification is not None and verification.manifest.fingerprint == known
    return dataclasses.replace(examined, verdict=verdict, verification=verification, is_signer_known=is_known)
