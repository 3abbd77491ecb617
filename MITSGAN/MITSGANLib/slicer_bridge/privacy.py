"""Errors without the paths that the user chose: Slicer logs them, and folders may be named after patients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from slicer.i18n import tr as _

from ..errors import CHOOSE_SERIES, CancelledError, MITSGANError
from ..files.atomic import output_error


def path_kept_from_log(path: Path) -> AbstractContextManager[None]:
    """Put words in the place of the path of an output."""
    return paths_kept_from_log({path: _("the chosen place")})


@contextmanager
def paths_kept_from_log(words: Mapping[Path, str]) -> Iterator[None]:
    """Put words in the place of paths.

    :param words: for each path what to say in its place, such as "the chosen file"; of one within another, the inner
        one first.
    """
    try:
        yield
    except CancelledError:
        raise
    except (OSError, MITSGANError) as error:
        found = error if isinstance(error, MITSGANError) else output_error(error, Path(error.filename or ""))
        text = found.sentence(subject=_subject(found.path, words))
        if found.hint == CHOOSE_SERIES:  # the list of series tells what headers say
            text = _("The folder holds several CT series; choose the folder of one, or select the volume of one.")
        # Not even as its cause: the trace is logged, too.
        raise type(found)(text) from None


def _subject(path: str | Path | None, words: Mapping[Path, str]) -> str:
    """Words for the path of an error: of one that was chosen, or of a file in such a folder."""
    for chosen, instead in words.items() if path is not None else ():
        # Writers work on a file of the same name in a temporary folder.
        if Path(path) == chosen or Path(path).name == chosen.name:
            return instead
        if chosen in Path(path).parents:
            return _("a file of {chosen}").format(chosen=instead)
    return _("a file")
