"""Other watermarks beside ours, on the same slices, after the same forgery and the same copies. Prints Markdown.

    pip install --no-deps invisible-watermark blind-watermark opencv-python-headless PyWavelets onnxruntime
    python Testing/Benchmarks/rivals.py SCAN... --slices 4

They mark pictures of 8 bits in three channels: three neighboring slices, -1024..3071 HU. What they change
is added to the HU, in steps of 16. 32 bits are put in. *Recognized*: 28 of them or more are read (by chance once in
100000 pictures). *Forged*: a ball of 20 mm cloned from elsewhere into a lung; none of them says where. Ours, on the
same slices: the watermark alone, recognized by ``check``; *where*: ``check`` misses it at the place, and at no other
that it was asked about.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from MITSGANLib.files.storage import load_volume
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.lungs import lung_mask
from MITSGANLib.scan.volume import HIGHEST_HU, LOWEST_HU, CTVolume
from MITSGANLib.watermark.checking import check_watermark

sys.path.append(str(Path(__file__).resolve().parents[1] / "Python"))

import forgeries
from copy_suite import COPIES

SEED = 31
STEP_HU = (HIGHEST_HU - LOWEST_HU + 1) // 256
BITS = np.random.default_rng(SEED).integers(0, 2, 32).tolist()
ENOUGH = 28
SEEN = (
    "as it is",
    "12 bits",
    "cropped",
    "flipped, untold",
    "turned by 3 degrees, untold",
    "to 1 mm and back",
    "JPEG 2000, 5:1",
    "JPEG 2000, 10:1",
    "Gaussian of 0.5 voxel",
    "median of 3x3",
    "10 HU more noise",
)

Encode = Callable[[np.ndarray], np.ndarray]
Decode = Callable[[np.ndarray], np.ndarray]
Voxel = tuple[int, int, int]


def rivals() -> dict[str, tuple[Encode, Decode]]:
    """Those that are installed: pictures uint8 (rows, columns, 3) in and out, and bits."""
    found: dict[str, tuple[Encode, Decode]] = {}
    if importlib.util.find_spec("imwatermark"):
        from imwatermark import WatermarkDecoder, WatermarkEncoder

        WatermarkEncoder.loadModel()
        encoder, decoder = WatermarkEncoder(), WatermarkDecoder("bits", len(BITS))
        encoder.set_watermark("bits", BITS)
        for method in ("dwtDct", "dwtDctSvd", "rivaGan"):
            found[f"invisible-watermark, {method}"] = (
                lambda picture, method=method: encoder.encode(picture, method),
                lambda picture, method=method: np.array(decoder.decode(picture, method), int),
            )
    if importlib.util.find_spec("blind_watermark"):
        from blind_watermark import WaterMark

        def encode(picture: np.ndarray) -> np.ndarray:
            marker = WaterMark(password_img=1, password_wm=1)
            marker.read_img(img=picture.astype(np.float32))
            marker.read_wm(np.array(BITS, bool), mode="bit")
            return np.clip(np.rint(marker.embed()), 0, 255).astype(np.uint8)

        def decode(picture: np.ndarray) -> np.ndarray:
            marker = WaterMark(password_img=1, password_wm=1)
            found = marker.extract(embed_img=picture.astype(np.float32), wm_shape=len(BITS), mode="bit")
            return (np.asarray(found) > 0.5).astype(int)

        found["blind-watermark"] = encode, decode
    return found


def picture(hu: np.ndarray) -> np.ndarray:
    """Three slices (3, rows, columns) as one picture."""
    clipped = np.clip(hu, LOWEST_HU, HIGHEST_HU).astype(np.int32) - LOWEST_HU
    return np.ascontiguousarray((clipped // STEP_HU).astype(np.uint8).transpose(1, 2, 0))


def marked_by(encode: Encode, volume: CTVolume) -> CTVolume:
    """A scan of three slices with a rival's mark."""
    plain = picture(volume.hu)
    change = (encode(plain).astype(int) - plain).transpose(2, 0, 1) * STEP_HU
    return volume.with_hu(np.clip(volume.hu + change, LOWEST_HU, HIGHEST_HU).astype(np.int16))


def is_read(decode: Decode, volume: CTVolume) -> bool:
    hu = volume.hu if len(volume.hu) == 3 else np.resize(volume.hu, (3, *volume.shape[1:]))
    try:
        return int((decode(picture(hu)) == BITS).sum()) >= ENOUGH
    except Exception:  # noqa: BLE001 - a rival that fails at a picture has not read it
        return False


def places_in(volume: CTVolume) -> tuple[Voxel, Voxel, list[Voxel]]:
    """Where to forge, where to copy from, and places to ask about: all deep in the lungs, far from each other."""
    from scipy import ndimage

    middle = volume.shape[0] // 2
    deep = ndimage.distance_transform_edt(
        ndimage.binary_fill_holes(ndimage.median_filter(lung_mask(volume)[middle], 5)), volume.spacing_kji[1:]
    )
    found: list[Voxel] = []
    while deep.max() > 8 and len(found) < 6:
        j, i = (int(index) for index in np.unravel_index(deep.argmax(), deep.shape))
        found.append((middle, j, i))
        low = [max(0, at - round(35 / mm)) for at, mm in zip((j, i), volume.spacing_kji[1:], strict=True)]
        high = [at + round(35 / mm) for at, mm in zip((j, i), volume.spacing_kji[1:], strict=True)]
        deep[low[0] : high[0], low[1] : high[1]] = 0
    return found[0], found[1], found[2:]


def cloned(volume: CTVolume, target: Voxel, source: Voxel) -> CTVolume:
    """The forged scan."""
    return forgeries.forge(volume, [target], lambda scan, kji: forgeries.clone(scan, kji, source))


def rows(scans: dict[str, CTVolume], count: int, *, with_ours: bool) -> Iterator[str]:
    """A line for each watermark."""
    parts = [part for volume in scans.values() for part in _parts(volume, count)]
    yield "| watermark | RMSE in the body, HU | " + " | ".join(SEEN) + " | forged: recognized, where |"
    yield "|" + " --- |" * (len(SEEN) + 3)
    for name, (encode, decode) in rivals().items():
        changes, read, forged = [], dict.fromkeys(SEEN, 0), 0
        for part in parts:
            few = dataclasses.replace(part, hu=part.hu[len(part.hu) // 2 - 1 :][:3])
            marked = marked_by(encode, few)
            body = few.hu > -900
            changes.append(np.mean((marked.hu.astype(float) - few.hu)[body] ** 2))
            for copy in SEEN:
                read[copy] += is_read(decode, COPIES[copy](marked).volume)
            target, source, _ = places_in(part)
            here, there = ((1, *kji[1:]) for kji in (target, source))
            forged += is_read(decode, cloned(marked, here, there))
        shares = " | ".join(f"{read[copy]} of {len(parts)}" for copy in SEEN)
        yield f"| {name} | {np.sqrt(np.mean(changes)):.1f} | {shares} | {forged} of {len(parts)}, nowhere |"
    if not with_ours:
        return
    changes, read, forged, where = [], dict.fromkeys(SEEN, 0), 0, 0
    for part in parts:
        marked = protect(part, model=watermark_alone())
        body = part.hu > -900
        changes.append(np.mean((marked.hu.astype(float) - part.hu)[body] ** 2))
        for copy in SEEN:
            read[copy] += check_watermark(COPIES[copy](marked).volume).is_found
        target, source, others = places_in(part)
        check = check_watermark(cloned(marked, target, source))
        forged += check.is_found
        where += check.at(target).is_missing and not any(check.at(kji).is_missing for kji in others)
    shares = " | ".join(f"{read[copy]} of {len(parts)}" for copy in SEEN)
    yield (
        f"| ours, alone | {np.sqrt(np.mean(changes)):.1f} | {shares} | {forged} of {len(parts)}, "
        f"right {where} of {len(parts)} |"
    )


def _parts(volume: CTVolume, count: int) -> Iterator[CTVolume]:
    """Parts of 20 mm and 5 slices at least, spread over the middle half of a scan."""
    size = max(5, round(20 / volume.spacing_kji[0]))
    for first in np.linspace(volume.shape[0] // 4, 3 * volume.shape[0] // 4 - size, count).astype(int):
        part = dataclasses.replace(
            volume, hu=volume.hu[first : first + size], origin=tuple(volume.voxel_to_lps((first, 0, 0)))
        )
        try:
            places_in(part)
        except IndexError:  # no two lungs
            continue
        yield part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--slices", type=int, default=4, help="places along each scan")
    parser.add_argument("--without-ours", action="store_true", help="which takes most of the time")
    options = parser.parse_args()
    scans = {Path(scan).name.split(".")[0]: load_volume(scan) for scan in options.scans}
    for row in rows(scans, options.slices, with_ours=not options.without_ours):
        print(row, flush=True)


if __name__ == "__main__":
    main()
