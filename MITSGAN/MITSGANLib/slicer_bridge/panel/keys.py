"""The section on key files: which key seals exports, which signs them, and which signer is expected.

These choices belong to the person at this computer and not to the scene, so they live here and in the widgets alone:
neither the parameter node nor the application's settings ever see them. Of a key file only the place is kept; keys are
read anew for each job.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from ...errors import InputError
from ...keys.key_files import Key, is_private
from ...save_protected import Proofs
from .. import key_files
from ..packages import KEYS
from . import sentences
from .shared import Panel, Section


class ChosenPath:
    """A file or folder that the user chose: its name in a read-only line edit, its path in the tool tip."""

    def __init__(self, panel: Panel, line_edit: Any, forget_button: Any) -> None:
        self._panel, self._line_edit = panel, line_edit
        self._tool_tip = line_edit.toolTip
        self.path: Path | None = None
        self.identity: str | None = None
        panel.add_control(forget_button, missing=lambda: "" if self.path else _("Nothing is chosen."), waits=True)

    def choose(self, path: Path | None, identity: str | None = None) -> None:
        """Keep a path, or none.

        :param identity: of the key in a key file, as others name it.
        """
        self.path, self.identity = path, identity
        self._line_edit.text = path.name if path else ""
        self._line_edit.toolTip = str(path) if path else self._tool_tip
        self._panel.changed()


class KeysSection(Section):
    """Chooses and makes key files, and opens them for one job each."""

    def __init__(self, panel: Panel) -> None:
        super().__init__(panel)
        ui = panel.ui
        self._key = ChosenPath(panel, ui.keyFileLineEdit, ui.forgetKeyButton)
        self._signing = ChosenPath(panel, ui.signingKeyLineEdit, ui.forgetSigningKeyButton)
        self._public = ChosenPath(panel, ui.publicKeyLineEdit, ui.forgetPublicKeyButton)
        # A passphrase can stand for a key file.
        ui.passphraseLineEdit.connect("textChanged(QString)", lambda _text: panel.changed())
        buttons = (
            (ui.keyFileButton, self.choose_key_file),
            (ui.newKeyButton, self.make_key_file),
            (ui.signingKeyButton, self.choose_signing_key),
            (ui.newSigningKeyButton, self.make_signing_key),
            (ui.publicKeyButton, self.choose_public_key),
        )
        for button, slot in (
            *buttons,
            (ui.forgetKeyButton, lambda: self._key.choose(None)),
            (ui.forgetSigningKeyButton, lambda: self._signing.choose(None)),
            (ui.forgetPublicKeyButton, lambda: self._public.choose(None)),
        ):
            button.connect("clicked()", slot)
        panel.add_control(ui.passphraseLineEdit, *(button for button, _slot in buttons), waits=True)

    @property
    def has_key(self) -> bool:
        """Whether a key file is chosen."""
        return self._key.path is not None

    @property
    def can_open(self) -> bool:
        """Whether there is a key or a passphrase to restore with."""
        return self.has_key or bool(self._panel.ui.passphraseLineEdit.text)

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

    def open_proofs(self) -> Proofs | None:
        """The keys for an export, None where none is chosen; the passphrase is forgotten.

        :raises InputError: a file is no such key any more, or its passphrase is missing or wrong.
        """
        if not self.has_key and self._signing.path is None:
            return None
        self._panel.ensure_packages(*KEYS)
        return key_files.open_proofs(self._key.path, self._signing.path, self._take_passphrase())

    def open_key(self) -> Key:
        """The key to restore with, that of the file or else of the passphrase, which is forgotten.

        :raises InputError: as :meth:`open_proofs`.
        """
        return key_files.open_key(self._key.path, self._take_passphrase())

    def open_key_file(self) -> Key:
        """The key of the file, for a watermark; a passphrase will not do.

        :raises InputError: it is no key file any more.
        """
        return key_files.open_key(self._key.path, "")

    def options_to_examine(self) -> tuple[str, ...]:
        """The chosen keys, as the command ``examine`` takes them."""
        chosen = (("--watermark", self._key.path), ("--public-key", self._public.path))
        return tuple(word for option, path in chosen if path for word in (option, str(path)))

    def options_to_protect(self, *, with_watermark: bool) -> tuple[str, ...]:
        """The chosen keys, as the command ``protect`` takes them.

        :param with_watermark: whether the key is also that of a watermark.
        :raises InputError: the signing key is locked: the command cannot ask for its passphrase.
        """
        if self._signing.path is not None and key_files.signing_key_identity(self._signing.path) is None:
            raise InputError(_("For whole folders choose a signing key without a passphrase."))
        key = self._key.path
        chosen = (("--key", key), ("--watermark", key if with_watermark else None), ("--sign", self._signing.path))
        return tuple(word for option, path in chosen if path for word in (option, str(path)))

    def choose_key_file(self) -> None:
        """Let the user choose a key file."""
        path = self._panel.ask_for_file(_("Key file"), _("Key files") + " (*.key);;" + _("All files") + " (*)")
        self._choose(self._key, path, key_files.key_identity, _("Failed to read the key file."))

    def choose_signing_key(self) -> None:
        """Let the user choose a signing key."""
        path = self._panel.ask_for_file(_("Signing key"), self._pem_files)
        self._choose(self._signing, path, key_files.signing_key_identity, _("Failed to read the signing key."))

    def choose_public_key(self) -> None:
        """Let the user choose the public key of a signer."""
        path = self._panel.ask_for_file(_("Public key"), self._pem_files)
        self._choose(self._public, path, key_files.public_key_identity, _("Failed to read the public key."))

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

    @property
    def _pem_files(self) -> str:
        return _("PEM files") + " (*.pem);;" + _("All files") + " (*)"

    def _ask_for_new_key(self, title: str, name: str, suffix: str) -> Path | None:
        path = self._panel.ask_for_new_file(title, name + suffix, f"{title} (*{suffix})")
        # Not every system's dialog adds it.
        return path.with_name(path.name + suffix) if path and not path.suffix else path

    def _choose(
        self, chosen: ChosenPath, path: Path | None, identify: Callable[[Path], str | None], failure: str
    ) -> None:
        """Take a key file that holds such a key, and explain any other."""
        if path is None:
            return
        with self._panel.trying(failure):
            self._panel.ensure_packages(*KEYS)
            chosen.choose(path, identify(path))
            is_open = chosen is not self._public and not is_private(path)
            self._panel.jobs.say(_("Other people on this computer may read this key file.") if is_open else "")

    def _take_passphrase(self) -> str:
        text = self._panel.ui.passphraseLineEdit.text
        self._panel.ui.passphraseLineEdit.clear()
        return text
