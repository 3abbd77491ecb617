"""Errors without the paths that the user chose: Slicer logs them, and folders may be named after patients."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from slicer.i18n import tr as _

from ..errors import CancelledError, MITSGANError, OutputError


@contextmanager
def path_kept_from_log(path: Path) -> Iterator[None]:
    """Take the place of an output out of errors."""
    with paths_kept_from_log({path: _("the chosen place")}):
        yield


@contextmanager
def paths_kept_from_log(words: Mapping[Path, str]) -> Iterator[None]:
    """Take paths out of errors.

    :param words: for each path what to say in its place, such as "the chosen file".
    """
    try:
        yield
    except CancelledError:
        raise
    except (OSError, MITSGANError) as error:
        text = _without_paths(str(error), words)
        kind = type(error) if isinstance(error, MITSGANError) else OutputError
        # Not even as its cause: the trace is logged, too.
        raise kind(text) from None


def _without_paths(text: str, words: Mapping[Path, str]) -> str:
    # From the most precise to the least, so that no part of one path is taken for another.
    for path, instead in words.items():
        if f"{path}{os.sep}" in text and path.is_dir():
            # The longest first: one name may begin as another does.
            for file in sorted(path.rglob("*"), key=lambda one: len(str(one)), reverse=True):
                text = text.replace(str(file), _("a file of {chosen}").format(chosen=instead))
        text = text.replace(str(path), instead)
    for path in words:
        if len(path.parent.parts) > 1:
            text = text.replace(str(path.parent), _("its folder"))
    for path, instead in words.items():
        if path.name:
            text = re.sub(rf"(?<!\w){re.escape(path.name)}(?!\w)", lambda _match, instead=instead: instead, text)
    return text
