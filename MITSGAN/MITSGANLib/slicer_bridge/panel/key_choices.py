"""The choices around keys and signatures: which key files, which scan on disk, and a passphrase for one use.

They belong to the person at this computer and not to the scene, so they live here and in the widgets alone: neither the
parameter node nor the application's settings ever see them. Of a key file only the place is kept; keys are read anew
for each job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..keys_and_seals import Locks, ScanOnDisk, may_be_on_disk, open_key, open_locks, scan_of_node
from . import sentences


class ChosenPath:
    """A file or folder that the user chose: its name in a line edit, its path in the tool tip.

    :param line_edit: read-only.
    :param forget_button: forgets the choice.
    """

    def __init__(self, line_edit: Any, forget_button: Any) -> None:
        self._line_edit, self._button = line_edit, forget_button
        self._tool_tip = line_edit.toolTip
        self.path: Path | None = None
        self.identity: str | None = None

    def choose(self, path: Path | None, identity: str | None = None) -> None:
        """Keep a path, or none.

        :param identity: of the key in a key file, as others name it.
        """
        self.path, self.identity = path, identity
        self._line_edit.text = path.name if path else ""
        self._line_edit.toolTip = str(path) if path else self._tool_tip

    def refresh(self, *, is_idle: bool) -> None:
        """Enable what forgets the choice."""
        self._button.enabled = is_idle and self.path is not None


class KeyChoices:
    """What the user chose in the section on keys and signatures.

    :param ui: the panel's widgets.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self.key = ChosenPath(ui.keyFileLineEdit, ui.forgetKeyButton)
        self.signing = ChosenPath(ui.signingKeyLineEdit, ui.forgetSigningKeyButton)
        self.public = ChosenPath(ui.publicKeyLineEdit, ui.forgetPublicKeyButton)
        self.scan = ChosenPath(ui.scanLineEdit, ui.forgetScanButton)

    @property
    def has_locks(self) -> bool:
        """Whether exports are sealed or signed."""
        return self.key.path is not None or self.signing.path is not None

    @property
    def can_open(self) -> bool:
        """Whether there is a key or a passphrase to restore with."""
        return self.key.path is not None or bool(self._ui.passphraseLineEdit.text)

    def open_locks(self) -> Locks:
        """The keys for an export; the passphrase is forgotten.

        :raises InputError: a file is no such key any more, or its passphrase is missing or wrong.
        """
        return open_locks(self.key.path, self.signing.path, self._take_passphrase())

    def open_key(self) -> Any:
        """The key to restore with, that of the file or else of the passphrase, which is forgotten.

        :raises InputError: as :meth:`open_locks`.
        """
        return open_key(self.key.path, self._take_passphrase())

    def open_key_file(self) -> Any:
        """The key of the file, for a watermark; a passphrase will not do.

        :raises InputError: it is no key file any more.
        """
        return open_key(self.key.path, "")

    def forget_passphrase(self) -> None:
        """Empty the field."""
        self._ui.passphraseLineEdit.clear()

    def node_on_disk(self, parameters: Any) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The selected volume whose files stand in for a scan that was not chosen."""
        if self.scan.path is not None or not parameters:
            return None
        return next(
            (node for node in (parameters.protectedVolume, parameters.sourceVolume) if may_be_on_disk(node)), None
        )

    def scan_on_disk(self, parameters: Any) -> ScanOnDisk:
        """What to restore or verify: the chosen folder or file, else the files of the selected volume.

        :raises InputError, OutputError: its files are not to be found.
        """
        return ScanOnDisk(self.scan.path) if self.scan.path else scan_of_node(self.node_on_disk(parameters))

    def refresh(self, parameters: Any, *, is_idle: bool) -> None:
        """Show what exports do, and which scan is meant."""
        for chosen in (self.key, self.signing, self.public, self.scan):
            chosen.refresh(is_idle=is_idle)
        self._ui.locksLabel.text = sentences.about_locks(
            self.key.identity if self.key.path else None, self.signing.path is not None
        )
        node = self.node_on_disk(parameters)
        self._ui.scanLineEdit.placeholderText = _("files of {name}").format(name=node.GetName()) if node else _("none")

    def _take_passphrase(self) -> str:
        text = self._ui.passphraseLineEdit.text
        self.forget_passphrase()
        return text
