"""The description of a change: exact for any voxels, and short for what protection does."""

from __future__ import annotations

import base64
import bz2
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from MITSGANLib.errors import InputError
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.seal.change import decode_change, encode_change, pack, unpack
from MITSGANLib.watermark.pattern import OPEN_KEY, ScanSigns

ENDS = [-32768, -32767, -64, -63, -1, 0, 1, 63, 64, 32766, 32767]


def restored(
    original: np.ndarray, protected: np.ndarray, hu: np.ndarray, signs: np.ndarray | None = None
) -> np.ndarray:
    return decoded(encode_change(original, protected, hu, signs), protected, hu, signs)


def decoded(description: bytes, protected: np.ndarray, hu: np.ndarray, signs: np.ndarray | None = None) -> np.ndarray:
    return np.stack(list(decode_change(description, protected, hu, signs)))


@pytest.mark.slow
@settings(max_examples=30)
@given(st.data())
def test_exact_for_any_voxels(data):
    dtype = data.draw(st.sampled_from([np.int16, np.uint16]))
    shape = data.draw(array_shapes(min_dims=3, max_dims=3, max_side=4))
    elements = st.one_of(st.sampled_from(ENDS), st.integers(-32768, 32767))
    original, protected, hu = (data.draw(arrays(np.int16, shape, elements=elements)) for _ in range(3))
    original, protected = original.view(dtype), protected.view(dtype)
    signs = data.draw(st.none() | arrays(np.int8, shape, elements=st.integers(-1, 1)))
    result = restored(original, protected, hu, signs)
    assert result.dtype == original.dtype
    np.testing.assert_array_equal(result, original)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 3, 18, 62, 65, 400, 40000]))
def test_exact_for_bounded_changes(seed, bound):
    random = np.random.default_rng(seed)
    original = random.integers(-1100, 3100, (3, 9, 7)).astype(np.int16)
    protected = (original + random.integers(-bound, bound, original.shape, endpoint=True)).astype(np.int16)
    np.testing.assert_array_equal(restored(original, protected, protected), original)


@pytest.mark.slow
def test_stripes_through_slices_take_a_fraction_of_a_bit(phantom):
    """What shipped protectors do: about the same stripes in all slices, as strong as the tissue allows."""
    hu = phantom.volume.hu
    stripes = np.where(np.arange(hu.shape[1]) // 2 % 2, 1, -1)[:, None]
    allowed = np.where(hu < -900, 0, np.where(hu < -500, 18, 2))
    protected = (hu + stripes * allowed).astype(np.int16)
    description = encode_change(hu, protected, protected)
    assert 8 * len(description) / hu.size < 0.2
    assert len(description) < len(bz2.compress((protected - hu).tobytes())) / 2


@pytest.mark.slow
def test_each_stream_is_packed_by_what_makes_it_shorter(phantom):
    hu, protected = phantom.volume.hu, protect(phantom.volume, model="strong", device="cpu").hu
    description = encode_change(hu, protected, protected)
    np.testing.assert_array_equal(decoded(description, protected, protected), hu)
    _, parts = unpack(description)
    packers = {name: {b"BZh": "bzip2", b"\xfd7z": "LZMA"}[part[:3]] for name, part in parts.items()}
    assert set(packers.values()) == {"bzip2", "LZMA"}
    expand = {"bzip2": bz2.decompress, "LZMA": lzma.decompress}
    by_bzip2 = sum(len(bz2.compress(expand[packers[name]](part))) for name, part in parts.items())
    assert sum(map(len, parts.values())) < 0.99 * by_bzip2


@pytest.mark.slow
def test_where_the_signs_are_known_a_watermark_takes_a_fraction_of_a_bit(phantom):
    volume = phantom.volume
    marked = protect(volume, model=watermark_alone(OPEN_KEY))
    signs = [ScanSigns.of(volume, OPEN_KEY).of_slice(k, plane) for k, plane in enumerate(marked.hu)]
    short, long = (len(encode_change(volume.hu, marked.hu, marked.hu, known)) for known in (signs, None))
    # A third while each voxel had a sign of its own; now 2x2 voxels share one, which is shorter to tell unknown, too.
    assert short < long / 2
    np.testing.assert_array_equal(restored(volume.hu, marked.hu, marked.hu, signs), volume.hu)


def test_no_change_takes_next_to_nothing(phantom):
    hu = phantom.volume.hu
    assert len(encode_change(hu, hu, hu)) < 5000


def test_another_shape_is_refused():
    hu = np.zeros((2, 3, 4), np.int16)
    with pytest.raises(InputError, match="another size"):
        decoded(encode_change(hu, hu, hu), hu[:1], hu[:1])


@pytest.mark.slow
@given(st.dictionaries(st.text(), st.binary()), st.dictionaries(st.text(), st.integers() | st.text()))
def test_parts_come_back(parts, facts):
    assert unpack(pack(facts, parts)) == (facts, parts)


def test_a_description_of_version_1_is_understood():
    """Written down with the first version of the format; whatever changes later, this must be understood."""
    protected = np.array([[[-1024, -882, -888], [42, 58, 3071]], [[-1000, -872, -877], [52, 0, -1]]], np.int16)
    original = [[[-1024, -900, -870], [40, 60, 3071]], [[-1000, -890, -860], [50, -300, -32768]]]
    assert decoded(base64.b64decode(WRITTEN), protected, protected).tolist() == original


WRITTEN = """
AAAAx3siZmFjdHMiOnsic2hhcGUiOlsyLDIsM119LCJzaXplcyI6eyIwIjoxNCwiMSI6MzksIjIiOjE0LCIzIjozNywiNCI6MTQsIjUiOjE0LC
I2IjoxNCwiNyI6MTQsIjgiOjE0LCI5IjoxNCwiMTAiOjE0LCIxMSI6MTQsIjEyIjoxNCwiMTMiOjE0LCIxNCI6MTQsIjE1IjoxNCwicmFua2Vk
Ijo1NTQsInN0cmVhbV9vZiI6NjMsImV4Y2VwdGlvbnMiOjQ2fX1CWmg5F3JFOFCQAAAAAEJaaDkxQVkmU1m/GSRmAAAAQABwACAAMMwMeoJuLu
SKcKEhfjJIzEJaaDkXckU4UJAAAAAAQlpoOTFBWSZTWX77NrkAAABAAEgAIAAhAIKDF3JFOFCQfvs2uUJaaDkXckU4UJAAAAAAQlpoORdyRThQ
kAAAAABCWmg5F3JFOFCQAAAAAEJaaDkXckU4UJAAAAAAQlpoORdyRThQkAAAAABCWmg5F3JFOFCQAAAAAEJaaDkXckU4UJAAAAAAQlpoORdyRT
hQkAAAAABCWmg5F3JFOFCQAAAAAEJaaDkXckU4UJAAAAAAQlpoORdyRThQkAAAAABCWmg5F3JFOFCQAAAAAEJaaDkxQVkmU1kgRAIoAAOOf4B/
////////////////////0AQ+AAAAAEGAAmAAJgAAAAAAAAAAAAAAACDAATAAEwAAAAAAAAAAAAAAABBgAJgACYAAAAAAAAAAAAAAAAgwAEwABM
AAAAAAAAAAAAAAAAClSlT0jJobUxGBNGnqNNBsRNNNNDanlNDIYjygyDE0aMCZMIGJ6mrUVTVxVCY09K0crganjAIa0BDXAIeOAhrwEPIAQ8kB
DygENgAhlgIeWAhsQENkAhswEPMAQ80BDaAIbUBDbAIbcBDcAIbkBDzgEN0Ah54CHoAIbsBD0QEMwBD0gEPTAQ3gCHqAIb0BD1QEPWAQ9cBD2A
EN8AhmgIZwCGeAhvwEOAAhm+yqqDGdSqqyYlVjC4ICHtAIcIBD2wEOGAh7gCHEAQ90BD3gEPfAQ4oCGgAh8ACGiAhl6SqoMaBSgyYqxiyXwyqg
0VVVjEqVYYQk41VUGV8WTCqoPjAQ+QBDjgIcgBD5QEPmAQ+cBDkgIcoBDlgIfQAh9ICGmAhsdSqqDM02TBVQacgDGEq+oBD6wEPsAQ+0BDmAIc
0BD7gEPvAQ/ABD8QEOcAhzwEOgAh+QCHRAQ/MBD9AEOkAh+oCH7AIdMBDqAIdUBDrAIdcBDsAIfuAh2QEO0Ah/ACHbAQ7gCHdAQ7wCH8gIf0Ah
/YCH+AIf6Ah3wEPAAh4QEP+AQ1QEM/VkqDQxH/i7kinChIECIBFAQlpoOTFBWSZTWWxIdwEAAADpgKgAAACADAAIACgACCAAMQZMQJNUZMjToi
KJ2BD2czduoT4u5IpwoSDYkO4CQlpoOTFBWSZTWckOeqIAAAFAQqAAQAAEAAABIAAhmmgzTRM8XckU4UJDJDnqiA==
"""
