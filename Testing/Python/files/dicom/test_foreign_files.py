"""The files that pydicom comes with, of every kind that its users met: each command ends with a sentence about each.

No trace, no half-written output, and nothing of a patient in what is said.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key
from MITSGANTrainingLib.commandline import main

pytestmark = pytest.mark.slow

DATA = Path(pydicom.__file__).parent / "data"
FILES = sorted(
    path
    for folder in ("test_files", "charset_files")
    for path in (DATA / folder).glob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
)
# Of the patient, and of those around them; words of less than four letters may stand in any sentence.
SECRET_VRS = ("PN", "LO", "SH", "LT", "ST", "UT", "DA", "AS")
SHORTEST_SECRET = 4
# What `mitsgan info` is there to show. Other elements may hold the same.
SHOWN_KEYWORDS = ("SeriesDescription", "ConvolutionKernel", "SeriesInstanceUID", "Modality")
REFUSALS = (3, 4)
FINISHED = (0, 8)  # 8: signed by a key that nobody named


def secrets(path: Path) -> set[str]:
    """Texts of a file that no message may quote."""
    found: set[str] = set()
    shown: list[str] = []

    def collect(dataset: pydicom.Dataset) -> None:
        for tag in list(dataset.keys()):
            with suppress(Exception):  # these files are odd on purpose
                element = dataset[tag]
                if element.VR == "SQ":
                    for item in element.value:
                        collect(item)
                elif element.keyword in SHOWN_KEYWORDS:
                    shown.append(str(element.value))
                elif element.VR in SECRET_VRS:
                    found.update(str(element.value).split("^"))

    with suppress(Exception):
        collect(pydicom.dcmread(path, force=True))
    found = {text.strip() for text in found if len(text.strip()) >= SHORTEST_SECRET}
    return {text for text in found if not any(text in one for one in shown)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DATA)))
def test_every_command_ends_with_a_sentence(file, tmp_path, capsys):
    folder, key = tmp_path / "in", tmp_path / "key.pem"
    folder.mkdir()
    shutil.copy(file, folder / "image")
    save_signing_key(new_signing_key(), key)
    hidden = secrets(file)
    commands = {
        "info": ("info", str(folder)),
        "info of the file": ("info", str(folder / "image")),
        "protect": ("protect", str(folder), str(tmp_path / "protected"), "--model", "none"),
        "sign": ("sign", str(folder), str(tmp_path / "signed"), "--key", str(key)),
        "sign a study": ("sign", str(folder), "--study", "--key", str(key)),
        "sign pixels": ("sign", str(folder), str(tmp_path / "pixels.json"), "--pixels-only", "--key", str(key)),
        "verify": ("verify", str(folder)),
        "verify the copy": ("verify", str(tmp_path / "signed")),
    }
    codes = {}
    for name, words in commands.items():
        if name == "verify the copy" and codes["sign"] != 0:
            continue
        codes[name] = main(list(words))
        out, err = capsys.readouterr()
        # Without progress bars, whose numbers may be those of a header.
        said = re.sub(r"[^\n\r]*\r", "", out + err).replace(str(tmp_path), "")
        assert codes[name] in (*FINISHED, *REFUSALS), f"{name}: {said}"
        assert "Traceback" not in said, name
        assert not [text for text in hidden if text in said], name
    for name in ("protected", "signed"):
        command = {"protected": "protect", "signed": "sign"}[name]
        assert (tmp_path / name).exists() == (codes[command] == 0)
    assert not list(tmp_path.rglob("*.partial"))
