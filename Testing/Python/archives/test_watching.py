"""A watched folder: what is quiet is delivered whole or set aside with the reason, and nothing twice."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dicom_factory import PATIENT_NAME, CTSeries, ct_series, phantom_hu, write_structure_set
from MITSGANLib.errors import InputError, NoSpaceError, OutputError
from MITSGANLib.files.storage import load_volume
from MITSGANLib.keys.signing_keys import new_signing_key, public_key_path, save_signing_key
from MITSGANTrainingLib.archives import collection, watching
from MITSGANTrainingLib.archives.collection import CollectionConfig
from MITSGANTrainingLib.archives.watching import REASON, WatchConfig, watch
from MITSGANTrainingLib.commandline import main
from tree_data import contents, outputs

SHAPE, SPACING = (4, 40, 36), (8.0, 8.0, 2.5)


def series(seed: int = 0, **options: object) -> CTSeries:
    return ct_series(phantom_hu(SHAPE, seed), spacing=SPACING, **options)


class Watched:
    """A watch of ``folder/in`` that looks when it is told to; its clock stands still in between."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree, self.out, self.failed = (folder / name for name in ("in", "out", "failed"))
        self.tree.mkdir()
        protection = CollectionConfig(tree=self.tree, out=self.out, model="none")
        self.config = WatchConfig(protection, self.failed, settle_s=10)
        self.clock = 0.0
        monkeypatch.setattr(watching.time, "monotonic", lambda: self.clock)

    def look(self, *meanwhile: Callable[[], object], **changes: object) -> list[dict]:
        """What is told of the looks of a new watch, with ``meanwhile`` between one and the next."""
        told: list[dict] = []
        steps = iter(meanwhile)

        def stopped(_seconds: float) -> bool:
            if stopped.first:
                stopped.first = False
                return False
            step = next(steps, None)
            if step is None:
                return True
            step()
            return False

        stopped.first = True
        watch(dataclasses.replace(self.config, **changes), told.append, stopped)
        return told

    def wait(self) -> None:
        """Long enough for what is quiet."""
        self.clock += 11

    def quiet(self, **changes: object) -> list[dict]:
        """What is told once everything is quiet."""
        return self.look(self.wait, **changes)


@pytest.fixture
def watched(tmp_path, monkeypatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def test_a_quiet_series_is_delivered_once(watched):
    one, two = series(1), series(2, prefix="other")
    one.write(watched.tree / "mixed")
    two.write(watched.tree / "mixed")
    write_structure_set(watched.tree / "mixed" / "plan", "1.2.3")
    before = contents(watched.tree)
    told = watched.quiet()
    assert sorted((line["outcome"], line["series_instance_uid"]) for line in told) == sorted(
        ("delivered", uid) for uid in (one.uid, two.uid)
    )
    assert outputs(watched.out).keys() == {f"{uid}/IM000{k}.dcm" for uid in (one.uid, two.uid) for k in range(1, 5)}
    assert (load_volume(watched.out / one.uid).hu != one.hu()).any()
    assert contents(watched.tree) == before
    shutil.rmtree(watched.out / one.uid)  # somebody took it
    assert watched.quiet() == []
    assert not (watched.out / one.uid).exists()


def test_a_series_that_grows_is_not_quiet(watched, tmp_path):
    files = series().write(tmp_path / "sender")
    watched.tree.joinpath("a").mkdir()

    def send(file: Path) -> Callable[[], object]:
        def step() -> None:
            watched.clock += 6
            shutil.copy(file, watched.tree / "a")

        return step

    assert watched.look(*map(send, files)) == []
    assert not outputs(watched.out)
    assert [line["outcome"] for line in watched.quiet()] == ["delivered"]
    assert load_volume(watched.out / next(watched.out.glob("[0-9]*")).name).shape == SHAPE


def test_a_file_on_its_way_holds_up_nobody(watched, tmp_path):
    done, coming = series(1), series(2, prefix="coming")
    done.write(watched.tree)
    data = coming.write(tmp_path / "sender")[0].read_bytes()

    def begin() -> None:
        (watched.tree / "coming-000").write_bytes(data[:400])
        watched.wait()

    def go_on() -> None:
        (watched.tree / "coming-000").write_bytes(data[:500])

    assert [line["series_instance_uid"] for line in watched.look(begin, go_on)] == [done.uid]
    assert (watched.tree / "coming-000").exists()
    assert not watched.failed.exists()
    told = watched.quiet()
    assert [(line["outcome"], line["source"]) for line in told] == [("failed", "coming-000")]


def test_what_fails_is_set_aside_with_the_reason_and_can_come_back(watched):
    one = series()
    files = one.write(watched.tree / "a")
    missing = files[1].read_bytes()
    files[1].unlink()
    (told,) = watched.quiet()
    assert (told["outcome"], told["exit_code"]) == ("failed", 3)
    assert told["reason"].startswith("Slices are unevenly spaced")
    assert contents(watched.failed).keys() == {
        f"{one.uid}/{REASON}",
        *(f"{one.uid}/a/slice-00{k}" for k in (0, 2, 3)),
    }
    assert (watched.failed / one.uid / REASON).read_text().startswith("Slices are unevenly spaced")
    assert not contents(watched.tree)
    assert not outputs(watched.out)
    for file in (watched.failed / one.uid / "a").iterdir():
        file.rename(watched.tree / "a" / file.name)
    files[1].write_bytes(missing)
    assert [line["outcome"] for line in watched.quiet()] == ["delivered"]
    assert len(outputs(watched.out)) == 4


def test_late_images_are_no_series_of_their_own(watched, tmp_path):
    one = series()
    files = one.write(tmp_path / "sender")
    watched.tree.joinpath("a").mkdir()
    for file in files[:3]:
        shutil.copy(file, watched.tree / "a")
    assert [line["outcome"] for line in watched.quiet(remove=True)] == ["delivered"]
    assert not contents(watched.tree)
    shutil.copy(files[3], watched.tree / "a")
    (told,) = watched.quiet(remove=True)
    assert "send the whole series again" in told["reason"]
    assert len(outputs(watched.out)) == 3
    for file in files:
        shutil.copy(file, watched.tree / "a")
    assert [line["outcome"] for line in watched.quiet(remove=True)] == ["delivered"]
    assert len(outputs(watched.out)) == 4


def test_a_full_disk_ends_the_watch_and_is_no_fault_of_the_series(watched, monkeypatch):
    series().write(watched.tree)
    before = contents(watched.tree)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(watched.tree)._replace(free=0)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(NoSpaceError, match="free"):
            watched.quiet()
    assert contents(watched.tree) == before
    assert not outputs(watched.out)
    assert not watched.failed.exists()
    assert [line["outcome"] for line in watched.quiet()] == ["delivered"]


@pytest.mark.parametrize("moment", ["protect", "save_protected"])
def test_stopping_delivers_nothing_in_part(watched, monkeypatch, moment):
    series().write(watched.tree)

    def stop(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collection, moment, stop)
        with pytest.raises(KeyboardInterrupt):
            watched.quiet()
    assert not outputs(watched.out)
    assert [line["outcome"] for line in watched.quiet()] == ["delivered"]
    assert len(outputs(watched.out)) == 4


def test_headers_name_no_folder(watched):
    one = series(uid="../../elsewhere")
    one.write(watched.tree)
    assert [line["outcome"] for line in watched.quiet()] == ["delivered"]
    (name,) = {Path(name).parts[0] for name in outputs(watched.out)}
    assert name.isalnum()


def test_folders_within_each_other_and_other_outputs(watched):
    series().write(watched.tree)
    for failed in (watched.tree / "failed", watched.out):
        with pytest.raises(OutputError, match="lies within another"):
            watched.quiet(failed=failed)
    away = dataclasses.replace(watched.config.protection, tree=watched.tree / "away")
    with pytest.raises(InputError, match="is not a folder"):
        watched.quiet(protection=away)
    assert main(["protect", str(watched.tree), str(watched.out), "--collection", "--model", "none"]) == 0
    with pytest.raises(OutputError, match="holds what mitsgan protect wrote"):
        watched.quiet()


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("storescp", "storescu"))), reason="needs DCMTK")
def test_what_storescp_receives_is_delivered_and_sigterm_ends_the_watch(tmp_path):
    key, tree, out = tmp_path / "signing.pem", tmp_path / "in", tmp_path / "out"
    save_signing_key(new_signing_key(), key)
    tree.mkdir()
    sent = [series(number, prefix=f"n{number}") for number in range(2)]
    for one in sent:
        one.write(tmp_path / "sender")
    write_structure_set(tmp_path / "sender" / "plan", "1.2.3")
    port = "11187"
    receiver = subprocess.Popen(["storescp", "-od", tree, "--sort-on-study-uid", "study", port])
    command = [sys.executable, "-m", "MITSGANTrainingLib.commandline", "watch", tree, out, "--settle", "5"]
    command += ["--poll", "0.2", "--model", "none", "--sign", key, "--json-lines", tmp_path / "lines"]
    watching_process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while subprocess.run(["echoscu", "127.0.0.1", port], capture_output=True, check=False).returncode:
            assert receiver.poll() is None
            time.sleep(0.1)
        subprocess.run(
            ["storescu", "-R", "-xs", "+sd", "127.0.0.1", port, tmp_path / "sender"], check=True, capture_output=True
        )
        while not all((out / one.uid).is_dir() for one in sent):
            assert watching_process.poll() is None
            time.sleep(0.1)
    finally:
        receiver.kill()
        watching_process.send_signal(signal.SIGTERM)
        said, _ = watching_process.communicate(timeout=120)
    assert watching_process.returncode == 0, said
    assert PATIENT_NAME.split("^")[0] not in said + (tmp_path / "lines").read_text()
    assert not list(out.rglob("*.partial"))
    for one in sent:
        assert load_volume(out / one.uid).shape == SHAPE
        assert main(["verify", str(out / one.uid), "--public-key", str(public_key_path(key))]) == 0
