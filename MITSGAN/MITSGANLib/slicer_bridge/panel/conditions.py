"""What is missing before each piece of heavy work can start, in words for a tool tip."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from ..inspection import Inspection
from ..targets import has_target
from ..volumes import is_changed_by_model, is_simulated_attack, is_watermarked, watermark_kind


def missing_for(
    source: slicer.vtkMRMLScalarVolumeNode | None,
    protected: slicer.vtkMRMLScalarVolumeNode | None,
    target: slicer.vtkMRMLMarkupsNode | None,
    inspection: Inspection | None,
    has_model: bool,
    lacks_key: bool,
) -> dict[str, str]:
    """What the user has to do first; empty when nothing.

    The names are "protect", "attack", "compare", "export", "export file" and "report".

    :param inspection: of the source volume.
    :param lacks_key: whether a watermark is to be made, and no key file is chosen.
    """
    no_scan = "" if source else _("Select a CT volume.")
    if source and inspection and not inspection.is_ct:
        no_scan = inspection.problem
    no_model = "" if has_model else _("No protection model is installed.")
    if lacks_key:
        no_model = _("A watermark needs a key file: choose or make one in the section “Keys and signatures”.")
    no_protected = no_scan
    if not no_scan and (not protected or protected is source):
        no_protected = _("Protect the CT volume, or select its protected version.")
    no_target = no_protected
    if not no_protected and not has_target(target):
        no_target = _("Place a target.")
    no_export = no_protected
    if not no_protected and is_simulated_attack(protected):
        no_export = _("A simulated attack is never exported as DICOM, so that it cannot pass for a patient's scan.")
    no_file = no_protected
    if not no_protected and is_simulated_attack(protected):
        no_file = _("A simulated attack is no protected volume; Slicer's own Save writes it, marked as what it is.")
    no_report = no_target
    if not no_protected and is_watermarked(protected) and not is_changed_by_model(protected):
        no_report = _("The report is on what a model's protection does to an attack; a watermark does nothing to it.")
    return {
        "protect": no_scan or no_model,
        "attack": no_target,
        "compare": no_protected,
        "export": no_export,
        "export file": no_file,
        "report": no_report,
    }


def missing_on_disk(*, has_scan: bool, can_open: bool) -> dict[str, str]:
    """For "restore" and "verify" what the user has to do first; empty when nothing.

    :param has_scan: whether a scan on the disk is chosen, or selected as a volume.
    :param can_open: whether there is a key or a passphrase.
    """
    no_scan = "" if has_scan else _("Choose the folder or the file of a scan, or select a volume loaded from one.")
    no_key = "" if can_open else _("Choose the key file that the scan was sealed with, or type the passphrase.")
    return {"restore": no_scan or no_key, "verify": no_scan}


def missing_for_watermark(checked: slicer.vtkMRMLScalarVolumeNode | None, *, has_key: bool) -> dict[str, str]:
    """For "check watermark" what the user has to do first; empty when nothing.

    :param checked: the volume whose watermark is sought.
    """
    no_scan = "" if checked else _("Select a CT volume.")
    needs_key = checked is not None and watermark_kind(checked) == "keyed" and not has_key
    no_key = _("Choose the key file that the volume was watermarked with.") if needs_key else ""
    return {"check watermark": no_scan or no_key}
