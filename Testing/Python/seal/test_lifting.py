"""A prototype: protection as an exactly invertible integer mapping under a key, which needs no stored residual.

Half of the voxels, chosen by the key, move by what a network makes of the other half; then the other half moves by what
it makes of the first half as it now is (lifting steps). Undone in reverse order, the same numbers come out, if the
network gives the same integers everywhere. It does, whatever the order of summation: its weights and inputs are
integers so small that every sum is exact in float64, and each convolution is rounded, which also takes away what fast
algorithms (Winograd) add in rounding. Only voxels at the ends of the range, which must not move, have to be listed.

Nothing of it is in the product: the network here is untrained, and a GPU was not at hand to show what is argued above.
docs/restoration.md says what was measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

LOWEST, HIGHEST = -1023, 3070
STRENGTH = 18
Convolution = Callable[[np.ndarray, np.ndarray], np.ndarray]


def in_torch(dtype: torch.dtype) -> Convolution:
    def convolve(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            y = torch.nn.functional.conv2d(
                torch.from_numpy(x).to(dtype)[None], torch.from_numpy(weights).to(dtype), padding=1
            )
            return torch.round(y[0]).to(torch.int64).numpy()

    return convolve


def in_integers(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The definition, in int64 and another order."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    y = np.zeros((len(weights), *x.shape[1:]), np.int64)
    for j in range(3):
        for i in range(3):
            view = padded[:, j : j + x.shape[1], i : i + x.shape[2]]
            y += np.einsum("oc,cji->oji", weights[:, :, j, i], view)
    return y


class Lifting:
    """The mapping of one slice (rows, columns) of HU. ``key`` seeds the choice of halves and, here, the weights."""

    def __init__(self, key: int, convolve: Convolution) -> None:
        self._random = np.random.Generator(np.random.Philox(key))
        self._weights = [
            self._random.integers(-127, 128, shape) for shape in ((8, 2, 3, 3), (8, 8, 3, 3), (1, 8, 3, 3))
        ]
        self._key, self._convolve = key, convolve

    def forward(self, hu: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The protected slice, and for each step the voxels that had to stay."""
        hu, stayed = hu.astype(np.int64), []
        for half in self._halves(hu.shape):
            moved = hu + self._shift(hu, ~half)
            may_move = half & (hu >= LOWEST) & (hu <= HIGHEST) & (moved >= LOWEST) & (moved <= HIGHEST)
            stayed.append(half & ~may_move)
            hu = np.where(may_move, moved, hu)
        return hu, stayed

    def backward(self, hu: np.ndarray, stayed: list[np.ndarray]) -> np.ndarray:
        for half, stay in reversed(list(zip(self._halves(hu.shape), stayed, strict=True))):
            hu = np.where(half & ~stay, hu - self._shift(hu, ~half), hu)
        return hu

    def _halves(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        first = np.random.Generator(np.random.Philox(self._key + 1)).random(shape) < 0.5
        return first, ~first

    def _shift(self, hu: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """-18..18 HU for every voxel, from the seen ones alone."""
        x = np.stack([np.where(seen, np.clip(hu, -1024, 3071), 0), np.where(seen, 1024, 0)])
        for weights in self._weights[:-1]:
            x = np.clip(self._convolve(x, weights) >> 10, 0, 4095)  # sums stay below 2**22
        return np.clip(self._convolve(x, self._weights[-1])[0] >> 10, -STRENGTH, STRENGTH)


SLICES = arrays(np.int16, (9, 11), elements=st.integers(-1100, 3100) | st.sampled_from([-32768, 32767, -1023, 3070]))


@settings(max_examples=20, deadline=None)
@given(SLICES, st.integers(0, 1000))
def test_inverted_exactly_by_another_arithmetic(hu, key):
    protected, stayed = Lifting(key, in_torch(torch.float64)).forward(hu)
    assert np.abs(protected - hu).max() <= STRENGTH
    assert (protected[(hu < LOWEST) | (hu > HIGHEST)] == hu[(hu < LOWEST) | (hu > HIGHEST)]).all()
    np.testing.assert_array_equal(Lifting(key, in_integers).backward(protected, stayed), hu)


def test_the_same_on_any_number_of_threads_and_with_other_kernels(phantom):
    hu = phantom.volume.hu[20]
    expected, stayed = Lifting(3, in_integers).forward(hu)
    assert (expected != hu).mean() > 0.5
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            for fast in (True, False):
                with torch.backends.mkldnn.flags(enabled=fast):
                    for dtype in (torch.float64, torch.float32):
                        result, _ = Lifting(3, in_torch(dtype)).forward(hu)
                        np.testing.assert_array_equal(result, expected)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(Lifting(3, in_torch(torch.float64)).backward(expected, stayed), hu)


def test_another_key_does_not_undo_it(phantom):
    hu = phantom.volume.hu[20]
    protected, stayed = Lifting(3, in_integers).forward(hu)
    assert (Lifting(4, in_integers).backward(protected, stayed) != hu).mean() > 0.5
