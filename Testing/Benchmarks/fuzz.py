"""Damaged files of every format that is read: python Testing/Benchmarks/fuzz.py --inputs 100000 --kind dicom

Valid files are changed at random (bits, bytes, runs cut out, put in, repeated or moved, numbers at the edges of their
range, values of JSON) by Hypothesis, from a seed, and used as a user would: listed, read, written again, restored,
verified. What must hold: nothing is raised but MITSGANError, whose text names no patient; nothing half written is left;
what is written can be read again; memory stays under a limit. The first input that breaks one of these is kept in
OUT, as small as Hypothesis can make it with --shrink, and the exit code is 1.

Two things cost much and tell nothing, so here they are done once: stretching the same UID by scrypt, and starting an
interpreter for each Keras file, in place of which this process forks. TMPDIR=/dev/shm keeps the files in memory.

With --record FILE each batch of 500 is written down as soon as it is done, and none that stands there is done again: a
run that was stopped goes on, and the last line counts all of them. Take another FILE after a change to the code.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from MITSGANLib.attack import keras_files
from MITSGANLib.attack.attacker import load_attacker, own_tensors
from MITSGANLib.attack.equalization import Equalization
from MITSGANLib.attack.keras_files import load_keras_generator
from MITSGANLib.attack.networks import CTGANConfig, CTGANGenerator
from MITSGANLib.errors import MITSGANError
from MITSGANLib.files.dicom.headers import silence_pydicom
from MITSGANLib.files.storage import describe, load_volume, save_volume
from MITSGANLib.keys.key_files import Key, generate_key
from MITSGANLib.keys.signing_keys import new_signing_key
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep
from MITSGANLib.seal.sealing import restore, save_sealed, seal_file
from MITSGANLib.signature.contents import read_contents_to_verify
from MITSGANLib.signature.manifest import manifest_path
from MITSGANLib.signature.signing import Signers, sign_scan
from MITSGANLib.signature.study import find_study_manifest, sign_study, verify_study
from MITSGANLib.signature.verification import find_manifest, verify_scan
from MITSGANLib.weights import ModelCard, write_weights
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

sys.path.append(str(Path(__file__).resolve().parents[1] / "Python"))

from dicom_factory import PATIENT_NAME, ct_series, phantom_hu, write_enhanced

BATCH = 500
TELL_EVERY = 5000
LIMIT_BYTES = 4 << 30  # of address space, on top of what the libraries take
SHAPE = (2, 40, 36)  # as few files as make a series; JPEG 2000 divides images by 32
STEP = ProcessingStep(PROTECTION, "protect", time="2026-01-01T00:00:00+00:00")
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
ODD_VALUES = (None, True, -1, 0, 2**31, 2**63, 1e308, -0.5, "", "x" * 300, "\ud800", [], {}, [[]], {"a": {}})


@dataclass(frozen=True)
class Subject:
    """A valid file, and what is done with a damaged one in a folder of its own.

    ``use`` raises ``MITSGANError`` where the file is refused, ``AssertionError`` where an invariant is broken.
    """

    name: str
    data: bytes = field(repr=False)
    use: Callable[[bytes, Path], None]


def protected(volume: CTVolume) -> CTVolume:
    """The scan with tissue raised by 3 HU."""
    return volume.with_hu(volume.hu + np.where(volume.hu > -950, 3, 0).astype(np.int16), STEP)


def phantom() -> CTVolume:
    """A small scan of the shape of the DICOM series."""
    return CTVolume(phantom_hu(SHAPE), (0.7, 0.8, 2.5), (-100.0, -120.0, 30.0))


def _copied(source: Path, output: Path) -> None:
    """List, read, write with tissue changed, and read again."""
    describe(source)
    volume = protected(load_volume(source))
    warnings = save_volume(volume, output)
    try:
        again = load_volume(output)
    except MITSGANError as error:
        raise AssertionError(f"what was written cannot be read: {error}") from error
    assert warnings or np.array_equal(again.hu, volume.hu), "what was written is not what was meant"
    assert again.same_geometry(volume, 1e-2), "what was written lies elsewhere"


def dicom_subjects(folder: Path) -> Iterator[Subject]:
    """Series in every transfer syntax that is read, and Enhanced CT: the second of two files is damaged."""
    syntaxes = (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    )
    for syntax in syntaxes:
        for bits in (12, 16):
            series = ct_series(phantom_hu(SHAPE), syntax=syntax, bits=bits, signed=False)
            paths = series.write(folder / syntax / str(bits))
            yield _series_subject(f"{syntax.name}, {bits} bits", [path.read_bytes() for path in paths])
    path = write_enhanced(folder / "enhanced", ct_series(phantom_hu(SHAPE)), order=[1, 0])
    yield _series_subject("Enhanced CT", [path.read_bytes()])


def _series_subject(name: str, files: list[bytes]) -> Subject:
    damaged = len(files) // 2

    def use(data: bytes, folder: Path) -> None:
        (folder / "in").mkdir()
        for number, content in enumerate(files):
            (folder / "in" / f"{number}").write_bytes(data if number == damaged else content)
        _copied(folder / "in", folder / "out")

    return Subject(name, files[damaged], use)


def file_subjects(*suffixes: str) -> Callable[[Path], Iterator[Subject]]:
    """Volume files of these suffixes, packed and plain, and the header of detached ones."""

    def subjects(folder: Path) -> Iterator[Subject]:
        import SimpleITK as sitk

        volume = phantom()
        for suffix in suffixes:
            path = folder / f"scan{suffix}"
            save_volume(volume.with_hu(volume.hu, STEP), path)
            yield _file_subject(path)
            plain = folder / f"plain{suffix}"
            sitk.WriteImage(sitk.ReadImage(path), plain, useCompression=False)
            yield _file_subject(plain)

    return subjects


def _file_subject(path: Path) -> Subject:
    beside = {one.name: one.read_bytes() for one in path.parent.iterdir() if one.stem == path.stem and one != path}

    def use(data: bytes, folder: Path) -> None:
        for name, content in beside.items():
            (folder / name).write_bytes(content)
        (folder / path.name).write_bytes(data)
        _copied(folder / path.name, folder / f"out{''.join(path.suffixes)}")

    return Subject(path.name, path.read_bytes(), use)


def seal_subjects(folder: Path) -> Iterator[Subject]:
    """The seal beside a file, the file beside its seal, and a sealed DICOM series."""
    key = generate_key()
    source, sealed = folder / "source.nrrd", folder / "scan.nrrd"
    save_volume(phantom(), source)
    save_sealed(protected(load_volume(source)), load_volume(source), sealed, key)
    files = {path.name: path.read_bytes() for path in (sealed, seal_file(sealed))}
    for name, content in files.items():
        yield Subject(name, content, _restoring(files, name, sealed.name, "back.nrrd", key, phantom().hu))
    ct_series(phantom_hu(SHAPE)).write(folder / "source")
    volume = load_volume(folder / "source")
    save_sealed(protected(volume), volume, folder / "sealed", key)
    series = {f"in/{path.name}": path.read_bytes() for path in sorted((folder / "sealed").iterdir())}
    name = sorted(series)[1]
    yield Subject("a sealed series", series[name], _restoring(series, name, "in", "back", key, volume.hu))


def _restoring(
    files: dict[str, bytes], damaged: str, scan: str, output: str, key: Key, original: np.ndarray
) -> Callable[[bytes, Path], None]:
    def use(data: bytes, folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data if name == damaged else content)
        restore(folder / scan, folder / output, key)
        assert np.array_equal(load_volume(folder / output).hu, original), "restored, but not to the original"

    return use


def manifest_subjects(folder: Path) -> Iterator[Subject]:
    """The manifest beside a file, a DICOM series that carries its own, and both manifests of a study."""
    signers = Signers(new_signing_key())
    path = folder / "scan.nrrd"
    save_volume(phantom(), path)
    sign_scan(path, None, signers)
    files = {one.name: one.read_bytes() for one in (path, manifest_path(path))}
    name = manifest_path(path).name
    yield Subject(name, files[name], _verifying(files, name, path.name))
    ct_series(phantom_hu(SHAPE)).write(folder / "source")
    sign_scan(folder / "source", folder / "signed", signers)
    series = {f"in/{one.name}": one.read_bytes() for one in sorted((folder / "signed").iterdir())}
    name = sorted(series)[1]
    yield Subject("a signed series", series[name], _verifying(series, name, "in"))
    for pixels_only in (False, True):
        study = folder / f"study-{pixels_only}.json"
        sign_study(folder / "source", study, signers.key, pixels_only=pixels_only)
        files = {f"in/{one.name}": one.read_bytes() for one in sorted((folder / "source").iterdir())}
        files[study.name] = study.read_bytes()
        for name in (study.name, sorted(files)[1]):
            yield Subject(f"{name} of a study", files[name], _verifying_study(files, name, study.name))


def _verifying(files: dict[str, bytes], damaged: str, scan: str) -> Callable[[bytes, Path], None]:
    def use(data: bytes, folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data if name == damaged else content)
        contents = read_contents_to_verify(folder / scan)
        signed = find_manifest(contents)
        if signed is not None:
            json.dumps(verify_scan(contents, signed).to_dict(), allow_nan=False)

    return use


def _verifying_study(files: dict[str, bytes], damaged: str, manifest: str) -> Callable[[bytes, Path], None]:
    def use(data: bytes, folder: Path) -> None:
        (folder / "in").mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(data if name == damaged else content)
        signed = find_study_manifest(folder / manifest)
        if signed is not None:
            json.dumps(verify_study(folder / "in", signed).to_dict(), allow_nan=False)

    return use


def card_subjects(folder: Path) -> Iterator[Subject]:
    """The card of an attacker's network, and the weights themselves, with a card that is right about their bytes."""
    torch.manual_seed(5)
    generator = CTGANGenerator(CTGANConfig(base_filters=2))
    equalization = Equalization.from_cubes(phantom_hu(SHAPE)[None])
    architecture = {"class": "CTGANGenerator", "config": {"base_filters": 2}}
    card = ModelCard("tiny", "attacker", "For tests.", architecture, {}, {}, {}, "None.", 5, "", "")
    path = folder / "injector.safetensors"
    card = write_weights(path, own_tensors(generator, equalization), card)
    files = {path.name: path.read_bytes(), "injector.json": card.to_json().encode()}

    def use_card(data: bytes, folder: Path) -> None:
        (folder / path.name).write_bytes(files[path.name])
        (folder / "injector.json").write_bytes(data)
        load_attacker(folder, "inject")

    def use_weights(data: bytes, folder: Path) -> None:
        import dataclasses
        import hashlib

        (folder / path.name).write_bytes(data)
        true_card = dataclasses.replace(card, sha256=hashlib.sha256(data).hexdigest())
        (folder / "injector.json").write_text(true_card.to_json(), encoding="utf-8")
        load_attacker(folder, "inject")

    yield Subject("injector.json", files["injector.json"], use_card)
    yield Subject("injector.safetensors", files[path.name], use_weights)


def keras_subjects(folder: Path) -> Iterator[Subject]:
    """A generator as Keras writes it."""
    from keras_file import write_keras_file

    torch.manual_seed(5)
    path = folder / "G_model.h5"
    write_keras_file(path, CTGANGenerator(CTGANConfig(base_filters=1)).eval())

    def use(data: bytes, folder: Path) -> None:
        (folder / path.name).write_bytes(data)
        load_keras_generator(folder / path.name)

    yield Subject(path.name, path.read_bytes(), use)


KINDS: dict[str, Callable[[Path], Iterator[Subject]]] = {
    "dicom": dicom_subjects,
    "nifti": file_subjects(".nii", ".nii.gz"),
    "nrrd": file_subjects(".nrrd", ".nhdr"),
    "metaimage": file_subjects(".mha", ".mhd"),
    "seal": seal_subjects,
    "manifest": manifest_subjects,
    "card": card_subjects,
    "keras": keras_subjects,
}


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Changed copies of valid bytes; JSON also value by value."""
    ways = [_changed_bytes(data)]
    if data.startswith(b"{"):
        ways.append(_changed_values(json.loads(data)))
    return st.one_of(ways)


@st.composite
def _changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    changed = bytearray(data)
    # Most of a file is voxels; headers are at its beginning, for the most part.
    near = st.integers(0, min(len(data), 2000))
    anywhere = st.integers(0, len(data))
    for _ in range(draw(st.integers(1, 4))):
        at = min(draw(st.one_of(near, anywhere)), len(changed))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(("bit", "bytes", "number", "cut", "insert", "repeat", "move", "end"))):
            case "bit" if at < len(changed):
                changed[at] ^= 1 << draw(st.integers(0, 7))
            case "bytes":
                changed[at : at + length] = draw(st.binary(min_size=1, max_size=length))
            case "number":
                size = draw(st.sampled_from((1, 2, 4, 8)))
                value = draw(st.sampled_from(EDGES)) & (1 << 8 * size) - 1
                changed[at : at + size] = value.to_bytes(size, draw(st.sampled_from(("little", "big"))))
            case "cut":
                del changed[at : at + length]
            case "insert":
                changed[at:at] = draw(st.binary(min_size=1, max_size=length))
            case "repeat":
                changed[at:at] = changed[at : at + length] * draw(st.integers(1, 20))
            case "move":
                piece = bytes(changed[at : at + length])
                del changed[at : at + length]
                to = min(draw(anywhere), len(changed))
                changed[to:to] = piece
            case "end":
                del changed[at:]
    return bytes(changed)


@st.composite
def _changed_values(draw: st.DrawFn, document: Any) -> bytes:
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        container, key = draw(st.sampled_from(places))
        if draw(st.booleans()) and isinstance(container, dict):
            del container[key]
            if not document:
                break
        else:
            # A copy: an odd value may be a list, which later changes must not put into itself.
            container[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document where a value stands."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def attempt(subject: Subject, data: bytes) -> str:
    """Use one damaged file; "taken", or the name of the error that refused it.

    :raises Exception: what must not happen.
    """
    with tempfile.TemporaryDirectory() as folder, _no_header_shown():
        try:
            subject.use(data, Path(folder))
            outcome, shown = "taken", ""
        except MITSGANError as error:
            outcome, shown = type(error).__name__, str(error)
        assert PATIENT_NAME.split("^")[0] not in shown, "a patient's name in an error"
        begun = () if outcome == "taken" else ("out", "back")
        left = [path.name for path in Path(folder).rglob("*") if path.suffix == ".partial" or path.stem in begun]
        assert not left, f"{outcome}, but {left[0]} was left"
        return outcome


@contextmanager
def _no_header_shown() -> Iterator[None]:
    """What pydicom warns of quotes headers; here it is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="pydicom")
        yield


def fuzz(kind: str, inputs: int, seed: int, *, shrink: bool = False, out: Path | None = None) -> Counter[str]:
    """Try ``inputs`` damaged files of a kind; how often each outcome came.

    :param shrink: look for a smaller input that fails in the same way.
    :param out: where the input that failed is kept.
    :raises Exception: what must not happen, with the input in Hypothesis' note.
    """
    outcomes: Counter[str] = Counter()
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]

    @hypothesis_seed(seed)
    @settings(
        max_examples=inputs,
        phases=phases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        subject = data.draw(st.sampled_from(subjects_of(kind)))
        content = data.draw(damaged(subject.data))
        if out:
            (out / f"{kind}.name").write_text(subject.name + "\n")
            (out / f"{kind}.input").write_bytes(content)
        outcomes[attempt(subject, content)] += 1

    run()
    return outcomes


@functools.cache
def subjects_of(kind: str) -> tuple[Subject, ...]:
    """The valid files of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(KINDS[kind](Path(folder)))


@contextmanager
def _without_repetition() -> Iterator[None]:
    """Do what is the same for every input once; see the module's docstring."""
    scrypt = hashlib.scrypt
    hashlib.scrypt = functools.lru_cache(1 << 12)(scrypt)
    keras_files.subprocess = SimpleNamespace(run=_run_forked, TimeoutExpired=subprocess.TimeoutExpired)
    try:
        yield
    finally:
        hashlib.scrypt, keras_files.subprocess = scrypt, subprocess


def _run_forked(command: Sequence[str], timeout: float, **_: Any) -> subprocess.CompletedProcess[bytes]:
    """Run ``python -I -c CODE ARGUMENT`` in a fork of this process."""
    process = multiprocessing.get_context("fork").Process(target=_execute, args=command[-2:])
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(command, timeout)
    return subprocess.CompletedProcess(command, process.exitcode)


def _execute(code: str, argument: str) -> None:
    sys.argv = ["-c", argument]
    try:
        exec(code, {})  # noqa: S102 - the probe of keras_files
    except BaseException:  # noqa: BLE001 - as an interpreter ends
        os._exit(1)
    os._exit(0)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """An address space of what is taken already and :data:`LIMIT_BYTES`."""
    taken = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize")
    )
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class _Record:
    """The batches of a kind that were done, as lines of JSON in a file; nothing is kept where there is no file."""

    def __init__(self, path: Path | None, kind: str) -> None:
        self._path, self._kind = path, kind
        lines = path.read_text().splitlines() if path and path.is_file() else []
        batches = [json.loads(line) for line in lines]
        self._done = {one["seed"]: Counter(one["outcomes"]) for one in batches if one["kind"] == kind}

    def found(self, seed: int, inputs: int) -> Counter[str] | None:
        """The outcomes of a batch that was done; None for one that was not, or not wholly."""
        done = self._done.get(seed)
        return done if done is not None and done.total() >= inputs else None

    def add(self, seed: int, outcomes: Counter[str]) -> None:
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps({"kind": self._kind, "seed": seed, "outcomes": outcomes}) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    silence_pydicom()  # as the command line does
    for kind in options.kind or KINDS:
        started, outcomes = time.monotonic(), Counter()
        record = _Record(options.record, kind)
        with _limited_memory(), _without_repetition():
            for number, first in enumerate(range(0, options.inputs, BATCH)):
                count = min(BATCH, options.inputs - first)
                done = record.found(options.seed + number, count)
                if done is not None:
                    outcomes += done
                    continue
                try:
                    done = fuzz(kind, count, options.seed + number, shrink=options.shrink, out=options.out)
                except Exception:
                    print(
                        f"{kind}: failed with seed {options.seed + number}; the input is in {options.out}", flush=True
                    )
                    raise
                outcomes += done
                record.add(options.seed + number, done)
                if not (first + count) % TELL_EVERY and first + count < options.inputs:
                    print(f"{kind}: {outcomes.total()} inputs so far", file=sys.stderr, flush=True)
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
        print(f"{kind}: {outcomes.total()} inputs in {seconds:.0f} s, peak {peak:.0f} MB: {found}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, metavar="N", help="inputs of each kind (default: 1000)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="one kind, may be repeated (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of Hypothesis (default: 0)")
    parser.add_argument("--shrink", action="store_true", help="look for the smallest input that fails")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep in FILE what was done, and go on from there")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), metavar="FOLDER", help="for the input that failed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
