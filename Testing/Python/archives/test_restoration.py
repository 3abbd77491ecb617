"""Whole collections there and back: protected, sealed and signed, then restored to the tree that they were."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import pydicom
import pytest
from dicom_factory import PATIENT_NAME, ct_series, phantom_hu, write_enhanced, write_structure_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.key_files import Key, generate_key, write_key_file
from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key
from MITSGANLib.scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume, ProcessingStep
from MITSGANLib.seal import sealing
from MITSGANLib.seal.sealing import save_sealed
from MITSGANTrainingLib.archives import inventory, restoration, trees
from MITSGANTrainingLib.archives.collection import CollectionConfig, protect_collection
from MITSGANTrainingLib.archives.inventory import BESIDE, NOT_PROTECTED, RECORDS, SUMMARY
from MITSGANTrainingLib.archives.restoration import restore_collection
from MITSGANTrainingLib.archives.trees import COMMAND, TreeConfig, TreeReport, write_record
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.workers import ItemOutcome
from tree_data import outputs, write_protector

KEY = Key(bytes(range(32)))
SHAPE, SPACING = (3, 24, 20), (14.0, 14.0, 2.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_protector(tmp_path_factory.mktemp("model"))


def series(seed: int = 0, **options: object):
    return ct_series(phantom_hu(SHAPE, seed), spacing=SPACING, **options)


def scan(seed: int = 0) -> CTVolume:
    return CTVolume(phantom_hu(SHAPE, seed), spacing=SPACING)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model) -> Path:
    """``tree`` and ``protected``, which the tests get copies of.

    Series mixed in a folder with names out of order, one over two folders, copies, one Enhanced, files, others.
    """
    folder = tmp_path_factory.mktemp("made")
    tree = folder / "tree"
    series(1, prefix="a", order=(2, 0, 1)).write(tree / "p1" / "mixed")
    series(2, prefix="b").write(tree / "p1" / "mixed")
    paths = series(3).write(tree / "cd" / "a")
    (tree / "cd" / "b").mkdir()
    paths[1].rename(tree / "cd" / "b" / "middle")
    shutil.copytree(tree / "p1" / "mixed", tree / "p2" / "copies")
    write_enhanced(tree / "p3" / "enhanced", series(4), order=(2, 0, 1))
    save_volume(scan(5), tree / "files" / "scan.nii.gz")
    save_volume(scan(6), tree / "files" / "scan.nrrd")
    write_structure_set(tree / "p1" / "plan", "1.2.3")
    (tree / "notes.txt").write_text("hello")
    config = CollectionConfig(tree=tree, out=folder / "protected", model=model, device="cpu", key=KEY, others="copy")
    assert not protect_collection(config).failed
    return folder


@pytest.fixture
def tree(made, tmp_path) -> Path:
    return shutil.copytree(made / "tree", tmp_path / "tree")


@pytest.fixture
def protected(made, tmp_path) -> Path:
    return shutil.copytree(made / "protected", tmp_path / "protected")


def run(protected: Path, **changes: object) -> TreeReport:
    config = {"tree": protected, "out": protected.parent / "back", "key": KEY, "others": "copy", **changes}
    return restore_collection(TreeConfig(**config))


@pytest.mark.slow
def test_the_tree_comes_back_byte_for_byte(tree, protected):
    assert outputs(protected) != outputs(tree)
    before = outputs(protected)
    report = run(protected)
    assert not report.failed
    assert report.complete
    assert len(report.finished) == 8
    back, original = outputs(protected.parent / "back"), outputs(tree)
    assert back.keys() == original.keys()
    # A volume file comes back with its values, in another compression.
    assert {name for name in back if back[name] != original[name]} <= {"files/scan.nii.gz", "files/scan.nrrd"}
    for name in ("files/scan.nii.gz", "files/scan.nrrd"):
        one, other = load_volume(tree / name), load_volume(protected.parent / "back" / name)
        assert (one.hu == other.hu).all()
        assert one.same_geometry(other)
    assert outputs(protected) == before
    summary = json.loads((protected.parent / "back" / SUMMARY).read_text())
    assert summary["counts"]["restored"] == 8
    assert summary["counts"]["copied_files"] == 2


@pytest.mark.slow
def test_others_are_listed_and_seals_never_copied(protected):
    report = run(protected, others="skip")
    reasons = {other.source: other.reason for other, _ in report.skipped}
    assert reasons == {
        "notes.txt": inventory.NOT_READ,
        "p1/plan": "holds RT Structure Set, not CT images",
        "files": BESIDE,
    }
    assert "notes.txt" not in outputs(protected.parent / "back")


def test_what_is_not_protected_is_skipped_or_copied(tmp_path):
    tree = tmp_path / "tree"
    series().write(tree / "ct")
    save_volume(scan(), tree / "plain.nrrd")
    save_volume(scan().with_hu(scan().hu, ProcessingStep(SIMULATED_ATTACK, "inject")), tree / "attack.nrrd")
    report = run(tree)
    assert not report.finished
    assert {other.source: (other.reason, copied) for other, copied in report.skipped} == {
        "ct": (NOT_PROTECTED, True),
        "plain.nrrd": (NOT_PROTECTED, True),
        "attack.nrrd": (inventory.ATTACK, False),
    }
    assert outputs(tmp_path / "back").keys() == outputs(tree).keys() - {"attack.nrrd"}


class TestFailures:
    @pytest.mark.slow
    def test_each_is_named_and_the_rest_goes_on(self, protected, tmp_path, model):
        (protected / "files" / "scan.nrrd.seal").unlink()
        edited = protected / "p1" / "mixed" / "b-001"
        dataset = pydicom.dcmread(edited)
        stored = dataset.pixel_array.copy()
        stored[3, 4] += 1
        dataset.PixelData = stored.tobytes()
        dataset.save_as(edited)
        (protected / "cd" / "b" / "middle").unlink()
        for name, key in (("other-key", generate_key()), ("no-key", None)):
            series(9).write(tmp_path / "in" / name)
            options = {"model": model, "device": "cpu", "key": key}
            protect_collection(CollectionConfig(tree=tmp_path / "in", out=tmp_path / f"out-{name}", **options))
            shutil.copytree(tmp_path / f"out-{name}" / name, protected / name)

        report = run(protected)
        words = {
            "files/scan.nrrd": "its seal was left behind",
            "p1/mixed": "not as it was when it was sealed",
            "cd/a": "2 of the 3 DICOM files",
            "other-key": "not the one that this scan was sealed with",
            "no-key": "holds no seal",
        }
        assert {failure.source for failure in report.failed} == words.keys()
        for failure in report.failed:
            assert words[failure.source] in failure.reason, failure.source
            assert str(tmp_path) not in failure.reason
        assert len(report.finished) == 5
        back = outputs(tmp_path / "back")
        assert not any(name.startswith(("other-key", "no-key", "cd", "files/scan.nrrd", "p1/mixed/b")) for name in back)
        assert not list((tmp_path / "back").rglob("*.partial"))

    @pytest.mark.slow
    @pytest.mark.parametrize("first", ["protect", "restore"])
    def test_the_output_of_the_other_command_is_refused(self, protected, tree, model, first):
        if first == "protect":
            config = TreeConfig(tree=protected, out=protected.parent / "out", key=KEY)
            protect_collection(CollectionConfig(tree=tree, out=config.out, model=model, device="cpu"))
            with pytest.raises(OutputError, match="mitsgan protect wrote"):
                restore_collection(config)
        else:
            run(protected)
            before = outputs(protected.parent / "back")
            config = CollectionConfig(tree=tree, out=protected.parent / "back", model=model, device="cpu")
            with pytest.raises(OutputError, match="mitsgan restore wrote"):
                protect_collection(config)
            assert outputs(protected.parent / "back") == before

    def test_records_from_before_there_were_two_commands_are_those_of_protect(self, protected, tree, model):
        (protected / RECORDS / COMMAND).unlink()
        config = CollectionConfig(tree=tree, out=protected, model=model, device="cpu", key=KEY, others="copy")
        assert all(earlier for _, earlier in protect_collection(config).finished)
        (protected / RECORDS / COMMAND).unlink()
        with pytest.raises(OutputError, match="mitsgan protect wrote"):
            restore_collection(TreeConfig(tree=tree, out=protected, key=KEY))

    def test_without_a_key(self, protected):
        with pytest.raises(InputError, match="without a key"):
            run(protected, key=None)
        assert not (protected.parent / "back").exists()

    def test_a_passphrase_is_never_sent(self, protected, tree, model):
        with pytest.raises(InputError, match="never sent"):
            run(protected, scheduler="tcp://127.0.0.1:1")
        config = CollectionConfig(
            tree=tree,
            out=protected,
            model=model,
            signing_key=Path("key"),
            signing_passphrase=b"correct horse",
            scheduler="tcp://127.0.0.1:1",
        )
        assert "correct" not in repr(config)
        with pytest.raises(InputError, match="never sent"):
            protect_collection(config)


class TestResume:
    @pytest.fixture
    def restored(self, monkeypatch) -> list[str]:
        """What is restored anew, by destination."""
        done, original = [], sealing.restore

        def restore(path: Path, *arguments: object, **options: object) -> object:
            done.append(Path(path).name)
            return original(path, *arguments, **options)

        monkeypatch.setattr(restoration, "restore", restore)
        return done

    @pytest.mark.slow
    def test_finished_scans_are_left_and_missing_ones_done(self, protected, restored):
        run(protected)
        back = protected.parent / "back"
        before = outputs(back)
        restored.clear()
        assert all(earlier for _, earlier in run(protected).finished)
        assert restored == []
        (back / "cd" / "b" / "middle").unlink()
        (back / "files" / "scan.nrrd").write_bytes(b"")
        report = run(protected)
        assert sorted(restored) == ["protected", "scan.nrrd"]
        assert sum(not earlier for _, earlier in report.finished) == 2
        assert outputs(back).keys() == before.keys()
        assert outputs(back)["cd/b/middle"] == before["cd/b/middle"]

    @pytest.mark.slow
    def test_stopping_leaves_whole_scans_and_nothing_half_done(self, protected, tree, monkeypatch):
        original, calls = write_record, []

        def stopped_at_the_third(*arguments: object) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            original(*arguments)

        monkeypatch.setattr(trees, "write_record", stopped_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(protected)
        back = protected.parent / "back"
        assert not list(back.rglob("*.partial"))
        assert json.loads((back / SUMMARY).read_text())["counts"]["restored"] == 2
        monkeypatch.setattr(trees, "write_record", original)
        report = run(protected)
        assert sum(earlier for _, earlier in report.finished) == 2
        assert outputs(back).keys() == outputs(tree).keys()


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["a", "a/b", "c"]), st.sampled_from(["ct", "nrrd", "note"]), min_size=1))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_comes_back(tmp_path_factory, model, folders):
    root = tmp_path_factory.mktemp("any")
    for seed, (folder, kind) in enumerate(folders.items()):
        if kind == "ct":
            series(seed).write(root / "tree" / folder)
        elif kind == "nrrd":
            save_volume(scan(seed), root / "tree" / folder / "scan.nrrd")
        else:
            (root / "tree" / folder).mkdir(parents=True, exist_ok=True)
            (root / "tree" / folder / "note.txt").write_text(str(seed))
    config = CollectionConfig(tree=root / "tree", out=root / "out", model=model, device="cpu", key=KEY, others="copy")
    protect_collection(config)
    assert not run(root / "out").failed
    original, back = outputs(root / "tree"), outputs(root / "back")
    assert back.keys() == original.keys()
    assert all(back[name] == original[name] for name in original if not name.endswith(".nrrd"))


@pytest.mark.slow
def test_jobs_can_be_sent_to_other_processes(protected, tmp_path, monkeypatch):
    def elsewhere(function, jobs, **_options):
        for job in jobs:
            yield ItemOutcome(job, function(pickle.loads(pickle.dumps(job))))

    monkeypatch.setattr(trees, "run_all", elsewhere)
    write_key_file(KEY, tmp_path / "clinic.key")
    report = run(protected, key=tmp_path / "clinic.key")
    assert len(report.finished) == 8
    assert not report.failed


class TestCommand:
    @pytest.fixture
    def keyfile(self, tmp_path) -> Path:
        write_key_file(KEY, tmp_path / "clinic.key")
        return tmp_path / "clinic.key"

    @pytest.mark.slow
    def test_it_says_what_it_did(self, protected, tmp_path, keyfile, capsys):
        arguments = ["restore", str(protected), str(tmp_path / "back"), "--collection", "--key", str(keyfile)]
        assert main([*arguments, "--json", str(tmp_path / "result.json")]) == 0
        text = capsys.readouterr().out
        assert "Restored 8 scans (18 files)" in text
        assert f"the summary is {tmp_path / 'back' / SUMMARY}" in text
        assert json.loads((tmp_path / "result.json").read_text())["counts"]["restored"] == 8
        assert main(arguments) == 0
        assert "8 of them by an earlier run" in capsys.readouterr().out

    def test_failures_are_exit_code_3_and_name_nobody(self, protected, tmp_path, capsys):
        write_key_file(generate_key(), tmp_path / "other.key")
        arguments = ["restore", str(protected), str(tmp_path / "back"), "--collection", "--key"]
        assert main([*arguments, str(tmp_path / "other.key"), "--verbose"]) == 3
        captured = capsys.readouterr()
        assert "FAILED   p1/mixed: The key is not the one" in captured.out
        written = b"".join(path.read_bytes() for path in (tmp_path / "back").rglob("*") if path.is_file()).decode()
        secret = (tmp_path / "other.key").read_text().split()[1]
        for said in (captured.out, captured.err, written):
            assert PATIENT_NAME.split("^")[0] not in said
            assert secret not in said

    @pytest.mark.parametrize(
        ("extra", "words"),
        [
            (["--collection", "--series", "1.2"], "leave one of them out"),
            (["--collection", "--seal", "x"], "leave one of them out"),
            (["--processes", "2"], "add --collection"),
            (["--others", "copy"], "add --collection"),
        ],
    )
    def test_wrong_usage(self, tmp_path, capsys, extra, words):
        with pytest.raises(SystemExit) as stop:
            main(["restore", str(tmp_path), str(tmp_path / "back"), "--key", "k", *extra])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


class TestSigned:
    @pytest.fixture
    def signing(self, tmp_path) -> tuple[Path, Path]:
        private = tmp_path / "clinic.pem"
        return private, save_signing_key(new_signing_key(), private)

    @pytest.mark.slow
    def test_every_scan_of_a_protected_tree_is_signed(self, tree, tmp_path, model, signing, capsys):
        """And sealed, so that the signed tree can be restored."""
        private, public = signing
        write_key_file(KEY, tmp_path / "clinic.key")
        arguments = ["protect", str(tree), str(tmp_path / "out"), "--collection", "--model", model, "--device", "cpu"]
        arguments += ["--sign", str(private), "--key", str(tmp_path / "clinic.key"), "--others", "copy"]
        assert main(arguments) == 0
        out = tmp_path / "out"
        assert (out / "files" / "scan.nrrd.manifest.json").is_file()
        for folder in ("cd", "files/scan.nrrd", "files/scan.nii.gz"):
            assert main(["verify", str(out / folder), "--public-key", str(public)]) == 0, folder
        assert "Intact" in capsys.readouterr().out
        before = outputs(out)
        assert main(arguments) == 0
        assert "8 of them by an earlier run" in capsys.readouterr().out
        assert outputs(out) == before
        report = run(out)
        assert not report.failed
        assert outputs(tmp_path / "back")["cd/b/middle"] == outputs(tree)["cd/b/middle"]

    @pytest.mark.slow
    def test_another_signer_redoes_all(self, tmp_path, model, signing):
        series().write(tmp_path / "tree")
        config = CollectionConfig(tree=tmp_path / "tree", out=tmp_path / "out", model=model, device="cpu")
        config = dataclasses.replace(config, signing_key=signing[0])
        protect_collection(config)
        save_signing_key(new_signing_key(), tmp_path / "other.pem")
        report = protect_collection(dataclasses.replace(config, signing_key=tmp_path / "other.pem"))
        assert [earlier for _, earlier in report.finished] == [False]
        report = protect_collection(dataclasses.replace(config, signing_key=None))
        assert [earlier for _, earlier in report.finished] == [False]

    def test_manifests_are_gone_when_nobody_signs_any_more(self, tmp_path, model, signing):
        save_volume(scan(), tmp_path / "tree" / "scan.nrrd")
        config = CollectionConfig(tree=tmp_path / "tree", out=tmp_path / "out", model=model, device="cpu", key=KEY)
        protect_collection(dataclasses.replace(config, signing_key=signing[0]))
        assert outputs(tmp_path / "out").keys() == {"scan.nrrd", "scan.nrrd.seal", "scan.nrrd.manifest.json"}
        protect_collection(dataclasses.replace(config, key=None))
        assert outputs(tmp_path / "out").keys() == {"scan.nrrd"}

    @pytest.mark.slow
    def test_a_locked_key_needs_its_passphrase(self, tree, tmp_path, model, monkeypatch, capsys):
        save_signing_key(new_signing_key(), tmp_path / "locked.pem", b"correct horse")
        arguments = ["protect", str(tree), str(tmp_path / "out"), "--collection", "--model", model, "--device", "cpu"]
        arguments += ["--sign", str(tmp_path / "locked.pem")]
        assert main(arguments) == 3
        assert not (tmp_path / "out").exists()
        monkeypatch.setenv("PASS", "correct horse")
        assert main([*arguments, "--sign-passphrase-env", "PASS"]) == 0
        captured = capsys.readouterr()
        written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*.json"))
        assert "correct" not in captured.out + captured.err + written.decode()

    def test_a_passphrase_without_a_key_is_wrong_usage(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(["protect", str(tmp_path), str(tmp_path / "out"), "--sign-passphrase-env", "PASS"])
        assert "add --sign" in capsys.readouterr().err


def test_a_folder_that_is_protected_by_hand_counts(tmp_path):
    """What ``mitsgan protect`` wrote into a folder, and the same twice in folders of the tree."""
    paths = series().write(tmp_path / "in")
    original = load_volume(tmp_path / "in")
    hu = original.hu.copy()
    hu[1, 4:8, 4:8] += 3
    save_sealed(original.with_hu(hu, ProcessingStep(PROTECTION, "by hand")), original, tmp_path / "t" / "a", KEY)
    shutil.copytree(tmp_path / "t" / "a", tmp_path / "t" / "b")
    report = run(tmp_path / "t")
    assert [record.source for record, _ in sorted(report.finished, key=lambda pair: pair[0].source)] == ["a", "b"]
    back = sorted((tmp_path / "back" / "b").iterdir())
    assert [path.read_bytes() for path in back] == [path.read_bytes() for path in paths]
