"""The signs of the watermark: a keystream bound to the slice's place in the patient and to the HU of each tile.

- **Key**: AES-256 in counter mode (NIST SP 800-38A) under a key that HKDF-SHA256 (RFC 5869) derives for each slice.
- **Place**: shape, voxel size, orientation and position of the slice, to 0.25 mm. So slices of one scan differ, two
  scans hardly ever share signs, a part of a series is checked as within the whole, and a slice put elsewhere is missed.
- **Content**: the mean of each tile of 8x8 voxels, in steps of 64 HU. Whoever adds a smooth nodule to the marked
  voxels keeps their signs, but these are then the wrong ones.

Arrays are (row, column) of one slice, turned so that rows and columns run along growing LPS: a file that stores them
the other way round gives the same signs.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from ..seal.keys import Key, derive
from ..volume import CTVolume

TILE = 8
"""Edge in voxels of the tiles whose mean HU the signs are bound to."""

LEVEL_HU = 64.0
# Rounding and lossy compression move the mean of a tile: one this near to a step may be of either level.
LEVEL_MARGIN_HU = 6.0

_CONTEXT = b"MITSGAN watermark 1"
_PLACE_MM, _PLACE_TOLERANCE_MM = 0.25, 0.01
# Keeps multiples of 0.025 mm, as most positions are, off the limits between two places.
_PLACE_OFFSET_MM = 0.0125
_SPACING_MM, _DIRECTION = 1e-2, 1e-2


@dataclass(frozen=True)
class WatermarkKey:
    """What signs are derived from: 32 bytes of their own, so that it tells nothing of the seals' keys."""

    secret: bytes = field(repr=False)


def watermark_key(key: Key) -> WatermarkKey:
    """The watermark's key of a key file.

    :raises InputError: for a passphrase: the watermark has no room for the salt that would make guessing it slow.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    if key.is_passphrase:
        raise InputError("A watermark needs a key file, not a passphrase; make one with mitsgan keygen.")
    return WatermarkKey(derive(key.secret, None, _CONTEXT))


@dataclass(frozen=True)
class Grid:
    """How the voxels of a scan lie in the patient: which axes to turn, and where each slice is.

    :param flips: for rows and columns, -1 where the index runs against LPS, else 1.
    """

    flips: tuple[int, int]
    first_lps: np.ndarray
    step_lps: np.ndarray
    fixed: bytes

    @classmethod
    def of(cls, volume: CTVolume) -> Grid:
        """The grid of a scan."""
        axes = volume.direction[:, 1], volume.direction[:, 0]
        flips = tuple(-1 if axis[np.abs(axis).argmax()] < 0 else 1 for axis in axes)
        corner = [0 if flip > 0 else size - 1 for flip, size in zip(flips, volume.shape[1:], strict=True)]
        first = volume.voxel_to_lps((0, *corner))
        step = volume.voxel_to_lps((1, *corner)) - first
        turned = np.concatenate([axis * flip for axis, flip in zip(axes, flips, strict=True)])
        whole = [*volume.shape[1:], *np.rint(np.array(volume.spacing_kji[1:]) / _SPACING_MM)]
        whole += [*np.rint(turned / _DIRECTION)]
        return cls(flips, first, step, struct.pack(f"<{len(whole)}i", *map(int, whole)))

    def turned(self, plane: np.ndarray) -> np.ndarray:
        """A slice (rows, columns) along growing LPS, or back; a view."""
        return plane[:: self.flips[0], :: self.flips[1]]

    def place(self, k: int) -> bytes:
        """Slice ``k``'s place, for embedding."""
        return self._packed(np.floor(self._steps(k)))

    def places(self, k: int) -> Iterator[bytes]:
        """Where slice ``k`` may have been before a file format rounded its position; as it is first, mostly alone."""
        steps = self._steps(k)
        tolerance = _PLACE_TOLERANCE_MM / _PLACE_MM
        found = [dict.fromkeys((np.floor(s), np.floor(s - tolerance), np.floor(s + tolerance))) for s in steps]
        yield from map(self._packed, itertools.product(*found))

    def _steps(self, k: int) -> np.ndarray:
        return (self.first_lps + k * self.step_lps + _PLACE_OFFSET_MM) / _PLACE_MM

    def _packed(self, steps: Sequence[float]) -> bytes:
        return self.fixed + struct.pack("<3i", *map(int, steps))


def block_sums(plane: np.ndarray, edge: int) -> np.ndarray:
    """Sums over blocks of ``edge`` x ``edge`` voxels, float64 (block rows, block columns), within whole tiles alone."""
    rows, columns = (size // TILE * TILE // edge for size in plane.shape)
    whole = plane[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge)
    return whole.sum(axis=(1, 3), dtype=np.float64)


def tile_levels(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level of each tile, and which tiles are so near to a step that theirs is not sure.

    :param plane: HU (rows, columns), along growing LPS.
    """
    steps = block_sums(plane, TILE) / (TILE * TILE * LEVEL_HU)
    unsure = np.abs(steps - np.rint(steps)) * LEVEL_HU < LEVEL_MARGIN_HU
    return np.floor(steps).astype(np.int32), unsure


def signs(key: WatermarkKey, place: bytes, levels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """+1 or -1 for each voxel of a slice along growing LPS, int8; 0 where no whole tile fits.

    :param place: of :meth:`Grid.place`.
    :param levels: of each tile, as :func:`tile_levels` has them.
    :param shape: (rows, columns) of the slice.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    of_slice = derive(key.secret, None, _CONTEXT + place)
    rows, columns = levels.shape
    result = np.zeros(tuple(shape), np.int8)
    inner = result[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE).transpose(0, 2, 1, 3)
    empty = bytes(levels.size * TILE * TILE // 8)
    for level in np.unique(levels):
        # Counters of two levels are 2**64 blocks apart.
        counter = struct.pack(">qQ", int(level), 0)
        stream = Cipher(algorithms.AES(of_slice), modes.CTR(counter)).encryptor().update(empty)
        bits = np.unpackbits(np.frombuffer(stream, np.uint8)).reshape(rows, columns, TILE, TILE)
        here = levels == level
        inner[here] = 2 * bits[here].astype(np.int8) - 1
    return result
