"""Python packages that Slicer does not ship, installed on first use after asking."""

from __future__ import annotations

import importlib.util

from slicer.i18n import tr as _

from ..errors import DependencyError


def packages_are_ready() -> bool:
    """Whether networks can be loaded; looks without importing."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "safetensors"))


def ensure_packages(requirements_path: str) -> None:
    """Offer to install what is missing: PyTorch through its extension, the rest through Slicer's packaging.

    A PyTorch that can be imported is used as it is, with or without the extension.

    :raises DependencyError: when PyTorch is missing and cannot or shall not be installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("torch", "torchvision")):
        try:
            import PyTorchUtils
        except ModuleNotFoundError as error:
            raise DependencyError(
                _("Install the PyTorch extension in the Extensions Manager and restart Slicer.")
            ) from error
        if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True) is None:
            raise DependencyError(_("PyTorch is needed and was not installed."))

    from slicer import packaging

    packaging.pip_ensure(packaging.load_requirements(requirements_path), requester="MITSGAN")
