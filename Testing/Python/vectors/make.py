"""Makes a folder of format vectors: ``PYTHONPATH=MITSGAN:Testing/Python python Testing/Python/vectors/make.py NAME``.

Each folder here was made once, by the version of MITSGAN that wrote its format first, and is never made again: what it
holds must open for ever. Salts, nonces, UIDs and dates are random or of that day, so another run gives other bytes of
the same meaning. A new version of a format gets a new folder beside the old ones.

- ``original.nrrd``: three slices of the synthetic thorax, no patient.
- ``key.txt``: key file of the seals and of the keyed watermark. ``signer.pub.pem``: of the first key of RFC 8032 (7.1).
- ``unversioned``: made before the watermark's record had a version.
- ``watermark-1``: made with version 1 of it.
- ``watermark-2``: made with version 2, whose signs are those of 1; they are higher in vessels and nodules.
- ``watermark-3``: made with version 3, whose signs are checkered.

- ``study-1``: two manifests of ``watermark-1/series`` as a study, and the answer sheet of a drill; made by
  ``make.py study-1``.

In each of the others: ``scan.nrrd`` with a keyed watermark, its seal and its manifest; ``series`` with the open
watermark, the seal and the manifest in its files.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dicom_factory import ct_series
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.key_files import Key, write_key_file
from MITSGANLib.keys.signing_keys import save_signing_key
from MITSGANLib.measure.drill import AnswerSheet, Forgery, seal_sheet
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.seal.sealing import save_sealed
from MITSGANLib.signature.signing import Signers, signed_output
from MITSGANLib.signature.study import sign_study
from MITSGANLib.watermark.pattern import OPEN_KEY, WatermarkKey, watermark_key

HERE = Path(__file__).resolve().parent
KEY = Key(bytes(range(32)))
SIGNER = Ed25519PrivateKey.from_private_bytes(
    bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
)
SPACING, ORIGIN = (2.0, 2.0, 2.5), (-70.3, -60.1, 40.5)


def make_shared() -> None:
    """Write the original and the keys."""
    hu = thorax_phantom(shape=(24, 72, 72), seed=3, noise_hu=25).volume.hu[11:14]
    save_volume(CTVolume(hu, SPACING, ORIGIN), HERE / "original.nrrd")
    write_key_file(KEY, HERE / "key.txt")
    with tempfile.TemporaryDirectory() as folder:
        public = save_signing_key(SIGNER, Path(folder) / "signer.pem")
        (HERE / "signer.pub.pem").write_bytes(public.read_bytes())


def make(folder: Path) -> None:
    """Write what stands in one folder."""
    folder.mkdir()
    write_protected(HERE / "original.nrrd", folder / "scan.nrrd", watermark_key(KEY))
    hu = load_volume(HERE / "original.nrrd").hu
    with tempfile.TemporaryDirectory() as source:
        ct_series(hu, spacing=SPACING, origin=ORIGIN).write(Path(source) / "in")
        write_protected(Path(source) / "in", folder / "series", OPEN_KEY)


def make_study(folder: Path) -> None:
    """Write manifests of a study, and an answer sheet."""
    folder.mkdir()
    for name in ("all", "pixels"):
        sign_study(HERE / "watermark-1" / "series", folder / f"{name}.json", SIGNER, pixels_only=name == "pixels")
    forgery = Forgery("inject", (-40.5, 12.25, 45.5), (1, 36, 15), "ctgan-small", "ab" * 32)
    sheet = AnswerSheet("2.25.1", "case-1", SPACING, ORIGIN, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), (forgery,))
    (folder / "case-1.answers").write_bytes(seal_sheet(sheet, KEY))


def write_protected(source: Path, target: Path, watermark: WatermarkKey) -> None:
    """Write a scan with its watermark, sealed and signed."""
    original = load_volume(source)
    with signed_output(target, Signers(SIGNER)) as unsigned:
        save_sealed(protect(original, model=watermark_alone(watermark)), original, unsigned, KEY, watermark=watermark)


if __name__ == "__main__":
    if not (HERE / "original.nrrd").exists():
        make_shared()
    name = sys.argv[1]
    (make_study if name.startswith("study") else make)(HERE / name)
