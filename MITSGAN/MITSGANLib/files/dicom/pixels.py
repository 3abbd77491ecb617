"""Stored integers of DICOM pixel data: decoded, turned into HU, and made from HU again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DependencyError, InputError
from ...scan.volume import HU_MAX, HU_MIN
from .frames import Frame
from .headers import damage_named, damaged_file, quiet_pydicom

if TYPE_CHECKING:
    from pydicom import Dataset


def decode_frames(dataset: Dataset, frames: Sequence[Frame]) -> np.ndarray:
    """The stored integers of a file as :func:`decode_stored` gives them, with the bits that its frames use."""
    return decode_stored(dataset, frames[0].path, unused_bits=frames[0].needs_unused_bits)


def decode_stored(dataset: Dataset, path: Path, *, unused_bits: bool = False) -> np.ndarray:
    """Stored integers (frames, rows, columns), int16 or uint16 as Pixel Representation says, of any transfer syntax.

    :param unused_bits: keep the bits above Bits Stored as they are instead of zero or the sign.
    :raises InputError: the pixel data are missing, cut off or corrupt, or their compression is unknown.
    :raises DependencyError: the compression needs a package that is not installed; the text names it.
    """
    from pydicom.pixels import pixel_array

    plugin = _decoding_plugin(dataset, path)
    with damage_named(path):
        if not dataset.get("PixelData"):
            raise damaged_file(path)
    try:
        with quiet_pydicom():
            stored = pixel_array(dataset, raw=True, correct_unused_bits=not unused_bits, decoding_plugin=plugin)
    except Exception as error:  # the decoding plugins raise whatever their libraries do
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_encapsulated:
            raise damaged_file(path) from error
        # Whether they are damaged or of an unknown kind nobody can tell.
        raise InputError(
            f"is a damaged or incomplete DICOM file, or compressed as {syntax.name} in a way that cannot be read "
            "here, such as lossy JPEG of 12 bits",
            path=path,
            hint="copy it again from its source, or decompress the series first, for example with dcmdjpeg",
        ) from error
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    if stored.size != np.prod(shape):
        raise damaged_file(path)
    # Native byte order: big-endian files are decoded as such.
    return stored.reshape(shape).astype(stored.dtype.newbyteorder("="), copy=False)


def to_int16_hu(exact_hu: np.ndarray) -> np.ndarray:
    """HU in float64 rounded (half to even) and clipped to int16.

    Clipping loses nothing in a round trip: such voxels are padding or metal, which no later step changes, and the
    writer keeps the stored integers of voxels that did not change.
    """
    return np.clip(np.rint(exact_hu), HU_MIN, HU_MAX).astype(np.int16)


def shown_hu(stored: np.ndarray, frame: Frame) -> np.ndarray:
    """The HU (int16) that readers see for stored integers of 16 bits, as :func:`to_int16_hu` rounds and clips them."""
    return _hu_of_words(frame.slope, frame.intercept, stored.dtype)[0].take(stored.view(np.uint16))


def count_clipped(stored: np.ndarray, frame: Frame) -> int:
    """The number of stored integers whose exact HU do not fit into int16."""
    clipped = _hu_of_words(frame.slope, frame.intercept, stored.dtype)[1]
    # HU rise or fall with what is stored, so that the ends tell whether there is anything to count.
    ends = np.array([stored.min(initial=0), stored.max(initial=0)], stored.dtype).view(np.uint16)
    if clipped is None or not clipped[ends].any():
        return 0
    return int(np.count_nonzero(clipped.take(stored.view(np.uint16))))


@functools.lru_cache(maxsize=8)
def _hu_of_words(slope: float, intercept: float, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    """HU for each word of 16 bits, and which of them are clipped, if any: looked up four times as fast as computed."""
    exact = np.arange(1 << 16, dtype=np.uint16).view(dtype) * np.float64(slope) + intercept
    clipped = (exact > HU_MAX) | (exact < HU_MIN)
    return to_int16_hu(exact), clipped if clipped.any() else None


def stored_for_hu(hu: np.ndarray, original: np.ndarray, frame: Frame) -> np.ndarray:
    """Stored integers, of the type and shape of ``original``, that show ``hu`` (int16) in the same frame.

    Where the HU did not change the original integer stays, so that any slope, padding or rounding survives. Elsewhere
    it is (hu - intercept) / slope rounded to the integer that shows ``hu`` best, toward the original when two are
    equally good, within the storable range and never padding. Padding itself never changes.
    """
    changed = (hu != shown_hu(original, frame)) & ~frame.is_padding(original)
    if frame.slope == 1 and frame.intercept.is_integer() and abs(frame.intercept) < 1 << 16:
        # There is nothing to choose, as in most series, and all voxels at once, without branches, take a fourth.
        best = _storable(hu.astype(np.int32) - np.int32(frame.intercept), original, frame)
        return original + (best.astype(original.dtype) - original) * changed
    stored = original.copy()
    stored[changed] = _nearest_stored(hu[changed], original[changed].astype(np.int64), frame)
    return stored


def _nearest_stored(hu: np.ndarray, original: np.ndarray, frame: Frame) -> np.ndarray:
    exact = (hu.astype(np.float64) - frame.intercept) / frame.slope
    candidates = np.stack([np.floor(exact), np.ceil(exact)]).astype(np.int64)
    # lexsort takes the last key first: the HU that readers will see, then the exact one, then the smaller change.
    keys = (
        np.abs(candidates - original),
        np.abs(frame.hu(candidates) - hu),
        np.abs(to_int16_hu(frame.hu(candidates)).astype(np.int64) - hu),
    )
    best = np.take_along_axis(candidates, np.lexsort(keys, axis=0)[:1], axis=0)[0]
    return _storable(best, original, frame)


def _storable(best: np.ndarray, original: np.ndarray, frame: Frame) -> np.ndarray:
    """Integers within what can be stored, and beside the padding."""
    best = np.clip(best, *frame.stored_range)
    is_padding = frame.is_padding(best)
    if is_padding.any():
        first, last = frame.padding
        best = np.where(is_padding, np.where(original > last, last + 1, first - 1), best)
    return best


def _decoding_plugin(dataset: Dataset, path: Path) -> str:
    """The plugin that decodes; empty where any may. GDCM comes last: some damage makes it end the process.

    :raises InputError: there is no transfer syntax, or one that pydicom cannot decode.
    :raises DependencyError: decoding needs a package that is not installed.
    """
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    with damage_named(path):  # no transfer syntax at all, as in a file with flipped bits
        if syntax is None or not syntax.is_encapsulated:
            return ""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError(
            f"is compressed as {syntax.name}, which cannot be read",
            path=path,
            hint="decompress the series first, for example with gdcmconv --raw",
        ) from error
    if not decoder.is_available:
        packages = " or ".join(decoder.missing_dependencies)
        raise DependencyError(
            f"is compressed as {syntax.name}, which needs a package that is not installed ({packages})",
            path=path,
            hint="install it with pip, or decompress the series first",
        )
    names = decoder.available_plugins
    return next((name for name in names if name != "gdcm"), "") if "gdcm" in names else ""
