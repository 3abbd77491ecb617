"""A short run of the fuzzer over every format, and that it finds what it looks for."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from dicom_factory import PATIENT_NAME
from hypothesis import given
from MITSGANLib.errors import InputError

INPUTS = 100
KERAS_INPUTS = 30  # each forks this process, which takes 0.2 s of it
KINDS = ("card", "dicom", "keras", "manifest", "metaimage", "nifti", "nrrd", "seal")


@pytest.fixture(scope="module")
def fuzz(script):
    return script("fuzz")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read(fuzz, kind):
    inputs = KERAS_INPUTS if kind == "keras" else INPUTS
    outcomes = fuzz.fuzz(kind, inputs, seed=1, shrink=True)
    assert outcomes.total() >= inputs
    # Neither all nor none: else the changes would say nothing about the readers.
    assert 0 < outcomes["taken"] < outcomes.total()


def test_every_kind_has_its_test(fuzz):
    assert sorted(fuzz.KINDS) == list(KINDS)


def quote_a_header(_folder: Path) -> None:
    warnings.warn_explicit("Invalid value 'Secret'", UserWarning, "pydicom/valuerep.py", 1, module="pydicom.valuerep")


def leave_a_file(folder: Path, name: str) -> None:
    (folder / name).touch()
    raise InputError("refused")


FAULTS = {
    "a crash": (lambda _folder: int("x"), ValueError),
    "a name in an error": (lambda _folder: refuse(PATIENT_NAME), AssertionError),
    "half an output": (lambda folder: leave_a_file(folder, "out.nrrd"), AssertionError),
    "a temporary file": (lambda folder: leave_a_file(folder, ".scan.1.partial"), AssertionError),
    "a header in a warning": (quote_a_header, UserWarning),
}


def refuse(text: str) -> None:
    raise InputError(text)


@pytest.mark.parametrize(("act", "error"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(fuzz, act, error):
    subject = fuzz.Subject("any", b"data", lambda _data, folder: act(folder))
    with pytest.raises(error):
        fuzz.attempt(subject, b"data")


def test_refusals_are_counted_by_their_error(fuzz):
    assert fuzz.attempt(fuzz.Subject("any", b"", lambda *_: refuse("no")), b"") == "InputError"
    assert fuzz.attempt(fuzz.Subject("any", b"", lambda *_: None), b"") == "taken"


@pytest.mark.parametrize("valid", [b'{"a": [1, {"b": null}], "c": "d"}', bytes(range(256))])
def test_changes_change(fuzz, valid):
    seen = set()

    @given(fuzz.damaged(valid))
    def collect(changed: bytes) -> None:
        seen.add(changed)

    collect()
    assert len(seen - {valid}) > 50


def test_the_command_runs_and_says_what_came(fuzz, tmp_path, capsys):
    assert fuzz.main(["--inputs", "3", "--kind", "nrrd", "--seed", "7", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("nrrd: 3 inputs in ")
