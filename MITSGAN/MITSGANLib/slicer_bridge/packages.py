"""Python packages that Slicer does not ship, installed on first use after asking."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType

import slicer
from slicer.i18n import tr as _

from ..errors import CancelledError, DependencyError

_KEY_PACKAGE = "cryptography"


def are_installed(*names: str) -> bool:
    """Whether packages can be imported; looks without importing."""
    return all(importlib.util.find_spec(name) is not None for name in names)


def ensure_packages(requirements_path: str, say: Callable[[str], None]) -> None:
    """Offer to install what is missing: PyTorch through its extension, the rest through Slicer's packaging.

    A PyTorch that can be imported is used as it is, with or without the extension. Where it came without torchvision,
    lpips is left out, which would bring a torchvision that replaces it; LPIPS is then not measured, and tables say why.

    :param say: tells the user what takes so long.
    :raises DependencyError: when PyTorch is missing and so is its extension, or Slicer is older than 5.12.
    :raises CancelledError: when the user does not want the packages.
    """
    if not are_installed("torch"):
        try:
            import PyTorchUtils
        except ModuleNotFoundError as error:
            raise DependencyError(
                _("Install the PyTorch extension in the Extensions Manager and restart Slicer.")
            ) from error
        say(_("Installing PyTorch; this takes minutes."))
        slicer.app.processEvents()
        if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True) is None:
            raise CancelledError(_("Canceled: PyTorch is needed and was not installed."))
        say("")

    packaging = _packaging()
    left_out = () if are_installed("torchvision") else ("lpips",)
    requirements = packaging.load_requirements(requirements_path)
    _ensure(packaging, [requirement for requirement in requirements if requirement.name not in left_out])


def ensure_key_packages(requirements_path: str) -> None:
    """Offer to install what keys and signatures need: not PyTorch, which takes minutes.

    :raises DependencyError: when Slicer is older than 5.12.
    :raises CancelledError: when the user does not want it.
    """
    packaging = _packaging()
    requirements = packaging.load_requirements(requirements_path)
    _ensure(packaging, [requirement for requirement in requirements if requirement.name == _KEY_PACKAGE])


def _packaging() -> ModuleType:
    try:
        from slicer import packaging
    except ImportError as error:
        raise DependencyError(_("Install 3D Slicer 5.12 or later; this one cannot install Python packages.")) from error
    return packaging


def _ensure(packaging: ModuleType, requirements: list) -> None:
    try:
        packaging.pip_ensure(requirements, requester="MITSGAN")
    except RuntimeError as error:
        # Slicer's way to say that the user declined.
        raise CancelledError(_("Canceled: the packages are needed and were not installed.")) from error
