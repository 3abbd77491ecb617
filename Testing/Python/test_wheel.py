"""The wheel that ``pip install .`` builds: it holds what a checkout holds, and works by itself, without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"MITSGANLib": ROOT / "MITSGAN", "MITSGANTrainingLib": ROOT / "MITSGANTraining"}
NO_NETWORK = """
import socket


def refuse(*arguments, **options):
    raise OSError("this test has no network")


socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def shipped_files() -> set[str]:
    """What the wheel must hold, as paths in it: all code, models, recipes, and the report's template."""
    files = {
        path.relative_to(folder).as_posix() for library, folder in LIBRARIES.items()
        for path in (folder / library).rglob("*.py")
    }  # fmt: skip
    for library, folder in LIBRARIES.items():
        resources = folder / "Resources"
        wanted = (*resources.glob("Models/**/*.*"), *resources.glob("Recipes/*.toml"), *resources.glob("*.j2"))
        files |= {f"{library}/{path.relative_to(folder).as_posix()}" for path in wanted if path.is_file()}
    return files


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command that knows nothing of the checkout; its output is shown where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [*map(str, command)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_package_is_named():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(folder).parts) for library, folder in LIBRARIES.items()
        for path in (folder / library).rglob("__init__.py")
    }  # fmt: skip
    assert set(settings["packages"]) == found | {f"{library}.Resources" for library in LIBRARIES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("setuptools", "77", "setuptools builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("MITSGAN", "MITSGANTraining"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE.txt"):
        shutil.copy(ROOT / name, source)
    quiet = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "-q")
    run(sys.executable, "-m", "pip", "wheel", source, "-w", folder, *quiet, folder=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Folder of the programs of a fresh environment that sees the packages of this one, but no checkout."""
    fresh = tmp_path_factory.mktemp("fresh") / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", fresh, folder=fresh.parent)
    scheme = {"base": str(fresh), "platbase": str(fresh)}
    packages, programs = (Path(sysconfig.get_path(kind, "venv", scheme)) for kind in ("purelib", "scripts"))
    # A path named here is searched, but its own .pth files, such as that of an editable install, are not read.
    (packages / "packages.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    (packages / "sitecustomize.py").write_text(NO_NETWORK)
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "--disable-pip-version-check", "-q")
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel, folder=fresh.parent)
    return programs


@pytest.mark.slow
def test_wheel_holds_every_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name and not name.endswith("requirements.txt")} == (
        shipped_files()
    )


@pytest.mark.slow
def test_runs_the_demonstration(installed, tmp_path):
    run(installed / "mitsgan", "demo", "--phantom", "--targets", 1, "--device", "cpu", folder=tmp_path)
    report = json.loads((tmp_path / "mitsgan-demo" / "report.json").read_text())
    assert {"inject", "remove"} <= report["summary"].keys()
    assert "data:image" in (tmp_path / "mitsgan-demo" / "report.html").read_text()


@pytest.mark.slow
def test_knows_its_recipes(installed, tmp_path):
    script = (
        "import MITSGANLib\nfrom MITSGANTrainingLib.training.recipes import load_recipe, shipped_recipes\n"
        "print(MITSGANLib.__file__, len([load_recipe(name) for name in shipped_recipes()]))"
    )
    place, count = run(installed / "python", "-c", script, folder=tmp_path).stdout.split()
    assert Path(place).is_relative_to(installed.parent)
    assert int(count) == len(list((ROOT / "MITSGANTraining" / "Resources" / "Recipes").glob("*.toml")))
