"""CT-GAN's published pipeline written out in NumPy and SciPy from its described steps, for comparison with ours.

Deliberately naive: whole-scan copies, explicit zooms, voxel loops. It shares no code with ``MITSGANLib.attack``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage, stats


def attack(
    scan: np.ndarray,
    center: tuple[int, int, int],
    spacing: tuple[float, float, float],
    generator: Callable[[np.ndarray], np.ndarray],
    table: tuple[np.ndarray, np.ndarray],
    normalization: tuple[float, float, float],
    action: str,
) -> np.ndarray:
    """The attacked scan (float64) after steps 1 to 8 of the description; ``generator`` maps a cube to a cube."""
    scan = scan.astype(np.float64)
    spacing_array = np.asarray(spacing)
    bins, cdf = table
    mean, low, high = normalization
    # 1, 2: cut and bring to 1 mm
    shape = np.round(32 / spacing_array).astype(int)
    cube = _cut(scan, center, shape, 0.0)
    target = np.round(shape * spacing_array)
    at_1mm = ndimage.zoom(cube, target / shape, order=3, mode="nearest")
    assert at_1mm.shape == (32, 32, 32)
    # 3, 4: equalize, normalize, mask
    x = (np.interp(at_1mm, bins, cdf) - mean) / (high - low)
    x[6:26, 6:26, 6:26] = 0
    # 5, 6: in-paint and back to HU
    y = np.clip(generator(x), -0.5, 0.5)
    forged = np.interp(y * (high - low) + mean, cdf, bins)
    for index in np.argwhere(forged > 2000):
        forged[tuple(index)] = _cut(forged, tuple(index), np.array([5, 5, 5]), -1000.0).mean()
    forged = np.maximum(forged, -1000)
    # 7: back to the scan's grid, paste
    back = ndimage.zoom(forged, np.round(32 / spacing_array) / 32, order=3, mode="nearest")
    pasted = _paste(scan, back, center)
    # 8: touch-up
    edge = int(shape.max() * 1.3)
    edges = np.array([edge] * 3)
    before, after = _cut(scan, center, edges, 0.0), _cut(pasted, center, edges, 0.0)
    place = tuple(int(size * share) for size, share in zip(scan.shape, (0.5, 0.43, 0.27), strict=True))
    sample = _cut(pasted, place, edges, 0.0)
    sample[sample > -800] = sample[sample < -800].mean()
    noise = sample - sample.mean()
    if action == "inject":
        weight = 1 / (1 + np.exp(-(after + 700) / 70)) * _window(edge, 3)
        result = np.maximum((after + noise) * weight + before * (1 - weight), before)
    else:
        window = _window(edge, 0.1)
        result = (after + noise) * window + before * (1 - window)
    return _paste(pasted, result, center)


def _cut(array: np.ndarray, center: tuple[int, ...], shape: np.ndarray, padding: float) -> np.ndarray:
    margin = int(max(shape))
    padded = np.pad(array, margin, constant_values=padding)
    start = [int(c - np.round(n / 2)) + margin for c, n in zip(center, shape, strict=True)]
    return padded[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))].copy()


def _paste(array: np.ndarray, cube: np.ndarray, center: tuple[int, ...]) -> np.ndarray:
    margin = int(max(cube.shape))
    padded = np.pad(array, margin)
    start = [int(c - np.round(n / 2)) + margin for c, n in zip(center, cube.shape, strict=True)]
    padded[tuple(slice(a, a + n) for a, n in zip(start, cube.shape, strict=True))] = cube
    return padded[(slice(margin, -margin),) * 3].copy()


def _window(size: int, sigmas: float) -> np.ndarray:
    step = (2 * sigmas + 1) / size
    edges = np.linspace(-sigmas - step / 2, sigmas + step / 2, size + 1)
    kernel = np.sqrt(np.outer(*[np.diff(stats.norm.cdf(edges))] * 2))
    kernel /= kernel.sum()
    return (kernel - kernel.min()) / (kernel.max() - kernel.min())
