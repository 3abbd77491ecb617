"""Python packages that Slicer does not ship, installed before their first use, once the user has agreed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from ..errors import DependencyError

KEYS = ("cryptography",)
"""What watermarks and signatures need, by the names that Python imports."""
NETWORKS = ("torch", "safetensors")
"""What networks need besides."""
FIGURES = ("lpips",)
"""What measuring needs besides."""
PAGE = ("jinja2", "matplotlib")
"""What a report needs besides."""
COLLECTIONS = ("filelock", "tqdm")
"""What commands over whole folders need besides."""

TORCH = "torch"


@dataclass(frozen=True)
class Package:
    """A package to install."""

    name: str
    megabytes: int  # that are loaded with it, in round numbers
    purpose: str


def known_packages() -> dict[str, Package]:
    """All packages by the names that Python imports."""
    return {
        "cryptography": Package("cryptography", 4, _("keys, watermarks and signatures")),
        "torch": Package("PyTorch", 250, _("networks: the default protection and the attack")),
        "safetensors": Package("safetensors", 1, _("the networks' weights")),
        "h5py": Package("h5py", 5, _("attackers in Keras files")),
        "lpips": Package("lpips", 1, _("one of the figures, LPIPS")),
        "jinja2": Package("jinja2", 1, _("pages")),
        "matplotlib": Package("matplotlib", 30, _("pictures in pages")),
        "filelock": Package("filelock", 1, _("work on whole folders")),
        "tqdm": Package("tqdm", 1, _("work on whole folders")),
    }


def are_installed(*names: str) -> bool:
    """Whether packages can be imported; looks without importing."""
    return all(importlib.util.find_spec(name) is not None for name in names)


def missing(names: Sequence[str]) -> list[str]:
    """Which of these cannot be imported.

    Where PyTorch came without torchvision, lpips is left out, which would bring a torchvision that replaces it; LPIPS
    is then not measured, and tables say why.
    """
    found = [name for name in names if not are_installed(name)]
    if "lpips" in found and are_installed(TORCH) and not are_installed("torchvision"):
        found.remove("lpips")
    return found


def install(
    names: Sequence[str], requirements_path: str, say: Callable[[str], None], *, cpu_only: bool = False
) -> None:
    """Install packages, to which the user has agreed: PyTorch through its extension, the rest through Slicer's own.

    :param names: as Python imports them.
    :param requirements_path: the file that lists all but PyTorch.
    :param say: tells the user what takes so long.
    :param cpu_only: the PyTorch without CUDA, whatever this computer has.
    :raises DependencyError: they cannot be installed, with what to do.
    """
    packages = known_packages()
    if TORCH in names:
        _install_torch(say, cpu_only=cpu_only)
    others = [packages[name].name for name in names if name != TORCH]
    if others:
        say(_("Installing {names}…").format(names=", ".join(others)))
        slicer.app.processEvents()
        try:
            from slicer import packaging
        except ImportError as error:
            words = _("Install 3D Slicer 5.12 or later; this one cannot install Python packages.")
            raise DependencyError(words) from error
        wanted = [one for one in packaging.load_requirements(requirements_path) if one.name in others]
        try:
            packaging.pip_ensure(wanted, prompt_install=False, requester="MITSGAN")
        except Exception as error:
            raise _failed(", ".join(others)) from error
    importlib.invalidate_caches()
    left = [packages[name].name for name in names if not are_installed(name)]
    if left and not slicer.app.testingEnabled():
        raise _failed(", ".join(left))
    say("")


def _install_torch(say: Callable[[str], None], *, cpu_only: bool) -> None:
    try:
        import PyTorchUtils
    except ModuleNotFoundError as error:
        raise DependencyError(
            _(
                "PyTorch comes with Slicer's PyTorch extension: install it in the Extensions Manager and restart "
                "Slicer. The watermark and signatures work without."
            )
        ) from error
    say(_("Installing PyTorch; this takes minutes."))
    slicer.app.processEvents()
    try:
        backend = "cpu" if cpu_only else None
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(forceComputationBackend=backend)
    except Exception as error:
        raise _failed("PyTorch") from error
    if torch is None:
        raise _failed("PyTorch")


def _failed(names: str) -> DependencyError:
    return DependencyError(
        _("{names} could not be installed. Check the connection to the internet, or install it later.").format(
            names=names
        )
    )
