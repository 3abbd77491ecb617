"""The scripts that run commands in Slicer, and the options that Slicer keeps for itself."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from MITSGANTrainingLib.commandline import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
TRAINING = ROOT / "MITSGANTraining"

# Of the application (names in qSlicerCoreCommandOptions.cxx and qSlicerCommandOptions.cxx of Slicer 5.13), and of Qt.
SLICER = """
--ignore-rest --help -h --testing --disable-python --python-script --python-code -c --ignore-slicerrc
--additional-module-path --additional-module-paths --modules-to-ignore --disable-modules --disable-builtin-modules
--disable-cli-modules --disable-builtin-cli-modules --disable-loadable-modules --disable-builtin-loadable-modules
--disable-scripted-loadable-modules --disable-builtin-scripted-loadable-modules --version --program-path --home
--settings-path --temporary-path --application-information --verbose-module-discovery --disable-settings
--keep-temporary-settings --disable-message-handlers --disable-terminal-outputs --disable-tooltips --no-splash
--no-main-window --show-python-console --show-python-interactor --qt-testing --exit-after-startup
--report-startup-timing
"""
QT = "--style --stylesheet --session --name --title --platform --display --geometry --icon --reverse --plugin"
KEPT_BY_SLICER = {*SLICER.split(), *QT.split()}
DOCUMENTED = {"--help", "-h", "--version"}
"""Those of ours that Slicer keeps. Where to write them is documented."""


def options_of(command) -> set[str]:
    """The options of a command, as its help lists them at the beginning of a line."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    listed = re.findall(r"^  (-.*)$", parser.format_help(), re.MULTILINE)
    return {option for line in listed for option in re.findall(r"(?:^|, )(--?[a-z][\w-]*)", line)}


@pytest.mark.parametrize("name", COMMANDS)
def test_slicer_swallows_no_option_of_a_command(name):
    options = options_of(COMMANDS[name])
    assert "--help" in options
    assert options & KEPT_BY_SLICER <= DOCUMENTED


def test_what_slicer_keeps_is_documented_with_a_way_around_it():
    text = (ROOT / "docs" / "hospital-it.md").read_text(encoding="utf-8")
    section = text.partition("## Inside Slicer")[2].partition("\n## ")[0]
    for option in DOCUMENTED:
        assert f"`{option}`" in section
    for words in ("-- --help", "PythonSlicer MITSGANTraining/run_mitsgan.py"):
        assert words in section
    assert "-- --help" in (TRAINING / "run_mitsgan.py").read_text(encoding="utf-8")


def test_no_script_is_the_module_file_of_a_file_system_without_case():
    """Installed, the files of both modules lie in one folder."""
    names = [path.name.casefold() for module in ("MITSGAN", "MITSGANTraining") for path in (ROOT / module).glob("*.py")]
    assert len(names) == len(set(names))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words"),
    [("run_mitsgan.py", ["info"]), ("protect.py", []), ("train.py", []), ("evaluate.py", [])],
)
def test_a_script_runs_its_command_from_any_folder(script, words, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(TRAINING / script), *words]
    shown = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"usage: mitsgan {words[0] if words else Path(script).stem}")
    refused = subprocess.run(
        [*command, "--no-such-option"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "usage:" in refused.stderr
