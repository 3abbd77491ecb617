"""Whole folders from the panel: a command in a process of its own, followed, ended, and its scans opened."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from MITSGANLib.files.volume_files import write_file
from MITSGANLib.scan.volume import PROTECTION, ProcessingStep

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from panel_data import choose, click_failing, wait_until

# What the command would do: tell, wait to be ended, fail.
PROGRAM = """
import json, pathlib, sys, time
told, *lines = sys.argv[1:]
with open(told, "w") as file:
    for line in lines:
        if line == "wait":
            time.sleep(600)
        elif line == "fail":
            sys.exit("mitsgan: there is nothing to do")
        else:
            print(line, file=file, flush=True)
"""


@pytest.fixture
def folders(module):  # noqa: ARG001 - the module brings qt
    """The section's file."""
    from MITSGANLib.slicer_bridge.panel import folders

    return folders


@pytest.fixture
def command(monkeypatch, tmp_path, folders):
    """What the panel's command writes, and how it ends."""
    lines = []
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(
        folders.FolderJob, "line", lambda _job, told: [sys.executable, str(tmp_path / "program.py"), str(told), *lines]
    )
    return lines


def scan_line(source: str, done: int, outcome: str, **values) -> str:
    return json.dumps({"event": "scan", "done": done, "total": 2, "outcome": outcome, "source": source, **values})


def rows(panel) -> list[list[str]]:
    table = panel.ui.scansTable
    return [[table.item(row, column).text() for column in range(2)] for row in range(table.rowCount)]


def press(panel, dialogs, name: str, *folders: Path) -> None:
    dialogs.answers = list(folders)
    getattr(panel.ui, f"{name}FolderButton").click()


def is_idle(panel) -> bool:
    return not panel.panel.folders.is_running


def test_each_scan_is_a_line_and_a_click_opens_it(panel, dialogs, command, scan, tmp_path, standin):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a").mkdir(parents=True)
    write_file(scan.volume, tmp_path / "in" / "b.nrrd")
    protected = scan.volume.with_hu(scan.volume.hu, ProcessingStep(PROTECTION, "MITSGAN protection"))
    write_file(protected, tmp_path / "out" / "a" / "one.nrrd")
    command += [
        json.dumps({"event": "begin", "done": 0, "total": 2}),
        scan_line("a/one.nrrd", 1, "protected"),
        scan_line("b.nrrd", 2, "failed", reason="it is no CT"),
        json.dumps({"event": "end"}),
    ]
    press(panel, dialogs, "protect", tmp_path / "in", tmp_path / "out")
    assert panel.ui.protectFolderButton.text == "Cancel"
    assert not panel.ui.examineFolderButton.enabled
    assert panel.ui.foldersProgressBar.isVisibleTo(panel.ui.foldersCollapsibleButton)
    wait_until(lambda: is_idle(panel))
    assert standin.errors == []
    assert rows(panel) == [["a/one.nrrd", "protected"], ["b.nrrd", "failed: it is no CT"]]
    assert "Done: 2 scans" in panel.ui.foldersLabel.text
    assert "1 of them failed" in panel.ui.foldersLabel.text
    assert panel.ui.protectFolderButton.text == "Protect folder…"
    panel.ui.scansTable.cellClicked.emit(0, 0)
    assert panel._parameterNode.volume.GetName() == "one.nrrd"
    assert "<b>Protected</b>" in panel.ui.stateLabel.text
    panel.ui.scansTable.cellClicked.emit(1, 1)
    assert panel._parameterNode.volume.GetName() == "b.nrrd"
    assert "No record of protection" in panel.ui.stateLabel.text


def test_a_second_press_ends_it_and_keeps_what_is_done(panel, dialogs, command, tmp_path):
    command += [json.dumps({"event": "begin", "done": 0, "total": 2}), scan_line("a", 1, "nothing found"), "wait"]
    press(panel, dialogs, "examine", tmp_path, tmp_path / "results")
    wait_until(lambda: rows(panel))
    assert "1 of 2 scans" in panel.ui.foldersLabel.text
    panel.ui.examineFolderButton.click()
    wait_until(lambda: is_idle(panel))
    assert "Canceled; 1 scans are done" in panel.ui.foldersLabel.text
    assert panel.ui.examineFolderButton.text == "Examine folder…"


def test_a_command_that_fails_is_explained(panel, dialogs, command, tmp_path):
    command += ["fail"]
    press(panel, dialogs, "examine", tmp_path, tmp_path / "results")
    wait_until(lambda: is_idle(panel))
    assert "It failed: mitsgan: there is nothing to do" in panel.ui.foldersLabel.text


@pytest.mark.parametrize("done", [0, 1])
def test_a_command_that_ends_before_its_end_has_failed(panel, dialogs, command, tmp_path, done):
    """Whatever its exit code: it may have crashed, or not be what was to be started."""
    command += [scan_line("a", 1, "protected")][:done]
    press(panel, dialogs, "protect", tmp_path, tmp_path / "out")
    wait_until(lambda: is_idle(panel))
    assert "It failed" in panel.ui.foldersLabel.text
    assert "ended without a word" in panel.ui.foldersLabel.text
    assert ("after 1 scans" in panel.ui.foldersLabel.text) == bool(done)


def test_a_closed_panel_leaves_no_process(panel, dialogs, command, tmp_path):
    command += ["wait"]
    press(panel, dialogs, "examine", tmp_path, tmp_path / "results")
    assert not is_idle(panel)
    panel.panel.folders.close()
    assert is_idle(panel)


def test_a_closed_dialog_starts_nothing(panel, dialogs, command, tmp_path):
    command += ["wait"]
    press(panel, dialogs, "examine", "")
    press(panel, dialogs, "examine", tmp_path, "")
    assert is_idle(panel)


def test_the_command_is_that_of_a_terminal(panel, dialogs, key_file, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(panel.panel.folders, "start", started.append)
    choose(panel, dialogs, "keyFile", key_file)
    press(panel, dialogs, "protect", tmp_path / "in", tmp_path / "out")
    press(panel, dialogs, "examine", tmp_path / "in", tmp_path / "results")
    panel.ui.modelComboBox.setCurrentIndex(panel.ui.modelComboBox.findData("watermark"))
    press(panel, dialogs, "protect", tmp_path / "in", tmp_path / "out")
    protect, examine, watermark = started
    key = str(key_file)
    assert protect.options == ("--model", "default", "--device", "auto", "--key", key)
    assert examine.options == ("--watermark", key)
    assert watermark.options == ("--model", "none", "--device", "auto", "--key", key, "--watermark", key)
    _python, script, name, tree, out, *options = protect.line(tmp_path / "told")
    assert Path(script).is_file()
    assert (name, tree, out) == ("protect", str(tmp_path / "in"), str(tmp_path / "out"))
    assert options[:3] == ["--collection", "--json-lines", str(tmp_path / "told")]


def test_a_locked_signing_key_is_refused(panel, dialogs, tmp_path):
    from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key

    save_signing_key(new_signing_key(), tmp_path / "locked.pem", b"a passphrase of some length")
    choose(panel, dialogs, "signingKey", tmp_path / "locked.pem")
    click_failing(panel.ui.protectFolderButton, "without a passphrase")


def test_half_a_line_waits_for_its_end(tmp_path, folders):
    told = folders.Told(tmp_path / "told")
    assert list(told.new()) == []
    (tmp_path / "told").write_text('{"a": 1}\nno json\n{"b"')
    assert list(told.new()) == [{"a": 1}]
    with (tmp_path / "told").open("a") as file:
        file.write(": 2}\n")
    assert list(told.new()) == [{"b": 2}]


@pytest.mark.slow
def test_the_real_command_examines_a_folder(panel, folders, scan, tmp_path):
    # Of slices that are wider than any CT's nobody seeks what was cropped, which takes long.
    volume = dataclasses.replace(scan.volume, hu=scan.volume.hu[:4, 40:80].repeat(9, axis=2))
    (tmp_path / "studies").mkdir()
    write_file(volume, tmp_path / "studies" / "in.nrrd")
    panel.panel.folders.start(folders.FolderJob("examine", tmp_path / "studies", tmp_path / "results"))
    wait_until(lambda: is_idle(panel))
    assert [source for source, _result in rows(panel)] == ["in.nrrd"]
