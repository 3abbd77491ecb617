"""Studies of a tree that are signed as a whole: by an exam's document in them, or by a manifest beside their folder."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MITSGANLib.errors import InputError
from MITSGANLib.files.dicom.headers import read_header
from MITSGANLib.files.dicom.series import list_files
from MITSGANLib.signature.dicom.exam import is_exam_document
from MITSGANLib.signature.manifest import SUFFIX
from MITSGANLib.signature.study import is_study_manifest

from .inventory import BESIDE_CT, Failure, Inventory, StockedScan, file_fact, relative_path, stock_files
from .restoration import without_companions

# As an inventory says of what may be an exam's document.
_SELECTION = "Key Object Selection"


@dataclass(frozen=True)
class StockedStudy(StockedScan):
    """A signed study: all files of its folder, and the file that signs it.

    :param folder, document: relative to the tree.
    """

    folder: str
    document: str

    @property
    def source(self) -> str:
        return self.folder or "."

    @property
    def key(self) -> str:
        return hashlib.sha256(os.fsencode(f"study\0{self.document}")).hexdigest()[:32]


@dataclass(frozen=True)
class StockedMember(StockedScan):
    """A scan within a signed study, which needs no signature of its own."""

    @property
    def key(self) -> str:
        return hashlib.sha256(f"member\0{super().key}".encode()).hexdigest()[:32]


def take_signed_stock(tree: Path, *arguments: Any, take: Any, **known: Any) -> Inventory:
    """What a tree holds, signed studies among the scans.

    :param take: takes stock as ``inventory.take_stock`` does; its other arguments go on to it.
    :raises InputError, DependencyError: as ``inventory.take_stock``.
    """
    stock = without_companions(take)(tree, *arguments, **known)
    studies, failures = [], list(stock.failures)
    for document, folder in _documents(tree, stock):
        try:
            files = [document, *(relative_path(file, tree) for file in list_files(tree / folder))]
        except InputError as error:
            failures.append(Failure(folder or document, str(error)))
            continue
        facts = [fact for file in dict.fromkeys(files) if (fact := file_fact(tree, tree / file))]
        studies.append(StockedStudy(**dataclasses.asdict(stock_files(facts)), folder=folder, document=document))

    def is_signed(files: Sequence[str]) -> bool:
        return any(all(_is_within(file, study.folder) or file == study.document for file in files) for study in studies)

    scans = (StockedMember(**dataclasses.asdict(one)) if is_signed(one.files) else one for one in stock.scans)
    return dataclasses.replace(
        stock,
        scans=(*studies, *scans),
        # What cannot be read is changed or extra, and all else is verified, too.
        others=tuple(other for other in stock.others if not is_signed(other.files)),
        failures=tuple(one for one in failures if not (one.files and is_signed(one.files))),
    )


def _documents(tree: Path, stock: Inventory) -> Iterator[tuple[str, str]]:
    """What signs a study, and the folder of that, both relative to the tree."""
    for file, reason in ((file, other.reason) for other in stock.others for file in other.files):
        if file.endswith(SUFFIX):
            if is_study_manifest(tree / file):
                yield file, file.removesuffix(SUFFIX)
        elif (_SELECTION in reason or reason == BESIDE_CT) and is_exam_document(tree / file):
            yield file, _folder_of(tree, file, stock)


def _folder_of(tree: Path, document: str, stock: Inventory) -> str:
    """The folder of an exam: that of its document, or where that has a folder to itself, the next one with its images.

    Archives give each series a folder.
    """
    own = posixpath.dirname(document)

    def study_of(file: str) -> str:
        try:
            header = read_header(tree / file)
        except InputError:
            return ""
        return header.text("StudyInstanceUID") if header else ""

    if not any(_is_within(scan.files[0], own) for scan in stock.scans):
        study = study_of(document)
        folder = own
        while folder and study:
            folder = posixpath.dirname(folder)
            if any(study_of(scan.files[0]) == study for scan in stock.scans if _is_within(scan.files[0], folder)):
                return folder
    return own


def _is_within(file: str, folder: str) -> bool:
    return not folder or file.startswith(f"{folder}/")
