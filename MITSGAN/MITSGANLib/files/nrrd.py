"""What ITK does not survive of a NRRD header: its reader overruns its memory at headers that break the format.

So a header is read here first, by the rules of the format (teem.sourceforge.net/nrrd/format.html, NRRD0001 to 0005),
and only one that keeps them is given to ITK.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

# More than any header takes, the history of a volume included.
HEADER_BYTES = 1 << 22
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf)"
_VECTOR = rf"(?:none|\( *{_NUMBER}(?: *, *{_NUMBER})* *\))"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_MOST_AXES = 16
# The dimension of the named spaces is 3, or 4 with time.
_SPACE_WORD = r"[A-Za-z0-9-]+"

# One value for each axis of the array, for each axis of the space, or a single one.
_PER_AXIS = {
    "sizes": r"\d+",
    **dict.fromkeys(("spacings", "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs"), _NUMBER),
    "space directions": _VECTOR,
    **dict.fromkeys(("kinds", "centers", "centerings"), r"\S+"),
    **dict.fromkeys(("labels", "units"), _QUOTED),
}
_PER_SPACE_AXIS = {"space units": _QUOTED, "measurement frame": _VECTOR}
_SINGLE = {
    "dimension": r"\d{1,2}",
    "space dimension": r"\d{1,2}",
    "space": _SPACE_WORD,
    "space origin": _VECTOR,
    "type": r"[A-Za-z0-9_ ]+",
    "encoding": r"[A-Za-z0-9]+",
    "endian": r"little|big",
    **dict.fromkeys(("line skip", "lineskip", "block size", "blocksize", "number"), r"\d+"),
    **dict.fromkeys(("byte skip", "byteskip"), r"-1|\d+"),
    **dict.fromkeys(("min", "max", "old min", "oldmin", "old max", "oldmax"), _NUMBER),
    **dict.fromkeys(("content", "sample units", "sampleunits"), r".*"),
    **dict.fromkeys(("data file", "datafile"), r".+"),
}
_PATTERNS = {**_PER_AXIS, **_PER_SPACE_AXIS, **_SINGLE}


def is_sound_header(path: Path) -> bool:
    """Whether a NRRD file begins with a header that keeps the rules of the format.

    :raises OSError: the file cannot be read.
    """
    lines, end = _header(path)
    # Of a header without voxels nothing needs to follow.
    if end is None and path.suffix.lower() != ".nhdr":
        return False
    return re.fullmatch(r"NRRD000[1-5]", lines[0]) is not None and _keep_rules(lines[1:])


def encoding(path: Path) -> str:
    """How a NRRD file with a sound header says that its voxels are packed, in lower case; "" where it does not.

    :raises OSError: the file cannot be read.
    """
    return dict(_fields(_header(path)[0][1:])).get("encoding", "").lower()


def is_whole(path: Path, data: Sequence[Path], size: int) -> bool:
    """Whether voxels compressed by gzip are sound. ITK would take what there is, damaged or not.

    :param path: a file with a sound header.
    :param data: the files with the voxels of a detached header.
    :param size: bytes of all voxels.
    :raises OSError: a file cannot be read.
    """
    lines, end = _header(path)
    fields = dict(_fields(lines[1:]))
    if fields.get("encoding", "").lower() not in ("gz", "gzip"):
        return True
    lines_before, bytes_before = (_first(fields, f"{unit} skip", f"{unit}skip") for unit in ("line", "byte"))
    wanted, found = size + max(0, bytes_before), 0
    try:
        for place in data or [path]:
            with place.open("rb") as file:
                file.seek(0 if data else end or 0)
                for _ in range(lines_before):
                    file.readline()
                with gzip.GzipFile(fileobj=file) as inflating:
                    while found <= wanted and (chunk := inflating.read(1 << 16)):
                        found += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return False
    return wanted <= found


def _first(fields: dict[str | None, str], *names: str) -> int:
    return next((int(fields[name]) for name in names if name in fields), 0)


def _header(path: Path) -> tuple[list[str], int | None]:
    """The lines of the header, and where the voxels begin behind it, if it has an end."""
    with path.open("rb") as file:
        content = file.read(HEADER_BYTES)
    end = re.search(rb"\r?\n\r?\n", content)
    return re.split(r"\r?\n", content[: end.start() if end else None].decode("latin-1")), end and end.end()


def _keep_rules(lines: list[str]) -> bool:
    found = list(_fields(lines))
    fields = dict(found)
    axes, space = (_dimension(fields, name) for name in ("dimension", "space dimension"))
    if space is None:
        word = fields.get("space", "").lower()
        space = 4 if word.endswith("time") or word in ("rast", "last", "lpst") else 3
    if None in fields or len(fields) < len(found) or not 1 <= (axes or 0) <= _MOST_AXES:
        return False
    counts = {**dict.fromkeys(_PER_AXIS, axes), **dict.fromkeys(_PER_SPACE_AXIS, space), **dict.fromkeys(_SINGLE, 1)}
    if not all(fits(text, _PATTERNS[name], counts[name]) for name, text in fields.items()):
        return False
    vectors = (fields.get(name, "") for name in ("space directions", "space origin", "measurement frame"))
    return all(vector.count(",") == space - 1 for text in vectors for vector in re.findall(r"\(.*?\)", text))


def _fields(lines: list[str]) -> Iterator[tuple[str | None, str]]:
    """Names and texts of the fields. The name is None for a line that is no field, comment or entry."""
    for line in lines:
        if any(ord(character) < 32 and character != "\t" for character in line):
            yield None, line
        elif not line or line.startswith("#") or ":=" in line:
            continue
        else:
            name, colon, text = line.partition(":")
            yield (name.lower() if colon and name.lower() in _PATTERNS else None), text.strip()
            if name.lower() in ("data file", "datafile") and text.strip().startswith("LIST"):
                return  # names of files follow


def _dimension(fields: dict[str | None, str], name: str) -> int | None:
    text = fields.get(name, "")
    return int(text) if fits(text, _SINGLE[name], 1) else None


def fits(text: str, pattern: str, count: int) -> bool:
    """Whether a text is so many values of a pattern, with blanks between them."""
    return re.fullmatch(rf"(?:{pattern})(?:\s+(?:{pattern})){{{count - 1}}}", text, re.IGNORECASE) is not None
