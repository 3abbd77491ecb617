"""The signs of the watermark: a keystream bound to the slice's place in the patient and to the HU of each tile.

- **Key**: AES-256 in counter mode (NIST SP 800-38A) under a key that HKDF-SHA256 (RFC 5869) derives for each layer.
- **Place**: shape, voxel size, orientation and position of the slice; in its plane to 0.25 mm. So two scans hardly ever
  share signs, a part of a series is checked as within the whole, and a slice put elsewhere is missed.
- **Layers**: along the slices the signs of a tile change every 5 mm, in each tile at a depth of its own. Signs that
  change in every slice flicker more than the scan's own noise, which overlapping slices share.
- **Content**: the mean of each tile of 8x8 voxels, in steps of 64 HU. Whoever adds a smooth nodule to the marked
  voxels keeps their signs, but these are then the wrong ones.
- **Checkers**: each 2x2 voxels of a slice share a sign, which two of them turn round as in a checkerboard. A scanner
  lets least noise through that is so fine, so that as many HU stand out by more. Version 1 has a sign for each voxel.

Arrays are (row, column) of one slice, turned so that rows and columns run along growing LPS: a file that stores them
the other way round gives the same signs, and so does one with its slices in the opposite order.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import MAKE_KEY, InputError
from ..keys.key_files import Key, derive
from ..scan.volume import CTVolume

VERSION = 2
"""Version of the signs and of all that they depend on, for seals. A record without one is of version 1.

The number in the context of the keys is another one: 2 is part of version 1, and no seal ever held signs of 1.
"""

UNCHECKERED = 1
"""The version that had a sign for each voxel."""

TILE = 8
"""Edge in voxels of the tiles whose mean HU the signs are bound to."""

_TILE_BYTES, _BLOCK_BYTES = TILE * TILE // 8, 16

LEVEL_HU = 64.0
# Rounding and lossy compression move the mean of a tile: one this near to a step may be of either level.
LEVEL_MARGIN_HU = 6.0

LAYER_MM = 5.0
"""Along the slices, how far a tile keeps its signs."""

_CONTEXT = b"MITSGAN watermark 2"
_OF_GRIDS = {UNCHECKERED: _CONTEXT, VERSION: b"MITSGAN watermark of checkers"}
_CELL = 2
_CHECKERS = np.tile(np.array([[1, -1], [-1, 1]], np.int8), (TILE // _CELL, TILE // _CELL))
_PLACE_MM, _PLACE_TOLERANCE_MM = 0.25, 0.01
# Keeps multiples of 0.025 mm, as most positions are, off the limits between two places.
_PLACE_OFFSET_MM = 0.0125
_SPACING_MM, _DIRECTION = 1e-2, 1e-2


@dataclass(frozen=True)
class WatermarkKey:
    """What signs are derived from: 32 bytes of their own, so that it tells nothing of the seals' keys.

    :param version: of the signs, as a scan may have been marked with older ones; the key is the same.
    """

    secret: bytes = field(repr=False)
    version: int = field(default=VERSION, compare=False)


OPEN_KEY = WatermarkKey(hashlib.sha256(b"MITSGAN open watermark").digest())
"""Everybody's: shows what was painted by those who do not think of it, and needs no key file to be checked."""


def watermark_key(key: Key) -> WatermarkKey:
    """The watermark's key of a key file.

    :raises InputError: for a passphrase: the watermark has no room for the salt that would make guessing it slow.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    if key.is_passphrase:
        raise InputError("A watermark needs a key file, not a passphrase", hint=MAKE_KEY)
    return WatermarkKey(derive(key.secret, None, _CONTEXT))


@dataclass(frozen=True)
class SlicePlace:
    """Where a slice lies, as its signs depend on it.

    :param plane: shape, voxel size, orientation and place in the plane; all slices of a scan share it.
    :param depth: along the slices, in layers.
    """

    plane: bytes
    depth: float


@dataclass(frozen=True)
class Grid:
    """How the voxels of a scan lie in the patient: which axes to turn, and where each slice is.

    :param flips: for rows and columns, -1 where the index runs against LPS, else 1.
    :param in_plane: LPS in steps of 0.25 mm of the slices' common corner, without what lies along the slices.
    :param first_depth, step_depth: of the first slice and from one to the next, in layers.
    """

    flips: tuple[int, int]
    in_plane: np.ndarray
    first_depth: float
    step_depth: float
    fixed: bytes

    @classmethod
    def of(cls, volume: CTVolume) -> Grid:
        """The grid of a scan."""
        axes = volume.direction[:, 1], volume.direction[:, 0]
        flips = tuple(-1 if axis[np.abs(axis).argmax()] < 0 else 1 for axis in axes)
        corner = [0 if flip > 0 else size - 1 for flip, size in zip(flips, volume.shape[1:], strict=True)]
        first = volume.voxel_to_lps((0, *corner))
        along = volume.direction[:, 2]
        along = along * (-1 if along[np.abs(along).argmax()] < 0 else 1)
        step = volume.voxel_to_lps((1, *corner)) - first
        in_plane = (first - (first @ along) * along + _PLACE_OFFSET_MM) / _PLACE_MM
        turned = np.concatenate([axis * flip for axis, flip in zip(axes, flips, strict=True)])
        whole = [*volume.shape[1:], *np.rint(np.array(volume.spacing_kji[1:]) / _SPACING_MM)]
        whole += [*np.rint(turned / _DIRECTION)]
        depths = float(first @ along) / LAYER_MM, float(step @ along) / LAYER_MM
        return cls(flips, in_plane, *depths, struct.pack(f"<{len(whole)}i", *map(int, whole)))

    def turned(self, plane: np.ndarray) -> np.ndarray:
        """A slice (rows, columns) along growing LPS, or back; a view."""
        return plane[:: self.flips[0], :: self.flips[1]]

    def place(self, k: int) -> SlicePlace:
        """Slice ``k``'s place, for embedding."""
        return self._at(k, np.floor(self.in_plane))

    def places(self, k: int) -> Iterator[SlicePlace]:
        """Where slice ``k`` may have been before a file format rounded its position; as it is first, mostly alone.

        Along the slices rounding moves the limits of layers, by so little that no second place is needed.
        """
        tolerance = _PLACE_TOLERANCE_MM / _PLACE_MM
        found = [dict.fromkeys((np.floor(s), np.floor(s - tolerance), np.floor(s + tolerance))) for s in self.in_plane]
        yield from (self._at(k, steps) for steps in itertools.product(*found))

    def _at(self, k: int, steps: Sequence[float]) -> SlicePlace:
        plane = self.fixed + struct.pack("<3i", *map(int, steps))
        return SlicePlace(plane, self.first_depth + k * self.step_depth)


def block_sums(plane: np.ndarray, edge: int) -> np.ndarray:
    """Sums over blocks of ``edge`` x ``edge`` voxels, float64 (block rows, block columns), within whole tiles alone."""
    rows, columns = (size // TILE * TILE for size in plane.shape)
    whole = plane[:rows, :columns]
    # One after the other, for NumPy's sum over two axes takes many times as long. Small integers are exact in int32.
    total = whole[::edge].astype(np.float64 if plane.dtype.kind == "f" or plane.dtype.itemsize > 2 else np.int32)
    for row in range(1, edge):
        total += whole[row::edge]
    return sum((total[:, column::edge] for column in range(1, edge)), total[:, ::edge]).astype(np.float64, copy=False)


def tile_levels(plane: np.ndarray, margin_hu: float | np.ndarray = LEVEL_MARGIN_HU) -> tuple[np.ndarray, np.ndarray]:
    """Level of each tile, and which tiles lie so near to a step that their level is not sure.

    :param plane: HU (rows, columns), along growing LPS.
    :param margin_hu: how near that is, of all tiles or of each.
    """
    steps = block_sums(plane, TILE) / (TILE * TILE * LEVEL_HU)
    unsure = np.abs(steps - np.rint(steps)) * LEVEL_HU < margin_hu
    return np.floor(steps).astype(np.int32), unsure


@dataclass(frozen=True)
class GridSecret:
    """What the signs of all slices of a scan, of some version, are derived from."""

    secret: bytes = field(repr=False)
    version: int = VERSION


@dataclass(frozen=True)
class ScanSigns:
    """The signs of one scan: all that they depend on beside the HU, without the key.

    Whoever has this can tell and forge the signs of this scan, and of no other that lies elsewhere.

    :param secret: derived from the key for the scan's grid.
    :param depths: of each slice, in layers.
    """

    secret: GridSecret
    flips: tuple[int, int]
    depths: tuple[float, ...]

    @classmethod
    def of(cls, volume: CTVolume, key: WatermarkKey) -> ScanSigns:
        """The signs of a scan at its place in the patient, for a key."""
        grid = Grid.of(volume)
        places = [grid.place(k) for k in range(volume.shape[0])]
        return cls(grid_secret(key, places[0]), grid.flips, tuple(place.depth for place in places))

    def of_slice(self, k: int, hu: np.ndarray) -> np.ndarray:
        """The signs of slice ``k``, int8 (rows, columns) as it is stored; 0 where no whole tile fits.

        :param hu: int16 (rows, columns), which the levels of tiles are taken from.
        """
        turned = hu[:: self.flips[0], :: self.flips[1]]
        found = signs(self.secret, self.depths[k], tile_levels(turned)[0], turned.shape)
        return found[:: self.flips[0], :: self.flips[1]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, which holds the secret."""
        secret, version = self.secret.secret.hex(), self.secret.version
        return {"version": version, "secret": secret, "flips": list(self.flips), "depths": list(self.depths)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ScanSigns:
        """The signs of a :meth:`to_dict`, also of one from before it had a version.

        :raises InputError: for a version that is not known here.
        """
        version = record.get("version", UNCHECKERED)
        if version not in _OF_GRIDS:
            raise InputError(
                "The scan has a watermark of a version that this MITSGAN does not know; use a newer version of MITSGAN."
            )
        secret = GridSecret(bytes.fromhex(record["secret"]), version)
        return cls(secret, tuple(record["flips"]), tuple(record["depths"]))


def grid_secret(key: WatermarkKey, place: SlicePlace) -> GridSecret:
    """What the signs of all slices of a scan are derived from."""
    return GridSecret(derive(key.secret, None, _OF_GRIDS[key.version] + place.plane), key.version)


def of_signs(products: np.ndarray, version: int) -> np.ndarray:
    """What voxels that share a sign come to, at the first of them, and 0 at the others; where none do, as they are.

    :param products: (..., rows, columns) along growing LPS, from the first voxel of a tile on.
    """
    if version == UNCHECKERED:
        return products
    found = np.zeros_like(products)
    rows, columns = (size // _CELL * _CELL for size in products.shape[-2:])
    whole = products[..., :rows, :columns]
    parts = (whole[..., row::_CELL, column::_CELL] for row in range(_CELL) for column in range(_CELL))
    found[..., :rows:_CELL, :columns:_CELL] = sum(parts)
    return found


def products_of_tiles(products: np.ndarray, version: int) -> np.ndarray:
    """What tiles add to the correlation with their signs, as :func:`signs_of_tiles` has these: (tiles, 64).

    :param products: (..., 8, 8), what each voxel would add if its sign were +1.
    """
    if version != UNCHECKERED:
        products = of_signs(products * _CHECKERS, version)
    return products.reshape(-1, TILE * TILE)


def layers(secret: GridSecret, depth: float, shape: Sequence[int]) -> np.ndarray:
    """The number of the layer that each tile of a slice lies in, int64.

    :param depth: of the slice, in layers.
    :param shape: (tile rows, tile columns).
    """
    limits = np.frombuffer(keystream(derive(secret.secret, None, b"limits"), 0, math.prod(shape)), np.uint8)
    return np.floor(depth + limits.reshape(tuple(shape)) / 256).astype(np.int64)


def signs(secret: GridSecret, depth: float, levels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """+1 or -1 for each voxel of a slice along growing LPS, int8; 0 where no whole tile fits.

    :param depth: as in :func:`layers`.
    :param levels: of each tile, as :func:`tile_levels` has them.
    :param shape: (rows, columns) of the slice.
    """
    rows, columns = levels.shape
    bits = signs_of_tiles(secret, depth, levels.ravel(), np.arange(levels.size), levels.shape)
    result = np.zeros(tuple(shape), np.int8)
    inner = result[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE)
    inner[:] = bits.reshape(rows, columns, TILE, TILE).transpose(0, 2, 1, 3)
    return result


def signs_of_tiles(
    secret: GridSecret, depth: float, levels: np.ndarray, tiles: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """+1 or -1 for each voxel of some tiles, row after row: int8 (tiles, 64).

    :param levels: of these tiles.
    :param tiles: their numbers in the slice, row after row.
    :param shape: (tile rows, tile columns) of the slice.
    """
    of_tile = layers(secret, depth, shape).ravel()[tiles]
    packed = np.empty((len(tiles), _TILE_BYTES), np.uint8)
    for layer in np.unique(of_tile):
        of_layer = derive(secret.secret, None, struct.pack("<q", int(layer)))
        here = np.flatnonzero(of_tile == layer)
        packed[here] = keystream_of_tiles(of_layer, levels[here], tiles[here])
    found = 2 * np.unpackbits(packed, axis=1).view(np.int8) - 1
    if secret.version == UNCHECKERED:
        return found
    cells = found.reshape(-1, TILE, TILE)[:, ::_CELL, ::_CELL]
    return (cells.repeat(_CELL, axis=1).repeat(_CELL, axis=2) * _CHECKERS).reshape(len(tiles), TILE * TILE)


def keystream(key: bytes, level: int, size: int) -> bytes:
    """So many bytes of a level's own keystream, of AES in counter mode."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    # Counters of two levels are 2**64 blocks apart.
    counter = struct.pack(">qQ", level, 0)
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(size))


def keystream_of_tiles(key: bytes, levels: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """The part of its own level's :func:`keystream` where each tile lies: uint8 (tiles, bytes).

    Counter mode encrypts counters one by one, so the blocks wanted are encrypted alone: a slice of LIDC-IDRI-0001 takes
    its tiles from 68 keystreams, each of which is as long as all of its tiles together.

    :param tiles: numbers of the tiles in the slice.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    counters = np.empty((len(tiles), 2), ">i8")
    counters[:, 0], counters[:, 1] = levels, tiles * _TILE_BYTES // _BLOCK_BYTES
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters.tobytes())
    parts = np.frombuffer(blocks, np.uint8).reshape(len(tiles), -1, _TILE_BYTES)
    return parts[np.arange(len(tiles)), tiles % parts.shape[1]]
