"""Output that is either complete at its destination or not there at all.

Writers work in a hidden temporary folder beside the destination (same disk, so that moving is a rename). At success the
result is moved into place; after any failure, cancellation or Ctrl-C the temporary folder and every folder that was
made on the way are removed, and what was at the destination before is still there.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import MAY_OVERWRITE, NoSpaceError, OutputError

# Bytes; with what a temporary name adds, names have at most 255.
_LONGEST_NAME = 235
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_file(destination: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path to write; move it to ``destination`` when the block succeeds.

    The temporary file has the name of the destination in a temporary folder, so formats that are recognized by suffix,
    or that name a second file in their header (``scan.mhd`` and ``scan.raw``), come out right: whatever the block
    writes beside the temporary file is moved along with it, the named file last.

    :raises OutputError: the destination (or a companion file) exists and ``overwrite`` is not set, is a folder, or
        cannot be written.
    """
    destination = Path(destination)
    _refuse_file(destination, overwrite)
    with _temporary_sibling(destination) as temporary:
        yield temporary / destination.name
        written = sorted(temporary.iterdir(), key=lambda file: file.name == destination.name)
        moves = [(file, destination.parent / file.name) for file in written]
        for _, target in moves:
            _refuse_existing(target, overwrite)
        _move_all(moves)


@contextmanager
def atomic_folder(destination: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty temporary folder to fill; move it to ``destination`` when the block succeeds.

    An existing empty folder may always be replaced, since nothing is lost; another only with ``overwrite``.

    :raises OutputError: the destination exists and ``overwrite`` is not set, is a file, or cannot be written.
    """
    destination = Path(destination)
    _refuse_folder(destination, overwrite)
    with _temporary_sibling(destination) as temporary:
        filled = temporary / "new"
        filled.mkdir()
        yield filled
        _move_all([(filled, destination)])


def output_error(error: OSError, destination: Path) -> OutputError:
    """The sentence for the user behind an ``OSError`` met while writing ``destination``."""
    # pydicom raises another one with its trace as text and without a number; what the system said is its cause.
    while error.errno is None and isinstance(error.__cause__, OSError):
        error = error.__cause__
    if error.errno in _NO_SPACE:
        return NoSpaceError(
            "cannot be written: no space is left on the disk",
            path=destination,
            hint="free some space or choose another disk",
        )
    if error.errno in _NO_PERMISSION:
        return OutputError(
            "cannot be written: there is no permission",
            path=destination,
            hint="choose another place or change its permissions",
        )
    return OutputError(
        f"cannot be written ({error.strerror or type(error).__name__})", path=destination, hint="choose another place"
    )


def refuse_existing_file(destination: Path, overwrite: bool) -> None:
    """Refuse at once, before long work, what :func:`atomic_file` would refuse for this place."""
    with _temporary_sibling(destination, tentative=True):
        _refuse_file(destination, overwrite)


def refuse_existing_folder(destination: Path, overwrite: bool) -> None:
    """Refuse at once, before long work, what :func:`atomic_folder` would refuse for this place."""
    with _temporary_sibling(destination, tentative=True):
        _refuse_folder(destination, overwrite)


def require_space(place: Path, needed: int) -> None:
    """Raise ``NoSpaceError`` where the disk of a place, which may be new, has less than ``needed`` bytes free."""
    folder = next(parent for parent in (place, *place.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpaceError(
            f"needs {_size(needed)}, and only {_size(free)} are free on its disk",
            path=place,
            hint="free some space or choose another disk",
        )


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _refuse_file(destination: Path, overwrite: bool) -> None:
    if destination.is_dir():
        raise OutputError("is a folder", path=destination, hint="give a file name")
    _refuse_existing(destination, overwrite)


def _refuse_folder(destination: Path, overwrite: bool) -> None:
    if destination.exists() and not destination.is_dir():
        raise OutputError("is a file", path=destination, hint="give the name of a folder")
    if destination.is_dir():
        # The result cannot take its place by a rename, or whoever stands in it would be lost.
        stays = None
        if os.path.ismount(destination):
            stays = "is where a disk is mounted, which nothing replaces"
        elif destination.resolve() in (Path.cwd(), *Path.cwd().parents):
            stays = "is or holds the current folder, which stays"
        if stays:
            raise OutputError(stays, path=destination, hint="name a folder in it")
        if any(destination.iterdir()):
            _refuse_existing(destination, overwrite)


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(target):
        raise OutputError("already exists", path=target, hint=MAY_OVERWRITE)


@contextmanager
def _temporary_sibling(destination: Path, *, tentative: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``destination``, removed at the end whatever happens.

    :param tentative: remove the folders that were made on the way to it, too, even after success.
    """
    made: list[Path] = []
    temporary = destination.parent / f"{_temporary_stem(destination.name)}.{uuid.uuid4().hex[:8]}.partial"
    try:
        # Not tempfile.mkdtemp: its folders are private (0700), and this one may become the destination itself.
        for folder in [parent for parent in reversed(destination.parents) if not parent.exists()]:
            # Another process may make the same one at this moment.
            with suppress(FileExistsError):
                folder.mkdir()
                made.append(folder)
        temporary.mkdir()
        made.append(temporary)
        yield temporary
        if not tentative:
            made = [temporary]
    except OSError as error:
        raise output_error(error, destination) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in reversed(made):
            with suppress(OSError):  # already gone, or someone else put files into it
                folder.rmdir()


def _temporary_stem(name: str) -> str:
    """How a temporary folder for this name begins: with the name, or its digest where that leaves no room."""
    encoded = os.fsencode(name)
    return f".{name}" if len(encoded) <= _LONGEST_NAME else f".{hashlib.sha256(encoded).hexdigest()[:32]}"


def remove_leavings(destination: Path) -> None:
    """Remove what a killed process left of its unfinished work on this destination, which nobody else may work on."""
    for path in destination.parent.glob(f"{glob.escape(_temporary_stem(destination.name))}.????????.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _move_all(moves: list[tuple[Path, Path]]) -> None:
    """Rename every (temporary, target) pair; when one fails, put back what the earlier ones replaced."""
    begun: list[tuple[Path, Path, Path]] = []
    try:
        for source, target in moves:
            # The backup lies in the temporary folder, so that it is removed with it once all is in place.
            backup = source.with_name(f"{uuid.uuid4().hex}.old")
            begun.append((source, target, backup))
            if os.path.lexists(target):
                target.rename(backup)
            source.replace(target)
    except BaseException:
        for source, target, backup in reversed(begun):
            if not os.path.lexists(source):
                target.rename(source)
            if os.path.lexists(backup):
                backup.rename(target)
        raise
