"""Restoring the original of a sealed scan, in the section on keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slicer.i18n import tr as _

from ..export import free_folder
from ..history import steps_of
from ..packages import KEYS
from ..scan_on_disk import ScanOnDisk, may_be_on_disk, scan_of_file, scan_of_node
from . import sentences
from .keys import KeysSection
from .shared import Panel, Section


class RestoreSection(Section):
    """Gives back the original of the displayed volume's files, or of others."""

    def __init__(self, panel: Panel, keys: KeysSection) -> None:
        super().__init__(panel)
        self._keys = keys
        ui = panel.ui
        panel.add_job(
            ui.restoreButton,
            ui.keysProgressBar,
            self.restore,
            unit=_("files"),
            failure=_("Failed to restore the original."),
            icon="Restore",
            missing=self._missing,
            ask=self._ask,
        )
        panel.show_text(ui.keysResultLabel, "")

    def scene_closes(self) -> None:
        """Forget what was restored. It may be of a patient, and the scene is closed."""
        self._panel.show_text(self._panel.ui.keysResultLabel, "")

    def restore(self, progress: Callable[..., None], what: tuple[ScanOnDisk, Path, str]) -> None:
        """Restore the original of a sealed scan, and load it.

        :param what: the scan, where its original goes, and the name of the volume that shows it.
        """
        scan, destination, name = what
        panel = self._panel
        panel.show_text(panel.ui.keysResultLabel, "")
        panel.ensure_packages(*KEYS)
        restored, node = panel.logic.restoreOriginal(
            scan, destination, self._keys.open_key(), name=name, progress=progress
        )
        panel.show_text(panel.ui.keysResultLabel, sentences.about_restored(scan.path.name, restored))
        if node and panel.parameters:
            panel.parameters.volume = node
        panel.jobs.say(_("Wrote {path}.").format(path=destination))

    def _ask(self) -> tuple[ScanOnDisk, Path, str] | None:
        """The scan, where to put its original, by default beside it, and a name; None when the user closes a dialog."""
        panel = self._panel
        node = panel.parameters.volume if panel.parameters else None
        # What was never processed has no original.
        if may_be_on_disk(node) and steps_of(node):
            scan, name = scan_of_node(node), _("{name} restored").format(name=node.GetName())
        else:
            chosen = panel.ask_for_file(_("Sealed file, or one file of a sealed series"), _("All files") + " (*)")
            if chosen is None:
                return None
            scan, name = scan_of_file(chosen), _("Restored scan")
        if scan.is_file:
            stem, dot, suffixes = scan.path.name.partition(".")
            beside = scan.path.with_name(f"{stem}-restored{dot}{suffixes}")
            destination = panel.ask_for_new_file(_("Restored original"), str(beside), panel.volume_files)
        else:
            destination = panel.ask_for_folder(_("Folder to put the restored series in"), str(scan.path.parent))
            destination = destination and free_folder(destination, f"{scan.path.name}-restored")
        return (scan, destination, name) if destination else None

    def _missing(self) -> str:
        if self._keys.can_open:
            return ""
        return _("Choose the key file that the scan was sealed with, or type the passphrase.")
