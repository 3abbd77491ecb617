"""The section on key files: which key seals exports, which signs them, which signer is expected; and restoring.

These choices belong to the person at this computer and not to the scene, so they live here and in the widgets alone:
neither the parameter node nor the application's settings ever see them. Of a key file only the place is kept; keys are
read anew for each job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from ...errors import InputError
from ...keys.key_files import Key, is_private
from ...save_protected import Proofs
from .. import key_files
from ..export import free_folder
from ..origin import ScanOnDisk, may_be_on_disk, scan_of_file, scan_of_node, steps_of
from ..packages import KEYS
from . import sentences
from .shared import Section


@dataclass(eq=False, repr=False)
class ChosenKey:
    """A key file that the user chose: its name in a read-only line edit, its path in the tool tip."""

    panel: Any
    widgets: tuple[Any, Any, Any]  # the line edit, and the buttons that let the user choose another, and none
    title: str  # of the dialog
    kinds: str  # of files, as file dialogs want them
    identify: Callable[[Path], str | None]  # names the key in a file, and refuses what is no such key
    failure: str  # what the message box says then
    path: Path | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        line_edit, choose_button, forget_button = self.widgets
        self._line_edit, self._tool_tip = line_edit, line_edit.toolTip
        choose_button.connect("clicked()", self._ask)
        forget_button.connect("clicked()", lambda: self.choose(None))
        self.panel.add_control(choose_button, waits=True)
        self.panel.add_control(forget_button, missing=lambda: "" if self.path else _("Nothing is chosen."), waits=True)

    def choose(self, path: Path | None, identity: str | None = None) -> None:
        """Keep a path and the identity of its key, or none."""
        self.path, self.identity = path, identity
        self._line_edit.text = path.name if path else ""
        self._line_edit.toolTip = str(path) if path else self._tool_tip
        self.panel.changed()

    def _ask(self) -> None:
        path = self.panel.ask_for_file(self.title, self.kinds + ";;" + _("All files") + " (*)")
        if path is None:
            return
        with self.panel.trying(self.failure):
            self.panel.ensure_packages(*KEYS)
            self.choose(path, self.identify(path))
            is_open = self.identify is not key_files.public_key_identity and not is_private(path)
            self.panel.jobs.say(_("Other people on this computer may read this key file.") if is_open else "")


class KeysSection(Section):
    """Chooses and makes key files, opens them for one job each, and restores originals with them."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        ui, pem_files = panel.ui, _("PEM files") + " (*.pem)"
        self._key = ChosenKey(
            panel,
            (ui.keyFileLineEdit, ui.keyFileButton, ui.forgetKeyButton),
            _("Key file"),
            _("Key files") + " (*.key)",
            key_files.key_identity,
            _("Failed to read the key file."),
        )
        self._signing = ChosenKey(
            panel,
            (ui.signingKeyLineEdit, ui.signingKeyButton, ui.forgetSigningKeyButton),
            _("Signing key"),
            pem_files,
            key_files.signing_key_identity,
            _("Failed to read the signing key."),
        )
        self._public = ChosenKey(
            panel,
            (ui.publicKeyLineEdit, ui.publicKeyButton, ui.forgetPublicKeyButton),
            _("Public key"),
            pem_files,
            key_files.public_key_identity,
            _("Failed to read the public key."),
        )
        # A passphrase can stand for a key file.
        ui.passphraseLineEdit.connect("textChanged(QString)", lambda _text: panel.changed())
        ui.newKeyButton.connect("clicked()", self.make_key_file)
        ui.newSigningKeyButton.connect("clicked()", self.make_signing_key)
        panel.add_control(ui.passphraseLineEdit, ui.newKeyButton, ui.newSigningKeyButton, waits=True)
        panel.add_job(
            ui.restoreButton,
            ui.keysProgressBar,
            self.restore,
            unit=_("files"),
            failure=_("Failed to restore the original."),
            icon="Restore",
            missing=self._missing_to_restore,
            ask=self._ask_what_to_restore,
        )
        panel.show_text(ui.keysResultLabel, "")

    @property
    def has_key(self) -> bool:
        """Whether a key file is chosen."""
        return self._key.path is not None

    @property
    def public_key(self) -> Path | None:
        """The public key of the expected signer."""
        return self._public.path

    def update(self) -> None:
        """Say what exports do besides writing."""
        typed = bool(self._panel.ui.passphraseLineEdit.text) and not self.has_key and self._signing.path is None
        words = sentences.about_proofs(self._key.identity, self._signing.path is not None, typed_alone=typed)
        self._panel.show_text(self._panel.ui.proofsLabel, words)

    def leave(self) -> None:
        """Forget the passphrase."""
        self._panel.ui.passphraseLineEdit.clear()

    def scene_closes(self) -> None:
        """Forget what was restored. It may be of a patient, and the scene is closed."""
        self._panel.show_text(self._panel.ui.keysResultLabel, "")

    def open_proofs(self) -> Proofs | None:
        """The keys for an export, None where none is chosen; the passphrase is forgotten.

        :raises InputError: a file is no such key any more, or its passphrase is missing or wrong.
        """
        if not self.has_key and self._signing.path is None:
            return None
        self._panel.ensure_packages(*KEYS)
        return key_files.open_proofs(self._key.path, self._signing.path, self._take_passphrase())

    def open_key_file(self) -> Key | None:
        """The key of the file, for a watermark; None where none is chosen: a passphrase will not do.

        :raises InputError: it is no key file any more.
        """
        return key_files.open_key(self._key.path, "") if self.has_key else None

    def options_to_examine(self) -> tuple[str, ...]:
        """The chosen keys, as the command ``examine`` takes them."""
        return _options(("--watermark", self._key.path), ("--public-key", self._public.path))

    def options_to_protect(self, *, with_watermark: bool) -> tuple[str, ...]:
        """The chosen keys, as the command ``protect`` takes them.

        :param with_watermark: whether the key is also that of a watermark.
        :raises InputError: the signing key is locked: the command cannot ask for its passphrase.
        """
        if self._signing.path is not None and key_files.signing_key_identity(self._signing.path) is None:
            raise InputError(_("For whole folders choose a signing key without a passphrase."))
        key = self._key.path
        return _options(
            ("--key", key), ("--watermark", key if with_watermark else None), ("--sign", self._signing.path)
        )

    def make_key_file(self) -> None:
        """Make a key file and use it."""
        path = self._ask_for_new_key(_("New key file"), "clinic", ".key")
        if path is None:
            return
        with self._panel.trying(_("Failed to make the key file.")):
            self._panel.ensure_packages(*KEYS)
            self._key.choose(path, key_files.make_key_file(path))
            self._panel.jobs.say(
                _("Made the key file. Keep a copy of it apart from the scans: without it there is no way back.")
            )

    def make_signing_key(self) -> None:
        """Make a signing key and its public key, and use both."""
        path = self._ask_for_new_key(_("New signing key"), "signing", ".pem")
        if path is None:
            return
        with self._panel.trying(_("Failed to make the signing key.")):
            self._panel.ensure_packages(*KEYS)
            identity, public = key_files.make_signing_key_file(path)
            self._signing.choose(path, identity)
            self._public.choose(public, identity)
            self._panel.jobs.say(
                _("Made the signing key. Give it to nobody; give {name} to those who verify.").format(name=public.name)
            )

    def restore(self, progress: Callable[..., None], what: tuple[ScanOnDisk, Path, str]) -> None:
        """Restore the original of a sealed scan, and load it.

        :param what: the scan, where its original goes, and the name of the volume that shows it.
        """
        scan, destination, name = what
        panel = self._panel
        panel.show_text(panel.ui.keysResultLabel, "")
        panel.ensure_packages(*KEYS)
        key = key_files.open_key(self._key.path, self._take_passphrase())
        restored, node = panel.logic.restoreOriginal(scan, destination, key, name=name, progress=progress)
        panel.show_text(panel.ui.keysResultLabel, sentences.about_restored(scan.path.name, restored))
        if panel.parameters:
            panel.parameters.volume = node
        panel.jobs.say(_("Wrote {path}.").format(path=destination))

    def _missing_to_restore(self) -> str:
        if self.has_key or self._panel.ui.passphraseLineEdit.text:
            return ""
        return _("Choose the key file that the scan was sealed with, or type the passphrase.")

    def _ask_what_to_restore(self) -> tuple[ScanOnDisk, Path, str] | None:
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

    def _ask_for_new_key(self, title: str, name: str, suffix: str) -> Path | None:
        path = self._panel.ask_for_new_file(title, name + suffix, f"{title} (*{suffix})")
        # Not every system's dialog adds it.
        return path.with_name(path.name + suffix) if path and not path.suffix else path

    def _take_passphrase(self) -> str:
        text = self._panel.ui.passphraseLineEdit.text
        self._panel.ui.passphraseLineEdit.clear()
        return text


def _options(*chosen: tuple[str, Path | None]) -> tuple[str, ...]:
    return tuple(word for option, path in chosen if path for word in (option, str(path)))
