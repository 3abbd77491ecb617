"""Signing, verification and examination of collections: one engine, a verdict for each scan, nothing done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pydicom
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from dicom_factory import ct_series, phantom_hu
from MITSGANLib.files.storage import save_volume
from MITSGANLib.keys.signing_keys import new_signing_key, public_key_path, save_signing_key
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.archives.inventory import RECORDS, SUMMARY
from MITSGANTrainingLib.archives.verdicts import OF_STUDY
from MITSGANTrainingLib.commandline import main
from tree_data import contents, make_signer, outputs

SHAPE = (3, 40, 36)
SPACING = (8.0, 8.0, 2.5)


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "signing.pem"
    save_signing_key(new_signing_key(), path)
    return path


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """Two series mixed in a folder, one over two folders, and a file."""
    tree = tmp_path_factory.mktemp("originals") / "tree"
    for seed, prefix in enumerate("ab"):
        ct_series(phantom_hu(SHAPE, seed), spacing=SPACING, prefix=prefix).write(tree / "mixed")
    paths = ct_series(phantom_hu(SHAPE, 2), spacing=SPACING, prefix="c").write(tree / "cd" / "1")
    (tree / "cd" / "2").mkdir()
    paths[2].rename(tree / "cd" / "2" / "last")
    save_volume(CTVolume(phantom_hu(SHAPE, 3), spacing=SPACING), tree / "file" / "scan.nrrd")
    (tree / "note.txt").write_text("note")
    return tree


@pytest.fixture(scope="module")
def signed(originals, key, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("signed") / "out"
    assert main(["sign", str(originals), str(out), "--collection", "--key", str(key), "--others", "copy"]) == 0
    return out


@pytest.fixture
def tree(signed, tmp_path) -> Path:
    """A copy of the signed tree, to change."""
    return Path(shutil.copytree(signed, tmp_path / "tree", ignore=shutil.ignore_patterns(RECORDS, SUMMARY)))


def judged(command: str, tree: Path, out: Path, *arguments: object) -> tuple[int, dict[str, dict]]:
    """Exit code, and the rows of the summary by source and the last digits of the UID."""
    code = main([command, str(tree), str(out), "--collection", *map(str, arguments)])
    summary = json.loads((out / SUMMARY).read_text())
    assert summary["exit_code"] == code
    verb = {"verify": "verified", "examine": "examined"}[command]
    return code, {f"{row['source']} {(row['series_instance_uid'] or '')[-4:]}".strip(): row for row in summary[verb]}


class TestSign:
    def test_every_scan_has_its_manifest_and_its_name(self, originals, signed):
        names = outputs(originals).keys()
        assert outputs(signed).keys() == names | {"file/scan.nrrd.manifest.json"}
        for name in names - {"file/scan.nrrd", "note.txt"}:
            before, after = (pydicom.dcmread(folder / name) for folder in (originals, signed))
            assert after.SOPInstanceUID == before.SOPInstanceUID
            assert after.PixelData == before.PixelData

    @pytest.mark.slow
    def test_a_second_run_signs_only_what_changed(self, originals, key, tmp_path):
        tree, out = Path(shutil.copytree(originals, tmp_path / "tree")), tmp_path / "out"
        arguments = ["sign", str(tree), str(out), "--collection", "--key", str(key)]
        assert main(arguments) == 0
        before = contents(out)
        assert main(arguments) == 0
        after = contents(out)
        assert {name for name in after if after[name] != before[name]} <= {SUMMARY}
        path = tree / "mixed" / "a-001"
        path.write_bytes(path.read_bytes()[:-2] + b"\1\0")
        assert main(arguments) == 0
        changed = {name for name, data in outputs(out).items() if data != before[name]}
        assert changed == {f"mixed/a-00{k}" for k in range(3)}

    @pytest.mark.slow
    def test_another_key_signs_anew(self, originals, key, tmp_path):
        other, out = tmp_path / "other.pem", tmp_path / "out"
        save_signing_key(new_signing_key(), other)
        for one in (key, other):
            assert main(["sign", str(originals), str(out), "--collection", "--key", str(one)]) == 0
        code, rows = judged("verify", out, tmp_path / "results", "--public-key", public_key_path(other))
        assert (code, {row["verdict"] for row in rows.values()}) == (0, {"intact"})

    def test_wrong_usage(self, originals, key, capsys):
        for arguments in ([], ["out", "--series", "1.2"], ["out", "--exam"]):
            with pytest.raises(SystemExit):
                main(["sign", str(originals), *arguments, "--collection", "--key", str(key)])
        assert "needs OUTPUT" in capsys.readouterr().err


class TestVerify:
    @pytest.mark.slow
    def test_an_untouched_tree(self, tree, key, tmp_path, capsys):
        public = public_key_path(key)
        code, rows = judged("verify", tree, tmp_path / "results", "--public-key", public)
        assert (code, [row["verdict"] for row in rows.values()]) == (0, ["intact"] * 4)
        assert "Verified 4 scans (4 intact)" in capsys.readouterr().out
        code, rows = judged("verify", tree, tmp_path / "results", "--public-key", public)
        assert all(row["earlier"] for row in rows.values())
        code, rows = judged("verify", tree, tmp_path / "results")
        assert (code, {row["verdict"] for row in rows.values()}) == (8, {"intact, unknown signer"})

    @pytest.mark.slow
    def test_what_was_changed_is_named_and_the_worst_is_the_exit_code(self, tree, key, tmp_path, capsys):
        public, results = public_key_path(key), tmp_path / "results"
        assert judged("verify", tree, results, "--public-key", public)[0] == 0
        path = tree / "mixed" / "a-001"
        path.write_bytes(path.read_bytes().replace(pydicom.dcmread(path).PixelData[:40], bytes(40)))
        (tree / "cd" / "1" / "c-001").unlink()
        ct_series(phantom_hu(SHAPE, 9), spacing=SPACING).write(tree / "unsigned")
        code, rows = judged("verify", tree, results, "--public-key", public)
        assert code == 7
        verdicts = [(row["source"], row["verdict"]) for row in rows.values()]
        assert sorted(verdicts) == [
            ("cd", "changed"),
            ("file/scan.nrrd", "intact"),
            ("mixed", "changed"),
            ("mixed", "intact"),
        ]
        (changed,) = (row for row in rows.values() if (row["source"], row["verdict"]) == ("mixed", "changed"))
        assert changed["changed_tiles"] >= 1
        (missing,) = (row for row in rows.values() if row["source"] == "cd")
        assert any(finding["kind"] == "slice-missing" for finding in missing["findings"])
        text = capsys.readouterr().out
        assert "CHANGED  cd" in text
        assert "FAILED   unsigned: It is not signed" in text

    def test_a_manifest_beside_a_folder_counts_where_it_is_of_its_only_series(self, key, tmp_path):
        tree, public = tmp_path / "tree", public_key_path(key)
        ct_series(phantom_hu(SHAPE), spacing=SPACING).write(tree / "one")
        assert main(["sign", str(tree / "one"), "--key", str(key)]) == 0
        code, rows = judged("verify", tree, tmp_path / "results", "--public-key", public)
        assert (code, [row["verdict"] for row in rows.values()]) == (0, ["intact"])
        ct_series(phantom_hu(SHAPE, 1), spacing=SPACING, prefix="other").write(tree / "one")
        assert judged("verify", tree, tmp_path / "results", "--public-key", public)[0] == 3

    def test_options_of_single_scans_are_refused(self, tree, tmp_path, capsys):
        for arguments in (["--map", "m.nrrd"], ["--manifest", "m"], ["--series", "1.2"]):
            with pytest.raises(SystemExit):
                main(["verify", str(tree), str(tmp_path / "results"), "--collection", *arguments])
            assert "leave one of them out" in capsys.readouterr().err
        for arguments in ([str(tree), "--collection"], [str(tree), str(tmp_path / "results")]):
            with pytest.raises(SystemExit):
                main(["verify", *arguments])
        assert not (tmp_path / "results").exists()


class TestStudies:
    """Studies that are signed as a whole, beside a series that is signed alone."""

    @pytest.fixture(scope="class")
    @classmethod
    def signer(cls, tmp_path_factory) -> tuple[Path, Path]:
        return make_signer(tmp_path_factory.mktemp("signer"), "signer", ec.generate_private_key(ec.SECP256R1()))

    @pytest.fixture(scope="class")
    @classmethod
    def untouched(cls, signed, signer, key, tmp_path_factory) -> Path:
        tree = tmp_path_factory.mktemp("untouched")
        for number, name in enumerate(("exam", "archive/1", "study", "pixels")):
            ct_series(phantom_hu(SHAPE, number), spacing=SPACING).write(tree / name)
        options = ["--dicom-key", str(signer[0]), "--certificate", str(signer[1])]
        assert main(["sign", str(tree / "exam"), "--exam", *options]) == 0
        assert main(["sign", str(tree / "archive"), "--exam", *options]) == 0
        (tree / "archive" / "2").mkdir()
        (tree / "archive" / "signed-exam.dcm").rename(tree / "archive" / "2" / "1")
        for name, option in (("study", "--study"), ("pixels", "--pixels-only")):
            assert main(["sign", str(tree / name), option, "--key", str(key)]) == 0
        shutil.copytree(signed / "cd", tree / "alone")
        return tree

    @pytest.fixture
    def studies(self, untouched, tmp_path) -> Path:
        return shutil.copytree(untouched, tmp_path / "studies")

    @pytest.fixture
    def verified(self, studies, signer, key, tmp_path):
        trust = ["--public-key", public_key_path(key), "--certificate", signer[1]]

        def verify() -> tuple[int, dict[str, str]]:
            code, rows = judged("verify", studies, tmp_path / "results", *trust)
            return code, {row["source"]: row["verdict"] for row in rows.values() if row["verdict"] != OF_STUDY}

        return verify

    @pytest.mark.slow
    def test_untouched_each_is_one_row(self, verified, tmp_path):
        expected = dict.fromkeys(("exam", "archive", "study", "pixels", "alone"), "intact")
        assert verified() == (0, expected)
        assert verified() == (0, expected)
        summary = json.loads((tmp_path / "results" / SUMMARY).read_text())
        assert summary["counts"] == summary["counts"] | {"verified": 9, "verified_by_an_earlier_run": 9, "failed": 0}

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["exam", "archive", "study", "pixels"])
    @pytest.mark.parametrize("change", ["missing", "extra"])
    def test_a_missing_and_an_added_slice_show(self, studies, verified, tmp_path, name, change):
        assert verified()[0] == 0
        slices = sorted(path for path in (studies / name).rglob("*-00*"))
        if change == "missing":
            slices[1].unlink()
        else:
            image = pydicom.dcmread(slices[1])
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
            image.ImagePositionPatient[2] += 500
            image.save_as(slices[1].with_name("added"))
        code, found = verified()
        assert (code, {source for source, verdict in found.items() if verdict == "changed"}) == (7, {name})
        rows = json.loads((tmp_path / "results" / SUMMARY).read_text())["verified"]
        (row,) = (row for row in rows if row["verdict"] == "changed")
        assert [one["kind"] for one in row["findings"]] == [change]
        assert row["intact"] == (2 if change == "missing" else 3)

    @pytest.mark.slow
    def test_without_its_document_a_study_is_not_signed_any_more(self, studies, verified, tmp_path):
        assert verified()[0] == 0
        (studies / "exam" / "signed-exam.dcm").unlink()
        code, found = verified()
        assert (code, set(found)) == (3, {"archive", "study", "pixels", "alone"})
        (failure,) = json.loads((tmp_path / "results" / SUMMARY).read_text())["failed"]
        assert failure["source"] == "exam"
        assert "not signed" in failure["reason"]

    def test_a_study_that_is_gone_is_named(self, studies, verified, tmp_path):
        shutil.rmtree(studies / "study")
        assert verified()[0] == 3
        (failure,) = json.loads((tmp_path / "results" / SUMMARY).read_text())["failed"]
        assert failure["source"] == "study"

    @pytest.mark.slow
    def test_an_unknown_signer_is_told(self, studies, tmp_path):
        code, rows = judged("verify", studies, tmp_path / "results")
        assert code == 8
        verdicts = {row["verdict"] for row in rows.values()}
        assert verdicts == {"intact, unknown signer", OF_STUDY}


@pytest.mark.usefixtures("on_its_grid")
class TestExamine:
    @pytest.mark.slow
    def test_signatures_and_voxels_say_what_is_found(self, tree, key, tmp_path, capsys):
        public, results = public_key_path(key), tmp_path / "results"
        path = tree / "mixed" / "a-001"
        path.write_bytes(path.read_bytes().replace(pydicom.dcmread(path).PixelData[:40], bytes(40)))
        ct_series(phantom_hu(SHAPE, 9), spacing=SPACING).write(tree / "unsigned")
        before = contents(tree)
        code, rows = judged("examine", tree, results, "--public-key", public)
        assert code == 7
        assert [row["verdict"] for row in rows.values()].count("intact (signed)") == 3
        (changed,) = (row for row in rows.values() if row["exit_code"] == 7)
        assert changed["source"] == "mixed"
        assert changed["evidence"][0]["kind"] == "signature"
        (unsigned,) = (row for row in rows.values() if row["source"] == "unsigned")
        assert unsigned["verdict"] == "cannot tell", "its lungs are too small to be found"
        assert contents(tree) == before
        text = capsys.readouterr().out
        assert "Examined 5 scans (3 intact (signed), 1 changed, 1 cannot tell)" in text
        assert "CHANGED  mixed" in text
        _, again = judged("examine", tree, results, "--public-key", public)
        assert all(row["earlier"] for row in again.values())

    @pytest.mark.slow
    def test_two_processes_find_the_same(self, tmp_path):
        found, tree = [], tmp_path / "tree"
        for seed in range(3):
            # Of slices that are wider than any CT's nobody seeks what was cropped, which takes long.
            volume = CTVolume(phantom_hu((2, 40, 1032), seed), spacing=SPACING)
            save_volume(volume, tree / str(seed) / "scan.nrrd")
        for processes in (1, 2):
            code, rows = judged("examine", tree, tmp_path / f"results{processes}", "--processes", processes)
            found.append((code, {name: {**row, "seconds": 0} for name, row in rows.items()}))
        assert found[0] == found[1]
