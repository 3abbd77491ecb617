"""The section on keys and signatures: key files, the way back to originals, and what was changed in scans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from ...errors import TargetError
from ...keys.key_files import is_private
from ..change_map import set_changes_visible
from ..keys_and_seals import (
    Locks,
    ScanOnDisk,
    key_identity,
    make_key_file,
    make_signing_key_file,
    public_key_identity,
    signing_key_identity,
)
from ..layout import show_in_ordinary_views
from ..operations import free_folder
from ..targets import has_target, target_from_markups
from ..volumes import remove_result, voxel_from_ras, watermark_kind
from . import sentences
from .key_choices import ChosenPath, KeyChoices
from .shared import Panel

if TYPE_CHECKING:
    from ...watermark.checking import Check
    from ...watermark.places import Place
    from .compare import CompareSection


class KeysSection:
    """Keys for exports, the way back to an original, and what was changed in a signed or watermarked scan.

    :param compare: flickers no more once a map of changes is shown.
    """

    def __init__(self, panel: Panel, compare: CompareSection) -> None:
        self._panel, self._compare = panel, compare
        ui = panel.ui
        self.choices = KeyChoices(ui)
        panel.set_icon(ui.restoreButton, "Restore")
        panel.set_icon(ui.verifyButton, "Verify")
        panel.set_icon(ui.checkWatermarkButton, "Verify")
        ui.passphraseLineEdit.connect("textChanged(QString)", self._on_passphrase_changed)
        for button, slot in (
            (ui.keyFileButton, self.choose_key_file),
            (ui.newKeyButton, self.make_key_file),
            (ui.forgetKeyButton, lambda: self._choose(self.choices.key, None)),
            (ui.signingKeyButton, self.choose_signing_key),
            (ui.newSigningKeyButton, self.make_signing_key),
            (ui.forgetSigningKeyButton, lambda: self._choose(self.choices.signing, None)),
            (ui.publicKeyButton, self.choose_public_key),
            (ui.forgetPublicKeyButton, lambda: self._choose(self.choices.public, None)),
            (ui.scanFolderButton, self.choose_scan_folder),
            (ui.scanFileButton, self.choose_scan_file),
            (ui.forgetScanButton, lambda: self.take_scan(None)),
            (ui.restoreButton, self.restore),
            (ui.verifyButton, self.verify),
            (ui.checkWatermarkButton, self.check_watermark),
        ):
            button.connect("clicked()", slot)

    @property
    def has_scan(self) -> bool:
        """Whether there is something on the disk to restore or verify."""
        return self.choices.scan.path is not None or self.choices.node_on_disk(self._panel.parameters) is not None

    def refresh(self) -> None:
        """Show what the parameter node says."""
        parameters = self._panel.parameters
        if parameters.changeMap:
            set_changes_visible(parameters.changeMap, parameters.showChanges)

    def leave(self) -> None:
        """Forget the passphrase."""
        self.choices.forget_passphrase()

    def take_scan(self, path: Path | None) -> None:
        """Choose a scan on the disk, or none."""
        self._choose(self.choices.scan, path)
        self._panel.show_text(self._panel.ui.keysResultLabel, "")

    def open_locks(self) -> Locks | None:
        """The chosen keys for an export, opened; None where none is chosen."""
        if not self.choices.has_locks:
            return None
        self._panel.ensure_key_packages()
        return self.choices.open_locks()

    # Key files

    def choose_key_file(self) -> None:
        """Let the user choose a key file."""
        path = self._panel.ask_for_file(_("Key file"), _("Key files") + " (*.key);;" + _("All files") + " (*)")
        self._choose_key(self.choices.key, path, key_identity, _("Failed to read the key file."))

    def choose_signing_key(self) -> None:
        """Let the user choose a signing key."""
        path = self._panel.ask_for_file(_("Signing key"), self._pem_files)
        self._choose_key(self.choices.signing, path, signing_key_identity, _("Failed to read the signing key."))

    def choose_public_key(self) -> None:
        """Let the user choose the public key of a signer."""
        path = self._panel.ask_for_file(_("Public key"), self._pem_files)
        self._choose_key(self.choices.public, path, public_key_identity, _("Failed to read the public key."))

    def make_key_file(self) -> None:
        """Make a key file and use it."""
        path = self._ask_for_new_key(_("New key file"), "clinic", ".key")
        if path is None:
            return
        jobs = self._panel.jobs
        with slicer.util.tryWithErrorDisplay(_("Failed to make the key file.")), jobs.showing_error():
            self._panel.ensure_key_packages()
            self._choose(self.choices.key, path, make_key_file(path))
            jobs.say(_("Made the key file. Keep a copy of it apart from the scans: without it there is no way back."))

    def make_signing_key(self) -> None:
        """Make a signing key and its public key, and use both."""
        path = self._ask_for_new_key(_("New signing key"), "signing", ".pem")
        if path is None:
            return
        jobs = self._panel.jobs
        with slicer.util.tryWithErrorDisplay(_("Failed to make the signing key.")), jobs.showing_error():
            self._panel.ensure_key_packages()
            identity, public = make_signing_key_file(path)
            self._choose(self.choices.signing, path, identity)
            self._choose(self.choices.public, public, identity)
            jobs.say(
                _("Made the signing key, which nobody else may have, and {name}, for those who verify.").format(
                    name=public.name
                )
            )

    # Scans on the disk

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

    def restore(self) -> None:
        """Restore the original of a sealed scan; cancel when that is under way."""
        panel, ui = self._panel, self._panel.ui
        if panel.jobs.press(ui.restoreButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to restore the original.")):
            parameters = panel.parameters
            with panel.jobs.showing_error():
                scan = self.choices.scan_on_disk(parameters)
            destination = self._ask_for_destination(scan)
            if destination is None:
                return
            node = self.choices.node_on_disk(parameters)
            name = _("{name} restored").format(name=node.GetName()) if node else _("Restored scan")
            panel.show_text(ui.keysResultLabel, "")
            with panel.jobs.running(ui.restoreButton, ui.keysProgressBar, _("files")) as progress:
                panel.ensure_key_packages()
                restored, restored_node = panel.logic.restoreOriginal(
                    scan,
                    destination,
                    self.choices.open_key(),
                    name=name if parameters.loadRestored else None,
                    progress=progress,
                )
                panel.show_text(ui.keysResultLabel, sentences.about_restored(scan.path.name, restored))
                if restored_node:
                    show_in_ordinary_views(restored_node)
                panel.jobs.say(_("Wrote {path}.").format(path=destination))

    def verify(self) -> None:
        """Tell whether a signed scan was changed, and show where; cancel when that is under way."""
        panel, ui = self._panel, self._panel.ui
        if panel.jobs.press(ui.verifyButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to verify the scan.")):
            parameters = panel.parameters
            with panel.jobs.showing_error():
                scan = self.choices.scan_on_disk(parameters)
            panel.show_text(ui.keysResultLabel, "")
            with panel.jobs.running(ui.verifyButton, ui.keysProgressBar, _("files")) as progress:
                panel.ensure_key_packages()
                checked = panel.logic.verify(scan, self.choices.public.path, progress=progress)
                panel.show_text(ui.keysResultLabel, sentences.about_check(scan.path.name, checked))
                self._make_room_for_map(parameters)
                candidates = (parameters.protectedVolume, parameters.sourceVolume)
                shown, _over = panel.logic.showChanges(checked, candidates, visible=parameters.showChanges)
                parameters.changeMap = shown

    def check_watermark(self) -> None:
        """Tell where a volume's watermark is missing, and show it; cancel when that is under way."""
        panel, ui = self._panel, self._panel.ui
        if panel.jobs.press(ui.checkWatermarkButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to check the watermark.")):
            panel.show_text(ui.keysResultLabel, "")
            with panel.jobs.running(ui.checkWatermarkButton, ui.keysProgressBar, _("slices")) as progress:
                parameters, node = panel.parameters, panel.parameters.checkedVolume
                panel.ensure_key_packages()
                key = self._watermark_key(node)
                check = panel.logic.checkWatermark(node, key, progress=progress)
                place = _place_of_target(check, node, parameters.targetPoint)
                words = sentences.about_watermark(node.GetName(), check, place, is_open=key is None)
                panel.show_text(ui.keysResultLabel, words)
                self._make_room_for_map(parameters)
                parameters.changeMap = panel.logic.showMissingWatermark(check, node, visible=parameters.showChanges)

    def _watermark_key(self, node: slicer.vtkMRMLScalarVolumeNode) -> Any:
        """The key to look for in a volume; None for the open watermark, if the volume says so or no key is chosen."""
        if watermark_kind(node) == "open" or self.choices.key.path is None:
            return None
        return self.choices.open_key_file()

    def _make_room_for_map(self, parameters: Any) -> None:
        if parameters.changeMap:
            remove_result(parameters.changeMap)
        self._compare.leave()

    def _ask_for_destination(self, scan: ScanOnDisk) -> Path | None:
        """Where to put a restored original, by default beside the scan; None when the user closes the dialog."""
        if scan.is_file:
            name, dot, suffixes = scan.path.name.partition(".")
            beside = scan.path.with_name(f"{name}-restored{dot}{suffixes}")
            return self._panel.ask_for_new_file(_("Restored original"), str(beside), self._panel.volume_files)
        folder = self._panel.ask_for_folder(_("Folder to put the restored series in"), str(scan.path.parent))
        return free_folder(folder, f"{scan.path.name}-restored") if folder else None

    # The choices

    @property
    def _pem_files(self) -> str:
        return _("PEM files") + " (*.pem);;" + _("All files") + " (*)"

    def _ask_for_new_key(self, title: str, name: str, suffix: str) -> Path | None:
        path = self._panel.ask_for_new_file(title, name + suffix, f"{title} (*{suffix})")
        # Not every system's dialog adds it.
        return path.with_name(path.name + suffix) if path and not path.suffix else path

    def _choose_key(
        self, chosen: ChosenPath, path: Path | None, identify: Callable[[Path], str | None], message: str
    ) -> None:
        """Take a key file that holds such a key, and explain any other."""
        if path is None:
            return
        jobs = self._panel.jobs
        with slicer.util.tryWithErrorDisplay(message), jobs.showing_error():
            self._panel.ensure_key_packages()
            self._choose(chosen, path, identify(path))
            is_open = chosen is not self.choices.public and not is_private(path)
            jobs.say(_("Other people on this computer may read this key file.") if is_open else "")

    def _choose(self, chosen: ChosenPath, path: Path | None, identity: str | None = None) -> None:
        chosen.choose(path, identity)
        self._panel.changed()

    def _on_passphrase_changed(self, _text: str) -> None:
        # It can stand for a key file.
        self._panel.changed()


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
