"""Where networks run. The choice is always said in words; nothing falls back silently."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from .errors import DependencyError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str = "auto") -> torch.device:
    """The torch device for "auto" (a GPU where there is one), "cpu" or "cuda".

    :raises DependencyError: for "cuda" without a usable GPU, for an unknown name, and where torch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise DependencyError(
            "PyTorch is missing; in Slicer install it with the PyTorch extension, else with pip."
        ) from error
    if name not in DEVICES:
        raise DependencyError(f"Unknown device '{name}'; choose one of {', '.join(DEVICES)}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise DependencyError(
            "No usable NVIDIA GPU was found; choose --device cpu, or install a CUDA build of PyTorch."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device) -> str:
    """The device in words, such as "NVIDIA H200" or "CPU (x86_64, 2 threads)"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
