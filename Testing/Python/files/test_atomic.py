"""Output is complete at its destination, or what was there before is untouched and nothing is left behind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from MITSGANLib.errors import CancelledError, OutputError
from MITSGANLib.files import atomic
from MITSGANLib.files.atomic import (
    atomic_file,
    atomic_folder,
    refuse_existing_file,
    refuse_existing_folder,
    remove_leavings,
    require_space,
)


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()}


def entries(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def test_file_appears_at_success_only(tmp_path):
    destination = tmp_path / "scan.nrrd"
    with atomic_file(destination) as temporary:
        temporary.write_text("new")
        assert not destination.exists()
        assert temporary.name == "scan.nrrd"
    assert entries(tmp_path) == ["scan.nrrd"]
    assert destination.read_text() == "new"


def write_pair(destination: Path, *, overwrite: bool = False) -> None:
    with atomic_file(destination, overwrite=overwrite) as temporary:
        temporary.write_text("header")
        temporary.with_name("scan.raw").write_text("voxels")


def test_companion_files_move_along(tmp_path):
    write_pair(tmp_path / "scan.mhd")
    assert content(tmp_path) == {"scan.mhd": "header", "scan.raw": "voxels"}


def test_folder_appears_at_success_only(tmp_path):
    destination = tmp_path / "series"
    with atomic_folder(destination) as temporary:
        (temporary / "IM0001.dcm").write_text("new")
        assert not destination.exists()
    assert entries(tmp_path) == ["series", "series/IM0001.dcm"]


def test_missing_parents_are_made_and_removed_after_failure(tmp_path):
    with atomic_file(tmp_path / "a" / "b" / "scan.nrrd") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a" / "b" / "scan.nrrd").read_text() == "new"
    with pytest.raises(CancelledError), atomic_folder(tmp_path / "c" / "d"):
        raise CancelledError("stop")
    assert not (tmp_path / "c").exists()


def write_half(kind, destination: Path, failure: BaseException) -> None:
    with kind(destination) as temporary:
        target = temporary / "IM0001.dcm" if temporary.is_dir() else temporary
        target.write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [CancelledError("stop"), KeyboardInterrupt(), ValueError("defect")])
@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_nothing_is_left_after_failure(tmp_path, kind, failure):
    with pytest.raises(type(failure)):
        write_half(kind, tmp_path / "out", failure)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_old_data_survive_failure_when_overwriting(tmp_path, kind):
    old = tmp_path / "out" / "IM0001.dcm" if kind is atomic_folder else tmp_path / "out"
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    with pytest.raises(KeyboardInterrupt), kind(tmp_path / "out", overwrite=True):
        raise KeyboardInterrupt
    assert list(content(tmp_path).values()) == ["old"]


def test_existing_destinations_are_refused(tmp_path):
    (tmp_path / "scan.nrrd").write_text("old")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM0001.dcm").write_text("old")
    with pytest.raises(OutputError, match="already exists"), atomic_file(tmp_path / "scan.nrrd"):
        pass
    with pytest.raises(OutputError, match="already exists"), atomic_folder(tmp_path / "series"):
        pass
    with pytest.raises(OutputError, match="is a folder"), atomic_file(tmp_path / "series", overwrite=True):
        pass
    with pytest.raises(OutputError, match="is a file"), atomic_folder(tmp_path / "scan.nrrd", overwrite=True):
        pass
    assert content(tmp_path) == {"scan.nrrd": "old", "series/IM0001.dcm": "old"}


def test_existing_companion_is_refused(tmp_path):
    (tmp_path / "scan.raw").write_text("old")
    with pytest.raises(OutputError, match=r"scan\.raw already exists"):
        write_pair(tmp_path / "scan.mhd")
    assert content(tmp_path) == {"scan.raw": "old"}


def test_overwriting_replaces_the_whole_folder(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM0002.dcm").write_text("old")
    with atomic_folder(tmp_path / "series", overwrite=True) as temporary:
        (temporary / "IM0001.dcm").write_text("new")
    assert entries(tmp_path) == ["series", "series/IM0001.dcm"]


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "series").mkdir()
    with atomic_folder(tmp_path / "series") as temporary:
        (temporary / "IM0001.dcm").write_text("new")
    assert entries(tmp_path) == ["series", "series/IM0001.dcm"]


def test_failed_move_restores_every_file(tmp_path, monkeypatch):
    (tmp_path / "scan.mhd").write_text("old header")
    (tmp_path / "scan.raw").write_text("old voxels")
    replace = Path.replace

    def fail_on_header(source: Path, target: Path) -> Path:
        if target.name == "scan.mhd":
            raise OSError(errno.EACCES, "Permission denied")
        return replace(source, target)

    monkeypatch.setattr(atomic.Path, "replace", fail_on_header)
    with pytest.raises(OutputError, match="no permission"):
        write_pair(tmp_path / "scan.mhd", overwrite=True)
    assert content(tmp_path) == {"scan.mhd": "old header", "scan.raw": "old voxels"}
    assert entries(tmp_path) == ["scan.mhd", "scan.raw"]


@pytest.mark.parametrize("length", [200, 235, 236, 255])
def test_a_name_may_be_as_long_as_names_can_be(tmp_path, length):
    path, neighbor = (tmp_path / (letter * (length - 2) + "\u00e9") for letter in "nm")
    for text in ("first", "second"):
        with atomic_file(path, overwrite=True) as temporary:
            temporary.write_text(text)
        assert (entries(tmp_path), path.read_text()) == ([path.name], text)
    with atomic_file(neighbor) as of_neighbor, atomic_file(path, overwrite=True) as temporary:
        of_neighbor.write_text("neighbor")
        remove_leavings(path)  # as after a kill
        assert not temporary.parent.exists()
        temporary.parent.mkdir()
        temporary.write_text("third")
    assert (path.read_text(), neighbor.read_text()) == ("third", "neighbor")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space is left on the disk"),
        (errno.EROFS, "no permission"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_system_errors_become_sentences(tmp_path, number, message):
    with pytest.raises(OutputError, match=message), atomic_file(tmp_path / "scan.nrrd"):
        raise OSError(number, "system text")
    assert entries(tmp_path) == []


def test_the_system_error_behind_one_without_a_number_counts(tmp_path):
    """pydicom raises such a one, whose text is its trace."""
    error = OSError("With tag (7FE1,1000) got exception: ...\nTraceback (most recent call last):")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError) as caught, atomic_folder(tmp_path / "series"):
        raise error
    assert "no space is left on the disk" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_mount_point_and_the_current_folder_are_refused_at_once(tmp_path, monkeypatch):
    """Neither can be replaced by a rename, even where it is empty."""
    place = tmp_path / "place"
    place.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("os.path.ismount", lambda folder: Path(folder) == place)
        for attempt in (refuse_existing_folder, lambda *options: atomic_folder(*options[:1]).__enter__()):
            with pytest.raises(OutputError, match="a disk is mounted"):
                attempt(place, False)
    monkeypatch.chdir(place)
    for folder in (Path(), place, tmp_path):
        with pytest.raises(OutputError, match="the current folder"):
            refuse_existing_folder(folder, overwrite=True)
    assert entries(tmp_path) == ["place"]


@pytest.mark.parametrize("refuse", [refuse_existing_file, refuse_existing_folder])
def test_places_where_nothing_can_be_written_are_refused_at_once(tmp_path, monkeypatch, refuse):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be written"):
        refuse(tmp_path / "file" / "deep" / "scan.nrrd", False)
    with pytest.raises(OutputError, match="cannot be written"):
        refuse(tmp_path / ("long" * 100), False)

    def denied(_folder: Path, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic.Path, "mkdir", denied)
    with pytest.raises(OutputError, match="no permission"):
        refuse(tmp_path / "scan.nrrd", False)
    assert entries(tmp_path) == ["file"]


def test_refusing_leaves_no_folders_behind(tmp_path):
    for refuse in (refuse_existing_file, refuse_existing_folder):
        refuse(tmp_path / "new" / "deep" / "scan", False)
    assert entries(tmp_path) == []


def test_a_full_disk_is_found_before(tmp_path):
    require_space(tmp_path / "new" / "deep", 1)
    with pytest.raises(OutputError, match="GB are free"):
        require_space(tmp_path / "new" / "deep", 1 << 60)


def test_no_text_of_a_library_is_in_a_sentence(tmp_path):
    with pytest.raises(OutputError) as caught, atomic_folder(tmp_path / "series"):
        raise OSError("Failed to write Secret^Patient")
    assert "Secret" not in str(caught.value)
