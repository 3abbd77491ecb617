"""What may be shown of an error that nobody foresaw."""

from __future__ import annotations

import pydicom
import pytest
from MITSGANLib.errors import InputError, defect_text
from MITSGANTrainingLib import commandline
from MITSGANTrainingLib.workers import run_all
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

SECRET = b"SECRET9"


def read_header(_item: object = None) -> None:
    """Fail as pydicom does at an element that does not fit its VR: it quotes the bytes."""
    dataset = Dataset()
    dataset[0x00109431] = RawDataElement(Tag(0x00109431), "FD", len(SECRET), SECRET, 0, False, True)
    _ = dataset[0x00109431].value


def test_pydicom_quotes_what_it_cannot_read():
    with pytest.raises(pydicom.errors.BytesLengthException, match="SECRET9"):
        read_header()


def test_of_an_error_that_came_through_headers_the_text_is_left_out():
    with pytest.raises(Exception, match="SECRET9") as caught:
        read_header()
    assert defect_text(caught.value) == "BytesLengthException"
    with pytest.raises(ValueError, match="no header") as caught:
        raise ValueError("no header was read")
    assert defect_text(caught.value) == "ValueError: no header was read"


def test_workers_leave_it_out_as_well():
    (outcome,) = run_all(read_header, [1])
    assert outcome.error == "BytesLengthException"


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_command_line_shows_neither_text_nor_trace_of_headers(tmp_path, monkeypatch, capsys, verbose, wrapped):
    def run(_options: object) -> None:
        try:
            read_header()
        except Exception as error:
            if wrapped:
                raise InputError("is damaged", path="scan", hint="copy it again") from error
            raise

    monkeypatch.setattr(commandline.COMMANDS["info"], "run", run)
    code = commandline.main(["info", str(tmp_path), *(["--verbose"] if verbose else [])])
    shown = capsys.readouterr()
    assert code == (3 if wrapped else 1)
    assert "SECRET9" not in shown.out + shown.err
    assert ("scan is damaged; copy it again." if wrapped else "Unexpected BytesLengthException.") in shown.err
    assert ("Traceback" in shown.err) == verbose
