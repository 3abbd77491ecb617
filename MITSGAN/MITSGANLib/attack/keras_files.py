"""The authors' published files: Keras HDF5 weights (without Keras), ``normalization.npy``, ``equalization.pkl``.

Pickles can run code when opened, and attacker files come from strangers: only plain numeric arrays are let in.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ModelError
from .equalization import Equalization
from .networks import CTGANConfig, CTGANGenerator

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
}
_MAXIMUM_BYTES = 64 * 2**20
# The published generator's largest layer has 164 MB.
_MOST_LAYER_BYTES = 1 << 30

Layer = dict[str, np.ndarray]


class _NumericUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):  # how protocols 0 to 2 spell bytes
            return _latin1_bytes
        raise ModelError(
            f"The pickle asks for {module}.{name}; only numeric arrays are accepted, so it was not opened."
        )


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ModelError("The pickle holds encoded text; only numeric arrays are accepted.")
    return text.encode("latin1")


def load_numeric_pickle(path: Path) -> list[np.ndarray]:
    """A pickled list of numeric arrays.

    :raises ModelError: when the file is anything else; nothing in it has run then.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from error
    if len(content) > _MAXIMUM_BYTES:
        raise ModelError(f"{path} is larger than any equalization table; it was not opened.")
    try:
        # latin1: the published tables were pickled by Python 2 era NumPy.
        loaded = _NumericUnpickler(io.BytesIO(content), encoding="latin1").load()
    except ModelError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ModelError(f"{path} is not a readable pickle of numeric arrays; get the file anew.") from error
    if not isinstance(loaded, (list, tuple)) or not all(
        isinstance(item, np.ndarray) and item.dtype.kind in "fiu" for item in loaded
    ):
        raise ModelError(f"{path} holds more than numeric arrays; only those are accepted.")
    return list(loaded)


def load_equalization(folder: Path) -> Equalization:
    """The look-up table of ``equalization.pkl`` ([bins, cdf]) and ``normalization.npy`` ([mean, min, max]).

    :raises ModelError: when a file is missing or is not such a table.
    """
    table = load_numeric_pickle(folder / "equalization.pkl")
    path = folder / "normalization.npy"
    try:
        normalization = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is missing or not a plain NumPy file; get it anew.") from error
    if len(table) != 2 or normalization.shape != (3,):
        raise ModelError(f"{folder} must hold a table [bins, cdf] and a normalization [mean, min, max].")
    return Equalization(table[0], table[1], *(float(value) for value in normalization))


def load_keras_generator(path: Path) -> CTGANGenerator:
    """CT-GAN's generator from a Keras HDF5 file (whole model or weights alone), in evaluation mode.

    The width is read from the first kernel. Kernels are (depth, height, width, in, out) there and are transposed.
    Checked against a model built and saved by Keras 3.15.1: outputs agree within 6e-7.

    :raises ModelError: when the file is not HDF5 or its layers are not CT-GAN's.
    """
    convolutions, norms = _keras_layers(path)
    # A discriminator, or a file of another network, has other counts; a wrong width shows when the state is loaded.
    if len(convolutions) != 10 or len(norms) != 8:
        raise ModelError(
            f"{path} has {len(convolutions)} 3-D convolutions and {len(norms)} batch norms; CT-GAN's "
            "generator has 10 and 8."
        )
    config = CTGANConfig(base_filters=convolutions[0]["kernel"].shape[-1])
    try:
        # Without memory for its weights first: a damaged file may ask for more than there is.
        with torch.device("meta"):
            _copy(CTGANGenerator(config), convolutions, norms)
        network = CTGANGenerator(config)
        _copy(network, convolutions, norms)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"The layers of {path} do not fit CT-GAN's generator ({error}).") from error
    return network.eval().requires_grad_(False)


def _copy(network: CTGANGenerator, convolutions: Sequence[Layer], norms: Sequence[Layer]) -> None:
    """
    :raises KeyError, RuntimeError, ValueError: a layer lacks an array, or one is of another shape.
    """
    targets = [block.conv for block in network.down] + [block.same.conv for block in network.up] + [network.last.conv]
    norm_targets = [block.norm for block in network.down[1:]] + [block.norm for block in network.up]
    for target, layer in zip(targets, convolutions, strict=True):
        _fill(target, {"weight": np.transpose(layer["kernel"], (4, 3, 0, 1, 2)), "bias": layer["bias"]})
    for target, layer in zip(norm_targets, norms, strict=True):
        names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        _fill(target, {name: layer[keras] for name, keras in names.items()})


def _fill(module: torch.nn.Module, arrays: Layer) -> None:
    state = {name: torch.from_numpy(np.array(values, dtype=np.float32)) for name, values in arrays.items()}
    module.load_state_dict(state, strict=False)


def _keras_layers(path: Path) -> tuple[list[Layer], list[Layer]]:
    """Weights of the 3-D convolutions and of the batch norms, each in the order of the model's layers."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            names = [_text(name) for name in root.attrs["layer_names"]]
            layers = [_layer_weights(root[name]) for name in names]
    except ModelError:
        raise
    except Exception as error:  # h5py meets damage with many exception types
        raise ModelError(
            f"{path} is not a Keras HDF5 file ({type(error).__name__}); expected CT-GAN's G_model.h5."
        ) from error
    convolutions = [layer for layer in layers if layer.get("kernel", np.empty(0)).ndim == 5]
    norms = [layer for layer in layers if "moving_mean" in layer]
    return convolutions, norms


def _layer_weights(group: Any) -> Layer:
    names = [_text(name) for name in group.attrs.get("weight_names", [])]
    if sum(group[name].nbytes for name in names) > _MOST_LAYER_BYTES:
        raise ModelError("A layer of the file is larger than any of CT-GAN's; get the file anew.")
    return {name.rsplit("/", 1)[-1].split(":")[0]: np.asarray(group[name]) for name in names}


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value
