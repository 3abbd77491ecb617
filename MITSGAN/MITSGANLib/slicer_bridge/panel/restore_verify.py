"""The section that restores originals, verifies signatures and checks watermarks, and shows what was changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from ...errors import TargetError
from ...keys.key_files import Key
from ..change_map import set_changes_visible
from ..export import free_folder
from ..layout import show_in_ordinary_views
from ..scan_on_disk import ScanOnDisk, may_be_on_disk, scan_of_node
from ..targets import has_target, target_from_markups
from ..volumes import remove_result, voxel_from_ras, watermark_kind
from . import sentences
from .keys import ChosenPath, KeysSection
from .shared import Panel, Section

if TYPE_CHECKING:
    from ...watermark.checking import Check
    from ...watermark.places import Place
    from .compare import CompareSection


class RestoreVerifySection(Section):
    """Restores and verifies a scan on the disk, and checks the watermark of a loaded volume.

    :param keys: opens keys.
    :param compare: flickers no more once a map of changes is shown.
    """

    def __init__(self, panel: Panel, keys: KeysSection, compare: CompareSection) -> None:
        super().__init__(panel)
        self._keys, self._compare = keys, compare
        ui = panel.ui
        self._scan = ChosenPath(panel, ui.scanLineEdit, ui.forgetScanButton)
        ui.scanFolderButton.connect("clicked()", self.choose_scan_folder)
        ui.scanFileButton.connect("clicked()", self.choose_scan_file)
        ui.forgetScanButton.connect("clicked()", lambda: self.take_scan(None))
        panel.add_control(
            ui.scanFolderButton, ui.scanFileButton, ui.loadRestoredCheckBox, ui.checkedVolumeSelector, waits=True
        )
        panel.add_control(ui.showChangesCheckBox, missing=self._missing_map)
        panel.add_job(
            ui.restoreButton,
            ui.keysProgressBar,
            self.restore,
            unit=_("files"),
            failure=_("Failed to restore the original."),
            icon="Restore",
            missing=self._missing_for_restore,
            ask=self._ask_what_to_restore,
        )
        panel.add_job(
            ui.verifyButton,
            ui.keysProgressBar,
            self.verify,
            unit=_("files"),
            failure=_("Failed to verify the scan."),
            icon="Verify",
            missing=self._missing_scan,
            ask=self._scan_on_disk,
        )
        panel.add_job(
            ui.checkWatermarkButton,
            ui.keysProgressBar,
            self.check_watermark,
            unit=_("slices"),
            failure=_("Failed to check the watermark."),
            icon="Verify",
            missing=self._missing_for_watermark,
        )

    def refresh(self) -> None:
        """Show or hide the map of changes as the parameter node says."""
        parameters = self._panel.parameters
        if parameters.changeMap:
            set_changes_visible(parameters.changeMap, parameters.showChanges)

    def update(self) -> None:
        """Say which scan is meant where none is chosen."""
        node = self._node_on_disk()
        words = _("files of {name}").format(name=node.GetName()) if node else _("none")
        self._panel.ui.scanLineEdit.placeholderText = words

    def scene_closes(self) -> None:
        """Forget the scan on the disk, which may be of a patient whose scene goes."""
        self.take_scan(None)

    def take_scan(self, path: Path | None) -> None:
        """Choose a scan on the disk, or none."""
        self._scan.choose(path)
        self._say("")

    def choose_scan_folder(self) -> None:
        """Let the user choose a DICOM folder to restore or verify."""
        folder = self._panel.ask_for_folder(_("Folder of a protected or signed DICOM series"))
        if folder:
            self.take_scan(folder)

    def choose_scan_file(self) -> None:
        """Let the user choose a volume file to restore or verify."""
        path = self._panel.ask_for_file(_("Protected or signed file"), self._panel.volume_files)
        if path:
            self.take_scan(path)

    def restore(self, progress: Callable[..., None], what: tuple[ScanOnDisk, Path, str]) -> None:
        """Restore the original of a sealed scan.

        :param what: the scan, where its original goes, and the name of the volume that shows it.
        """
        scan, destination, name = what
        panel, parameters = self._panel, self._panel.parameters
        self._say("")
        panel.ensure_key_packages()
        restored, node = panel.logic.restoreOriginal(
            scan,
            destination,
            self._keys.open_key(),
            name=name if parameters.loadRestored else None,
            progress=progress,
        )
        self._say(sentences.about_restored(scan.path.name, restored))
        if node:
            show_in_ordinary_views(node)
        panel.jobs.say(_("Wrote {path}.").format(path=destination))

    def verify(self, progress: Callable[..., None], scan: ScanOnDisk) -> None:
        """Tell whether a signed scan was changed, and show where."""
        panel, parameters = self._panel, self._panel.parameters
        self._say("")
        panel.ensure_key_packages()
        checked = panel.logic.verify(scan, self._keys.public_key, progress=progress)
        self._say(sentences.about_check(scan.path.name, checked))
        self._make_room_for_map(parameters)
        candidates = (parameters.protectedVolume, parameters.sourceVolume)
        parameters.changeMap, _over = panel.logic.showChanges(checked, candidates, visible=parameters.showChanges)

    def check_watermark(self, progress: Callable[..., None]) -> None:
        """Tell where a volume's watermark is missing, and show it."""
        panel, parameters = self._panel, self._panel.parameters
        node = parameters.checkedVolume
        self._say("")
        panel.ensure_key_packages()
        keys = self._watermark_keys(node)
        for key in keys:
            check = panel.logic.checkWatermark(node, key, progress=progress)
            if check.is_found:
                keys = [key]
                break
        place = _place_of_target(check, node, parameters.targetPoint)
        is_open, is_keyed = None in keys, keys != [None]
        self._say(sentences.about_watermark(node.GetName(), check, place, is_open=is_open, is_keyed=is_keyed))
        self._make_room_for_map(parameters)
        parameters.changeMap = panel.logic.showMissingWatermark(check, node, visible=parameters.showChanges)

    def _say(self, text: str) -> None:
        self._panel.show_text(self._panel.ui.keysResultLabel, text)

    def _watermark_keys(self, node: slicer.vtkMRMLScalarVolumeNode) -> list[Key | None]:
        """The keys of all watermarks that a volume may have, None for the open one.

        A volume from a file or from DICOM does not say which it has.
        """
        kind = watermark_kind(node)
        if kind == "open" or not self._keys.has_key:
            return [None]
        key = self._keys.open_key_file()
        return [key] if kind == "keyed" else [key, None]

    def discard(self, parameters: Any) -> None:
        """Remove the map and the verdict of the last check: they are not of the volume that is shown now."""
        self._say("")
        if parameters.changeMap:
            remove_result(parameters.changeMap)

    def _make_room_for_map(self, parameters: Any) -> None:
        if parameters.changeMap:
            remove_result(parameters.changeMap)
        self._compare.leave()

    def _node_on_disk(self) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The selected volume whose files stand in for a scan that was not chosen."""
        parameters = self._panel.parameters
        if self._scan.path is not None or not parameters:
            return None
        return next(
            (node for node in (parameters.protectedVolume, parameters.sourceVolume) if may_be_on_disk(node)), None
        )

    def _scan_on_disk(self) -> ScanOnDisk:
        """What to restore or verify: the chosen folder or file, else the files of the selected volume.

        :raises InputError, OutputError: its files are not to be found.
        """
        return ScanOnDisk(self._scan.path) if self._scan.path else scan_of_node(self._node_on_disk())

    def _ask_what_to_restore(self) -> tuple[ScanOnDisk, Path, str] | None:
        """The scan, where to put its original, by default beside it, and a name; None when the user closes a dialog."""
        scan, node = self._scan_on_disk(), self._node_on_disk()
        if scan.is_file:
            name, dot, suffixes = scan.path.name.partition(".")
            beside = scan.path.with_name(f"{name}-restored{dot}{suffixes}")
            destination = self._panel.ask_for_new_file(_("Restored original"), str(beside), self._panel.volume_files)
        else:
            destination = self._panel.ask_for_folder(_("Folder to put the restored series in"), str(scan.path.parent))
            destination = destination and free_folder(destination, f"{scan.path.name}-restored")
        name = _("{name} restored").format(name=node.GetName()) if node else _("Restored scan")
        return (scan, destination, name) if destination else None

    def _missing_scan(self) -> str:
        if self._scan.path is not None or self._node_on_disk() is not None:
            return ""
        return _("Choose the folder or the file of a scan, or select a volume loaded from one.")

    def _missing_for_restore(self) -> str:
        no_key = _("Choose the key file that the scan was sealed with, or type the passphrase.")
        return self._missing_scan() or ("" if self._keys.can_open else no_key)

    def _missing_for_watermark(self) -> str:
        node = self._panel.parameters.checkedVolume if self._panel.parameters else None
        if node is None:
            return _("Select a CT volume.")
        if watermark_kind(node) == "keyed" and not self._keys.has_key:
            return _("Choose the key file that the volume was watermarked with.")
        return ""

    def _missing_map(self) -> str:
        if self._panel.parameters and self._panel.parameters.changeMap:
            return ""
        return _("Verify a scan that was changed, or check a watermark first.")


def _place_of_target(
    check: Check, node: slicer.vtkMRMLScalarVolumeNode, target: slicer.vtkMRMLMarkupsNode | None
) -> Place | None:
    """What is left of the watermark at the target; None without one in the volume."""
    if not has_target(target):
        return None
    try:
        return check.at(voxel_from_ras(node, target_from_markups(target)))
    except TargetError:
        return None
