"""Targets from a CSV file: what is read, and what is refused with the line and the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.evaluation.targets import GivenTarget, read_targets

SCANS = ("scans/first.nii.gz", "scans/second")


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "targets.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_voxels_by_path_name_and_stem(tmp_path):
    lines = (
        "scans/first.nii.gz,inject,1,2,3",
        "first.nii.gz,remove,4,5,6",
        "first,inject,7,8,9",
        "second,inject,0,0,0",
    )
    found = read_targets(write(tmp_path, "\n".join(("scan,action,k,j,i", *lines))), SCANS)
    assert [(t.line, t.action, t.place) for t in found[SCANS[0]]] == [
        (2, "inject", (1, 2, 3)),
        (3, "remove", (4, 5, 6)),
        (4, "inject", (7, 8, 9)),
    ]
    assert not found[SCANS[1]][0].world


def test_a_spreadsheets_file(tmp_path):
    """Byte order mark, capitals, spaces, columns in another order."""
    text = "Z, Action, X, Y, Scan\n10.5, Inject, -3, 4, first\n"
    found = read_targets(write(tmp_path, text, "utf-8-sig"), SCANS[:1])
    assert found[SCANS[0]] == (GivenTarget(2, "inject", (-3.0, 4.0, 10.5), True),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns of an empty file"),
        ("scan,action,k,j\n", "either k, j, i"),
        ("scan,actoin,k,j,i\n", "did you mean action"),
        ("scan,action,k,j,i,x\n", "either k, j, i"),
        ("scan,action,k,j,i\nthird,inject,1,2,3\n", "'third' is none of the scans"),
        ("scan,action,k,j,i\nfirst,erase,1,2,3\n", "inject or remove"),
        ("scan,action,k,j,i\nfirst,inject,1,two,3\n", "Line 2 .* three numbers"),
        ("scan,action,k,j,i\nfirst,inject,1,2\n", "three numbers"),
        ("scan,action,k,j,i\nfirst,inject,1.5,2,3\n", "whole numbers"),
        ("scan,action,x,y,z\nfirst,inject,1,nan,3\n", "finite numbers"),
        ("scan,action,x,y,z\nfirst,inject,1,5,2,5,3,5\n", "more cells than columns"),
        ("scan,action,k,j,i\nfirst,inject,1,2,3\n", "no line for the scan scans/second"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_targets(write(tmp_path, text), SCANS)


def test_a_name_of_two_scans_is_not_guessed(tmp_path):
    scans = ("a/scan.nrrd", "b/scan.nrrd")
    with pytest.raises(InputError, match="several scans"):
        read_targets(write(tmp_path, "scan,action,k,j,i\nscan,inject,1,2,3\n"), scans)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_targets(tmp_path / "none.csv", SCANS)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00scan")
    with pytest.raises(InputError, match="cannot be read"):
        read_targets(tmp_path / "binary.csv", SCANS)


@given(kji=st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6)), flip=st.booleans())
def test_a_voxels_world_point_leads_back_to_it(kji, flip):
    direction = np.diag([-1.0, 1.0, -1.0]) if flip else np.eye(3)
    volume = CTVolume(np.zeros((5, 6, 7), np.int16), (0.7, 0.8, 2.5), (-10.0, 20.0, 5.0), direction)
    target = GivenTarget(2, "inject", tuple(volume.voxel_to_lps(kji)), True).resolve(volume)
    assert target.kji == kji


@pytest.mark.parametrize(("place", "world"), [((5, 0, 0), False), ((-1, 0, 0), False), ((0, 0, 100.0), True)])
def test_a_place_outside_the_scan_names_line_and_size(place, world):
    volume = CTVolume(np.zeros((5, 6, 7), np.int16))
    with pytest.raises(TargetError, match=r"Line 9 .* outside the scan of \(5, 6, 7\)"):
        GivenTarget(9, "inject", place, world).resolve(volume)
