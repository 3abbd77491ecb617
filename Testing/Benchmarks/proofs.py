"""Who notices what was done to a signed study: python Testing/Benchmarks/proofs.py [--c2pa PATH/c2pa-health]

A study of two synthetic CT series is signed in each way: by MITSGAN, by DCMTK's dcmsign and by PyPI's
c2pa-health-imaging, with the defaults of each. Then one thing is done to a copy, and each verifies it. A copy to which
nothing was done is the control: who refuses that one notices nothing. Rivals that are not installed are left out, and
that is said.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key
from MITSGANTrainingLib.commandline import main as mitsgan
from pydicom.uid import generate_uid

sys.path.append(str(Path(__file__).resolve().parents[1] / "Python"))

from dicom_factory import ct_series, phantom_hu

SHAPE = (5, 48, 40)
SERIES = ("lung", "soft")
MIDDLE, LAST = "slice-002", "slice-004"
MOVED = [-100, -120, 36.0]  # 1 mm off


@dataclass(frozen=True)
class Rival:
    """One way to sign a study, in a folder of its own, and to verify it.

    :param sign: makes what verifies the study; may change its files.
    :param notices: whether anything is wrong with the study.
    :param sign_one: signs one more file with the same key, where files are signed one by one.
    """

    name: str
    sign: Callable[[Path], None]
    notices: Callable[[Path], bool]
    sign_one: Callable[[Path], None] | None = None


def edit(file: Path, **elements: object) -> None:
    """Set elements of a DICOM file."""
    dataset = pydicom.dcmread(file)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(file)


def change_voxel(file: Path) -> None:
    """Raise one voxel by 1 HU."""
    stored = pydicom.dcmread(file).pixel_array.copy()
    stored[20, 20] += 1
    edit(file, PixelData=stored.tobytes())


def swap_slices(series: Path) -> None:
    """Let two slices show each other's pixels, with everything that signs them left where it was."""
    first, second = (pydicom.dcmread(series / name) for name in ("slice-001", MIDDLE))
    edit(series / "slice-001", PixelData=second.PixelData)
    edit(series / MIDDLE, PixelData=first.PixelData)


def add_slice(study: Path, original: Path, rival: Rival) -> None:
    """Add a slice behind the last, by the same key where files are signed one by one."""
    added = study / SERIES[1] / "slice-005"
    shutil.copy(original / SERIES[1] / LAST, added)
    position = pydicom.dcmread(added).ImagePositionPatient
    edit(added, SOPInstanceUID=generate_uid(prefix=None), ImagePositionPatient=[*position[:2], position[2] + 2.5])
    if rival.sign_one:
        rival.sign_one(added)


DEEDS: dict[str, Callable[[Path, Path, Rival], object]] = {
    "nothing (control)": lambda *_: None,
    "one voxel by 1 HU": lambda study, *_: change_voxel(study / SERIES[0] / MIDDLE),
    "another Patient ID": lambda study, *_: edit(study / SERIES[0] / MIDDLE, PatientID="43"),
    "a position moved by 1 mm": lambda study, *_: edit(study / SERIES[0] / MIDDLE, ImagePositionPatient=MOVED),
    "another SOP Instance UID": lambda study, *_: edit(
        study / SERIES[0] / MIDDLE, SOPInstanceUID=generate_uid(prefix=None)
    ),
    "two slices swapped": lambda study, *_: swap_slices(study / SERIES[0]),
    "a missing slice": lambda study, *_: (study / SERIES[0] / LAST).unlink(),
    "an added slice, by the same key": add_slice,
    "a missing series": lambda study, *_: shutil.rmtree(study / SERIES[1]),
}


def write_study(folder: Path) -> Path:
    """Two CT series of one study."""
    uid = generate_uid(prefix=None)
    for number, name in enumerate(SERIES, 1):
        ct_series(phantom_hu(SHAPE, seed=number), study_uid=uid).write(folder / name)
    return folder


def images(study: Path) -> list[Path]:
    """The image files of a study."""
    return sorted(study.glob("*/slice-*"))


def quietly(*words: object) -> int:
    """Run ``mitsgan`` and give its exit code."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return mitsgan([str(word) for word in words])


def run(*words: object) -> int:
    """Run another program and give its exit code."""
    return subprocess.run([str(word) for word in words], capture_output=True, check=False).returncode


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """(private key, certificate) files, RSA of 2048 bits."""
    key, name = rsa.generate_private_key(65537, 2048), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    pem = serialization.Encoding.PEM
    paths = folder / "rsa.key", folder / "rsa.crt"
    paths[0].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    paths[0].chmod(0o600)
    certificate = made.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    paths[1].write_bytes(certificate.public_bytes(pem))
    return paths


def own_rivals(folder: Path) -> list[Rival]:
    """What MITSGAN itself offers."""
    key, certificate = make_certificate(folder)
    signing = folder / "signing.pem"
    public = save_signing_key(new_signing_key(), signing)

    def sign_series(study: Path) -> None:
        for name in SERIES:
            quietly("sign", study / name, "--key", signing)

    def series_notice(study: Path) -> bool:
        left = [name for name in SERIES if (study / name).is_dir()]
        return any(quietly("verify", study / name, "--public-key", public) != 0 for name in left)

    def study_notices(study: Path) -> bool:
        return quietly("verify", study, "--public-key", public) != 0

    return [
        Rival(
            "`sign --exam`",
            lambda study: quietly("sign", study, "--exam", "--dicom-key", key, "--certificate", certificate),
            lambda study: quietly("verify", study, "--certificate", certificate) != 0,
        ),
        Rival("`sign --study`", lambda study: quietly("sign", study, "--study", "--key", signing), study_notices),
        Rival("`sign`, each series", sign_series, series_notice),
        Rival(
            "`sign --pixels-only`",
            lambda study: quietly("sign", study, "--pixels-only", "--key", signing),
            study_notices,
        ),
    ]


def dcmsign_rival(folder: Path, program: str) -> Rival:
    """DCMTK: a signature in each image."""
    key, certificate = make_certificate(folder)

    def sign_one(file: Path) -> None:
        run(program, "--sign", key, certificate, "--mac-sha256", file, file)

    def sign(study: Path) -> None:
        for file in images(study):
            sign_one(file)

    def notices(study: Path) -> bool:
        verify = (program, "--verify", "--require-sig", "--add-cert-file", certificate)
        return any(run(*verify, file) != 0 for file in images(study))

    return Rival("`dcmsign`, each image", sign, notices, sign_one)


def c2pa_rival(folder: Path, program: str) -> Rival:
    """PyPI's c2pa-health-imaging: a signature in each image, over its default list of headers."""
    key, certificate = folder / "c2pa.key", folder / "c2pa.crt"
    run(program, "keygen", "--out-key", key, "--out-cert", certificate)

    def sign_one(file: Path) -> None:
        run(program, "sign", file, "--key", key, "--cert", certificate, "--in-place")

    def sign(study: Path) -> None:
        for file in images(study):
            sign_one(file)

    def notices(study: Path) -> bool:
        return any(run(program, "verify", file, "--trust-cert", certificate) != 0 for file in images(study))

    return Rival("`c2pa-health-imaging`, each image", sign, notices, sign_one)


def compare(rivals: Sequence[Rival], folder: Path) -> dict[str, dict[str, bool]]:
    """Whether each rival notices each deed: by deed, then by name."""
    found: dict[str, dict[str, bool]] = {deed: {} for deed in DEEDS}
    original = write_study(folder / "original")
    for number, rival in enumerate(rivals):
        # In a folder of its own, since manifests lie beside the study or its series.
        place = folder / str(number)
        shutil.copytree(original, place / "study")
        rival.sign(place / "study")
        for deed, do in DEEDS.items():
            copy = folder / "copies" / str(number)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(place, copy)
            do(copy / "study", original, rival)
            found[deed][rival.name] = rival.notices(copy / "study")
    return found


def table(found: dict[str, dict[str, bool]]) -> str:
    """The comparison in Markdown; a rival that refuses the control is said to be of no use."""
    control, *deeds = found
    names = [name for name, refused in found[control].items() if not refused]
    lines = [f"| done to the study | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for deed in (control, *deeds):
        words = ["accepted" if deed == control else "found" if found[deed][n] else "**not found**" for n in names]
        lines.append(f"| {deed} | {' | '.join(words)} |")
    lines += [
        f"\n{name} refuses the untouched study, so it is left out." for name in found[control] if name not in names
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dcmsign", default=shutil.which("dcmsign"), metavar="PROGRAM", help="default: as installed")
    parser.add_argument("--c2pa", default=shutil.which("c2pa-health"), metavar="PROGRAM", help="default: as installed")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rivals = own_rivals(folder)
        for program, make, what in (
            (options.dcmsign, dcmsign_rival, "dcmsign is not installed (Debian: dcmtk)"),
            (options.c2pa, c2pa_rival, "c2pa-health is not installed (PyPI: c2pa-health-imaging)"),
        ):
            if program and shutil.which(program):
                keys = folder / make.__name__
                keys.mkdir()
                rivals.append(make(keys, program))
            else:
                print(f"{what}; left out.", file=sys.stderr)
        print(table(compare(rivals, folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
