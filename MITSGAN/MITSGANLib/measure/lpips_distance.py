"""LPIPS (Zhang et al. 2018) with SqueezeNet, as in the MITS-GAN paper, through the ``lpips`` package and local weights.

Nothing is ever downloaded. The linear layers come with the package; SqueezeNet's ImageNet weights must be on disk.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError

WEIGHTS_VARIABLE = "MITSGAN_SQUEEZENET"
WEIGHTS_FILE = "squeezenet1_1-b8a52dc0.pth"
# Torchvision ends the names of its files with the first digits of their SHA-256.
_PUBLISHED_SHA256 = "b8a52dc0"


@dataclass(frozen=True)
class LpipsUnavailable:
    """LPIPS cannot be measured here; ``reason`` says why and what would help, for the result's ``reason``."""

    reason: str


@dataclass(frozen=True)
class Lpips:
    """LPIPS, ready to measure. Made by :func:`load_lpips`.

    :param description: network and weights, for the definition of results.
    :param weights_sha256: of the SqueezeNet file.
    """

    description: str
    weights_sha256: str
    _network: Any = field(repr=False, compare=False)
    _device: str = "cpu"

    def distance(self, reference: np.ndarray, other: np.ndarray) -> float:
        """LPIPS of two gray pictures (rows, columns) of at least 24x24 with values in -1..1; 0 when they are equal."""
        import torch

        def picture(values: np.ndarray) -> Any:
            gray = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self._device)
            return gray.expand(1, 3, -1, -1)

        with torch.inference_mode():
            return float(self._network(picture(reference), picture(other)))


def load_lpips(weights: str | Path | None = None, device: str = "cpu") -> Lpips | LpipsUnavailable:
    """LPIPS with SqueezeNet weights from ``weights``, else from the file that the environment variable
    ``MITSGAN_SQUEEZENET`` names, else from the cache of torch.hub.

    :returns: :class:`LpipsUnavailable` when there is no such file, or torch, torchvision or lpips is missing.
    :raises ModelError: when the file is there but damaged or holds another network.
    """
    try:
        import torch

        _import_torchvision()
        lpips = importlib.import_module("lpips")
    except ImportError as error:
        return LpipsUnavailable(f"LPIPS needs the Python package {error.name or error}, which is not installed")
    path = _find_weights(weights)
    if isinstance(path, LpipsUnavailable):
        return path
    sha256 = _checked_sha256(path)
    trunk = _read_squeezenet(path)
    # Building the network draws random weights; the caller's random numbers must not change because of it. Torchvision
    # warns that lpips passes `pretrained`, which nobody here can change.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net="squeeze", version="0.1", pnet_rand=True, verbose=False)
    _load_trunk(network.net, trunk, path)
    published = sha256.startswith(_PUBLISHED_SHA256)
    origin = "ImageNet weights of torchvision" if published else "not torchvision's published weights"
    return Lpips(
        description=f"version 0.1, SqueezeNet 1.1, {origin}, SHA-256 {sha256}",
        weights_sha256=sha256,
        _network=network.eval().requires_grad_(False).to(device),
        _device=device,
    )


@functools.cache
def _import_torchvision() -> Any:
    """Import torchvision, also a build whose compiled operators cannot load; keeps what it declared alive.

    PyPI's torchvision for Linux is a CUDA build: beside a CPU build of torch its library does not load, and its import
    ends with "operator torchvision::nms does not exist", although SqueezeNet needs no such operator. Declaring the two
    operators that the import looks up is enough. That is done only after the import has failed for their absence, since
    a library that loads later must be able to register its own.
    """
    import torch

    try:
        return importlib.import_module("torchvision"), None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision"), library


def _find_weights(weights: str | Path | None) -> Path | LpipsUnavailable:
    import torch

    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE
    path = Path(named).expanduser() if named else cached
    if path.is_file():
        return path
    place = f"there is no file {path}" if named else f"{WEIGHTS_FILE} is not in {cached.parent}"
    return LpipsUnavailable(
        f"LPIPS needs SqueezeNet's ImageNet weights and {place}; get {WEIGHTS_FILE} from "
        f"https://download.pytorch.org/models/{WEIGHTS_FILE} and name it in {WEIGHTS_VARIABLE}"
    )


def _checked_sha256(path: Path) -> str:
    """SHA-256 of the file, which must begin as a name such as squeezenet1_1-b8a52dc0.pth says, where it says so."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    promised = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if promised and not sha256.startswith(promised[1]):
        raise ModelError(
            f"The file {path} is damaged: its SHA-256 begins with {sha256[:8]}, not {promised[1]}; download it again."
        )
    return sha256


def _read_squeezenet(path: Path) -> dict[str, Any]:
    """Tensors of a torchvision SqueezeNet 1.1 state dict, without its classifier."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises whatever its unpickler and zip reader meet: EOFError, RuntimeError, UnpicklingError, KeyError...
    except Exception as error:
        raise ModelError(
            f"The file {path} cannot be read as PyTorch weights; use torchvision's {WEIGHTS_FILE}."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"The file {path} is not a state dict of tensors; use torchvision's {WEIGHTS_FILE}.")
    return {name: value for name, value in state.items() if not name.startswith("classifier.")}


def _load_trunk(trunk: Any, state: dict[str, Any], path: Path) -> None:
    """Copy ``features.N.*`` of torchvision into ``sliceM.N.*`` of lpips, which keeps the numbers of the layers."""
    import torch

    expected = {re.sub(r"^slice\d+\.", "features.", name): name for name in trunk.state_dict()}
    wrong = sorted(set(expected) ^ set(state))
    shapes = trunk.state_dict()
    wrong += [name for name in expected if name in state and state[name].shape != shapes[expected[name]].shape]
    if wrong:
        raise ModelError(
            f"The file {path} does not hold SqueezeNet 1.1 ({wrong[0]} does not fit); use torchvision's {WEIGHTS_FILE}."
        )
    if not all(bool(torch.isfinite(state[name]).all()) for name in expected):
        raise ModelError(f"The file {path} holds NaN or infinite weights; use torchvision's {WEIGHTS_FILE}.")
    trunk.load_state_dict({inner: state[name] for name, inner in expected.items()})
