"""What ITK does not survive of a MetaImage header: its reader copies texts and numbers into fields of fixed length.

So a header is read here first, by the rules of the format (itk.org/Wiki/ITK/MetaIO/Documentation), and only one that
keeps them is given to ITK.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from .nrrd import HEADER_BYTES, fits

# What ITK has room for: axes, characters of a text that it knows, and of one that it keeps for the caller.
MOST_AXES, TEXT_LENGTH, ENTRY_LENGTH = 10, 250, 30_000
_DATA = "elementdatafile"
_LINE = re.compile(r"([^=:]*?)\s*[=:]\s*(.*?)\s*")
_INTEGER = r"[-+]?\d{1,18}"
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d{1,3})?|\.\d+(?:[eE][-+]?\d{1,3})?)"
_FLAG = r"true|false|t|f|yes|no|y|n|[01]"

# Of each field a pattern of one value, and to which power of the number of axes there are so many.
_FIELDS = {
    "ndims": (r"\d{1,2}", 0),
    "dimsize": (r"\d{1,10}", 1),
    **dict.fromkeys(("offset", "position", "origin", "centerofrotation"), (_NUMBER, 1)),
    **dict.fromkeys(("elementspacing", "elementsize", "sequenceid"), (_NUMBER, 1)),
    **dict.fromkeys(("transformmatrix", "rotation", "orientation"), (_NUMBER, 2)),
    **dict.fromkeys(("binarydata", "binarydatabyteordermsb", "elementbyteordermsb", "compresseddata"), (_FLAG, 0)),
    **dict.fromkeys(("id", "parentid", "headersize"), (_INTEGER, 0)),
    **dict.fromkeys(("elementmin", "elementmax"), (_NUMBER, 0)),
    **dict.fromkeys(("elementtointensityfunctionslope", "elementtointensityfunctionoffset"), (_NUMBER, 0)),
    "compresseddatasize": (r"\d{1,18}", 0),
    "elementnumberofchannels": (r"\d{1,4}", 0),
    "elementtype": (r"MET_[A-Z_]{1,40}", 0),
    "modality": (r"MET_MOD_[A-Z]{1,20}", 0),
    "anatomicalorientation": (r"[A-Z?]{1,9}", 0),
    "color": (rf"{_NUMBER}(?:\s+{_NUMBER}){{3}}", 0),
}
_TEXTS = ("objecttype", "objectsubtype", "name", "comment", "distanceunits", "transformtype", "acquisitiondate", _DATA)


def is_sound_header(path: Path) -> bool:
    """Whether a MetaImage file begins with a header that keeps the rules of the format.

    :raises OSError: the file cannot be read.
    """
    header = _header(path)
    fields = list(_fields(header.decode("latin-1")))
    known = dict(fields)
    if _DATA not in known:
        return False
    before = list(known)[: list(known).index("ndims")] if "ndims" in known else list(known)
    if any(name in _FIELDS and _FIELDS[name][1] for name in before):
        return False
    if len(known) < len(fields) or not fits(known.get("ndims", ""), _FIELDS["ndims"][0], 1):
        return False
    axes = int(known["ndims"])
    if not 1 <= axes <= MOST_AXES or "dimsize" not in known:
        return False
    if not all(_is_sound(name, text, axes) for name, text in fields):
        return False
    # No more is read than that, and memory is taken for it.
    return int(known.get("compresseddatasize", "0")) <= path.stat().st_size or known[_DATA].upper() != "LOCAL"


def is_whole(path: Path, size: int) -> bool:
    """Whether compressed voxels are sound. Of others ITK takes a part, and for the rest memory as it finds it.

    :param path: a file with a sound header.
    :param size: bytes of all voxels.
    :raises OSError: a file cannot be read.
    """
    header = _header(path)
    known = dict(_fields(header.decode("latin-1")))
    if known.get("compresseddata", "f")[:1].lower() not in "ty1":
        return True
    is_local = known[_DATA].upper() == "LOCAL"
    packed, found = int(known.get("compresseddatasize", "0")), 0
    inflate = zlib.decompressobj(wbits=47)  # zlib's own form, or gzip's
    with (path if is_local else path.parent / known[_DATA]).open("rb") as file:
        file.seek(len(header) if is_local else 0)
        left = packed or (0 if is_local else 1 << 62)
        try:
            while left > 0 and not inflate.eof and found <= size and (chunk := file.read(min(left, 1 << 16))):
                left -= len(chunk)
                found += len(inflate.decompress(chunk))
        except zlib.error:
            return False
    return inflate.eof and found == size


def _header(path: Path) -> bytes:
    """The header with the line that ends it; nothing where there is no such line."""
    with path.open("rb") as file:
        content = file.read(HEADER_BYTES)
    end = re.search(rb"(?im)^[ \t]*ElementDataFile[ \t]*[=:][^\n]*(?:\n|\Z)", content)
    return content[: end.end()] if end else b""


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """Names, in lower case, and texts of the fields; an empty name for a line that is none."""
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        is_text = all(ord(character) >= 32 or character == "\t" for character in line)
        if line.strip():
            yield (found.group(1).strip().lower(), found.group(2)) if found and is_text else ("", line)


def _is_sound(name: str, text: str, axes: int) -> bool:
    if name in _FIELDS:
        pattern, power = _FIELDS[name]
        return fits(text, pattern, axes**power)
    length = TEXT_LENGTH if name in _TEXTS else ENTRY_LENGTH
    return 0 < len(name) <= TEXT_LENGTH and len(text) <= length
