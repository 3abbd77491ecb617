"""Where networks run. The choice is always said in words; nothing falls back silently."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CHOOSE_CPU, DependencyError
from .threads import usable_threads

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "half")

# The bulk of what is loaded: a quarter of a second of one core, and gigabytes from a disk.
_TORCH_LIBRARIES = ("libtorch_cpu.so", "libtorch_cuda.so")


def load_torch() -> None:
    """Import torch, if it is there, so that an interface in another thread stays alive meanwhile.

    Python's own way to load a library keeps Python's lock until all of it is there. A call through ctypes does not, and
    what it has loaded the import then finds. Where that is unknown, the import does all by itself.
    """
    spec = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return
    if sys.platform.startswith("linux"):
        open_library = ctypes.CDLL(None).dlopen
        open_library.argtypes, open_library.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
        for library in (Path(spec.origin).parent / "lib" / name for name in _TORCH_LIBRARIES):
            if library.exists():
                open_library(os.fsencode(library), os.RTLD_NOW)
    importlib.import_module("torch")


def resolve_device(name: str = "auto") -> torch.device:
    """The torch device for "auto" (an NVIDIA GPU where there is one, or the CPU), "cpu", "cuda" or "mps" (Apple).

    :raises DependencyError: for a GPU that is not there, for an unknown name, and where torch is missing.
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
        raise DependencyError("No usable NVIDIA GPU was found, or PyTorch is no CUDA build", hint=CHOOSE_CPU)
    if name == "mps" and not torch.backends.mps.is_available():
        raise DependencyError("No usable Apple GPU was found, or PyTorch was built without it", hint=CHOOSE_CPU)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """The device in words, such as "NVIDIA H200" or "CPU (x86_64, 2 threads)"."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    return describe_cpu()


def describe_cpu() -> str:
    """The processor in words; where no network runs, torch need not be there."""
    threads = usable_threads()
    return f"CPU ({platform.machine()}, {threads} thread{'' if threads == 1 else 's'})"


def may_use_half(precision: str, device: torch.device) -> bool:
    """Whether half precision is asked for, or left open ("auto") on a GPU; on a CPU it would be slower.

    :raises DependencyError: for "half" without a GPU, and for an unknown word.
    """
    if precision not in PRECISIONS:
        raise DependencyError(f"Unknown precision '{precision}'; choose one of {', '.join(PRECISIONS)}.")
    if precision == "half" and device.type != "cuda":
        raise DependencyError("Half precision needs an NVIDIA GPU; choose float32, or leave the choice open.")
    return precision != "float32" and device.type == "cuda"
