"""Commands over whole folders of studies, which run in a process of their own and tell of each scan in a file."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..errors import DependencyError
from ..files.dicom.derive import recorded_steps
from ..files.dicom.headers import read_header
from ..files.storage import load_volume
from ..scan.volume import CTVolume
from .operations import Compute, compute_here
from .privacy import paths_kept_from_log
from .volumes import node_from_volume

PROTECT, EXAMINE = "protect", "examine"


@dataclass(frozen=True)
class FolderJob:
    """A command over a tree of studies.

    :param command: :data:`PROTECT` or :data:`EXAMINE`.
    :param tree: is only read.
    :param out: the same tree protected, or a folder of results.
    :param options: of the command, as for a terminal.
    """

    command: str
    tree: Path
    out: Path
    options: tuple[str, ...] = ()

    def line(self, told: Path) -> list[str]:
        """Program and arguments.

        :param told: the file in which the command tells of each scan as soon as it is done.
        :raises DependencyError: the commands are not installed.
        """
        # Installed, all modules lie in one folder; in a checkout each has its own.
        folder = Path(__file__).resolve().parents[2]
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


def load_scan(
    path: Path,
    series: str | None = None,
    *,
    progress: Callable[..., None] | None = None,
    compute: Compute = compute_here,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new node with a scan on the disk, named after its file or folder; it knows what was done to it before.

    :param series: Series Instance UID, of several in a folder.
    :raises InputError: it cannot be read.
    """

    def work(report: Any) -> CTVolume:
        volume = load_volume(path, series, report)
        if volume.provenance.steps or not volume.provenance.dicom_files:
            return volume
        header = read_header(Path(volume.provenance.dicom_files[0]))
        provenance = dataclasses.replace(volume.provenance, steps=recorded_steps(header) if header else ())
        return dataclasses.replace(volume, provenance=provenance)

    with paths_kept_from_log({path: _("the scan")}):
        volume = compute(work, progress)
    node = node_from_volume(volume, path.name)
    if path.is_file() and not volume.provenance.dicom_files:
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(path))
    return node
