"""Whole folders of studies: protected or examined by a command in a process of its own, with a table of what it did."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from ...errors import DependencyError
from ..packages import COLLECTIONS, KEYS, NETWORKS
from .protect import WATERMARK
from .shared import Section

PROTECT, EXAMINE = "protect", "examine"

_MILLISECONDS = 300
_PATIENCE_MILLISECONDS = 5000
_ERROR_SHOWN = 300


@dataclass(frozen=True)
class FolderJob:
    """A command over a tree of studies."""

    command: str  # PROTECT or EXAMINE
    tree: Path  # is only read
    out: Path  # the same tree protected, or a folder of results
    options: tuple[str, ...] = ()  # as for a terminal

    def line(self, told: Path) -> list[str]:
        """Program and arguments.

        :param told: the file in which the command tells of each scan as soon as it is done.
        :raises DependencyError: the commands are not installed.
        """
        # Installed, all modules lie in one folder; in a checkout each has its own.
        folder = Path(__file__).resolve().parents[3]
        scripts = [place / "run_mitsgan.py" for place in (folder, folder.parent / "MITSGANTraining")]
        script = next((path for path in scripts if path.is_file()), None)
        if script is None:
            raise DependencyError(_("The module MITSGAN Training, which has the commands, is not installed."))
        python = shutil.which("PythonSlicer") or sys.executable
        places = [str(self.tree), str(self.out), "--collection", "--json-lines", str(told)]
        return [python, str(script), self.command, *places, *self.options]


class Told:
    """The lines of JSON that a command writes to a file while it works."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Whole lines that were not there the last time."""
        try:
            data = self._path.read_bytes()[self._read :]
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


class FoldersSection(Section):
    """Starts a command, follows it, ends it on request, and opens the scan of a line."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._process: Any = None
        self._job: FolderJob | None = None
        self._told: Told | None = None
        self._folder: tempfile.TemporaryDirectory | None = None
        self._was_canceled = self._has_ended = self._opens = False
        self._lines: list[dict[str, Any]] = []
        self._timer = panel.timer(_MILLISECONDS, self.poll)
        ui = panel.ui
        self._buttons = {PROTECT: ui.protectFolderButton, EXAMINE: ui.examineFolderButton}
        self._titles = {command: button.text for command, button in self._buttons.items()}
        for command, button in self._buttons.items():
            button.connect("clicked()", lambda command=command: self.press(command))
            panel.add_control(button, missing=lambda command=command: self._missing(command))
        ui.scansTable.connect("cellClicked(int,int)", self.open_scan)
        panel.show_text(ui.foldersLabel, "")

    @property
    def is_running(self) -> bool:
        """Whether a command is at work."""
        return self._process is not None

    def press(self, command: str) -> None:
        """Ask for the folders and start a command, or end the one that runs."""
        if self.is_running:
            self.cancel()
            return
        panel = self._panel
        needs_networks = command == PROTECT and panel.parameters.model != WATERMARK
        with panel.trying(_("Failed to start.")):
            panel.ensure_packages(*KEYS, *COLLECTIONS, *(NETWORKS if needs_networks else ()))
            options = self._options(command)
            tree = panel.ask_for_folder(_("Folder with studies; it is only read"))
            if tree is None:
                return
            title = _("Folder for the protected copies") if command == PROTECT else _("Folder for the results")
            out = panel.ask_for_folder(title, str(tree.parent))
            if out is not None:
                self.start(FolderJob(command, tree, out, options))

    def start(self, job: FolderJob) -> None:
        """Start a command.

        :raises DependencyError: the commands are not installed.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="mitsgan-")
        path = Path(self._folder.name) / "told.jsonl"
        program, *arguments = job.line(path)
        self._job, self._told, self._was_canceled, self._has_ended = job, Told(path), False, False
        self._lines = []
        ui = self._panel.ui
        ui.scansTable.setRowCount(0)
        self._process = qt.QProcess(self._panel.window)
        # Nobody reads it, and a full pipe would stop the command.
        self._process.setStandardOutputFile(qt.QProcess.nullDevice())
        self._process.start(program, arguments)
        self._timer.start()
        self._buttons[job.command].text = _("Cancel")
        ui.foldersProgressBar.setRange(0, 0)
        ui.foldersProgressBar.setVisible(True)
        self._panel.show_text(ui.foldersLabel, _("Looking for scans…"))
        self._panel.changed()

    def cancel(self) -> None:
        """End the running command; scans that it has finished are kept."""
        self._was_canceled = True
        process = self._process
        process.terminate()
        # What does not listen, as a console program of Windows.
        self._panel.later(lambda: self._process is process and process.kill(), _PATIENCE_MILLISECONDS)

    def close(self) -> None:
        """End the command with the panel."""
        self._timer.stop()
        if self._process is not None:
            self._process.kill()
            self._process.waitForFinished(_PATIENCE_MILLISECONDS)
            self._let_go()

    def poll(self) -> None:
        """Show what the command has told, and whether it has ended."""
        if self._process is None:
            return
        # Asked before its lines are read, so that none that came before the end is lost.
        ended = self._process.state() == qt.QProcess.NotRunning
        for line in self._told.new():
            self._take(line)
        if ended:
            self._end()

    def open_scan(self, row: int, _column: int) -> None:
        """Load and show the scan of a line: protected, where it was, else as it is."""
        panel = self._panel
        if self._opens or row >= len(self._lines) or not panel.parameters:
            return
        line, job = self._lines[row], self._job
        place = job.out if line.get("outcome") == "protected" else job.tree
        self._opens = True
        try:
            with panel.trying(_("Failed to open the scan.")):
                node = panel.logic.loadScan(place / str(line["source"]), line.get("series_instance_uid"))
                if panel.parameters:
                    panel.parameters.volume = node
        finally:
            self._opens = False

    def _take(self, line: dict[str, Any]) -> None:
        ui, event = self._panel.ui, line.get("event")
        if event in ("begin", "scan"):
            done, total, left = int(line.get("done") or 0), int(line.get("total") or 0), line.get("seconds_left")
            ui.foldersProgressBar.setRange(0, total)
            ui.foldersProgressBar.setValue(done)
            words = _("{done} of {total} scans").format(done=done, total=total)
            if left:
                words += ", " + _("{minutes:.0f} min left").format(minutes=max(1, left / 60))
            self._panel.show_text(ui.foldersLabel, words)
        self._has_ended = event == "end"
        if event == "scan" and "source" in line:
            self._lines.append(line)
            result = ": ".join(filter(None, (str(line.get("outcome", "")), line.get("reason") or line.get("error"))))
            ui.scansTable.setRowCount(len(self._lines))
            self._panel.set_row(ui.scansTable, len(self._lines) - 1, (str(line["source"]), result))
            ui.scansTable.setVisible(True)

    def _end(self) -> None:
        error = self._process.readAllStandardError().data()
        error = error if isinstance(error, str) else bytes(error).decode("utf-8", "replace")
        job, count = self._job, len(self._lines)
        self._let_go()
        if self._was_canceled:
            words = _("Canceled; {count} scans are done, and the same folders go on from there.").format(count=count)
        elif not self._has_ended:
            lines = error.strip().splitlines()
            reason = lines[-1][:_ERROR_SHOWN] if lines else _("the command ended without a word.")
            words = _("It failed after {count} scans: {reason}") if count else _("It failed: {reason}")
            words = words.format(count=count, reason=reason)
        elif job.command == PROTECT:
            words = _("Done: {count} scans. The protected copies are in the folder that you chose.").format(count=count)
        else:
            words = _("Done: {count} scans. Click one to open it.").format(count=count)
        failed = sum(line.get("outcome") == "failed" for line in self._lines)
        if failed:
            words += " " + _("{failed} of them failed; the table says why.").format(failed=failed)
        self._panel.show_text(self._panel.ui.foldersLabel, words)
        self._panel.jobs.say(words)
        self._panel.changed()

    def _let_go(self) -> None:
        self._timer.stop()
        self._process = None
        self._folder.cleanup()
        if not self._panel.is_closed:
            self._buttons[self._job.command].text = self._titles[self._job.command]
            self._panel.ui.foldersProgressBar.setVisible(False)

    def _options(self, command: str) -> tuple[str, ...]:
        """The options of a command that say what the panel says.

        :raises InputError: a signing key is locked, and nobody could be asked for its passphrase.
        """
        parameters = self._panel.parameters
        if command == EXAMINE:
            return self._panel.keys.options_to_examine()
        model = "none" if parameters.model == WATERMARK else parameters.model
        options = ["--model", model, "--device", parameters.device]
        if model != "none" and parameters.strengthHU:
            options += ["--strength-hu", f"{parameters.strengthHU:g}"]
        return (*options, *self._panel.keys.options_to_protect(with_watermark=model == "none"))

    def _missing(self, command: str) -> str:
        if self.is_running and self._job.command != command:
            return _("Wait until the other folder is done, or cancel it.")
        return ""
