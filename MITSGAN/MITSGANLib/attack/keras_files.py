"""The authors' published files: Keras HDF5 weights (without Keras), ``normalization.npy``, ``equalization.pkl``.

Pickles can run code when opened, and attacker files come from strangers: only plain numeric arrays are let in.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
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
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
_MAXIMUM_BYTES = 64 * 2**20
# The published generator's largest layer has 164 MB.
_MOST_LAYER_BYTES = 1 << 30

# Reads what is read below, and ends with 1 at any error, which is met here, too.
PROBE = f"""
import sys, h5py
with h5py.File(sys.argv[1], "r") as file:
    root = file.get("model_weights", file)
    for name in root.attrs["layer_names"]:
        for weight in root[name].attrs.get("weight_names", []):
            if root[name][weight].nbytes <= {_MOST_LAYER_BYTES}:
                root[name][weight][()]
"""
PROBE_SECONDS, PROBE_BYTES_PER_SECOND = 30, 10e6

Layer = dict[str, np.ndarray]


class NumericUnpickler(pickle.Unpickler):
    """Reads numeric arrays in lists and dictionaries, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """:raises ModelError: when the pickle asks for anything else."""
        of_numpy_2 = module.replace("numpy.core", "numpy._core")
        if (of_numpy_2, name) in _ALLOWED:
            return super().find_class(of_numpy_2, name)
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
        loaded = NumericUnpickler(io.BytesIO(content), encoding="latin1").load()
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
        arrays = _named(convolutions, norms)
        # Without memory for its weights first: a damaged file may ask for more than there is.
        with torch.device("meta"):
            wanted = CTGANGenerator(config).state_dict()
        if any(wanted[name].shape != array.shape for name, array in arrays.items()):
            raise ValueError("other shapes")
        network = CTGANGenerator(config)
        state = {name: torch.from_numpy(np.array(values, dtype=np.float32)) for name, values in arrays.items()}
        network.load_state_dict(state, strict=False)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"The layers of {path} do not fit CT-GAN's generator ({error}).") from error
    return network.eval().requires_grad_(False)


def _named(convolutions: Sequence[Layer], norms: Sequence[Layer]) -> Layer:
    """The arrays of the generator's layers under torch's names and in torch's order of axes.

    :raises KeyError, ValueError: a layer lacks an array, or its kernel has not five axes.
    """
    down, up = [f"down.{block}" for block in range(5)], [f"up.{block}" for block in range(4)]
    found = {}
    for name, layer in zip([*down, *(f"{block}.same" for block in up), "last"], convolutions, strict=True):
        found[f"{name}.conv.weight"] = np.transpose(layer["kernel"], (4, 3, 0, 1, 2))
        found[f"{name}.conv.bias"] = layer["bias"]
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for block, layer in zip([*down[1:], *up], norms, strict=True):
        found |= {f"{block}.norm.{name}": layer[keras] for name, keras in names.items()}
    return found


def _keras_layers(path: Path) -> tuple[list[Layer], list[Layer]]:
    """Weights of the 3-D convolutions and of the batch norms, each in the order of the model's layers."""
    import h5py

    _require_readable(path)
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
    return convolutions, [layer for layer in layers if "moving_mean" in layer]


def _require_readable(path: Path) -> None:
    """Let another process read the file first: at some damage the HDF5 library crashes, or never comes back.

    :raises ModelError: that process did not end by itself.
    """
    seconds = PROBE_SECONDS + path.stat().st_size / PROBE_BYTES_PER_SECOND if path.is_file() else PROBE_SECONDS
    try:
        code = subprocess.run(
            [sys.executable, "-I", "-c", PROBE, str(path)], check=False, capture_output=True, timeout=seconds
        ).returncode
    except subprocess.TimeoutExpired:
        code = -1
    except OSError:  # there is no interpreter to start
        return
    if code not in (0, 1):
        raise ModelError(f"{path} is damaged; get the file anew.")


def _layer_weights(group: Any) -> Layer:
    names = [_text(name) for name in group.attrs.get("weight_names", [])]
    if sum(group[name].nbytes for name in names) > _MOST_LAYER_BYTES:
        raise ModelError("A layer of the file is larger than any of CT-GAN's; get the file anew.")
    return {name.rsplit("/", 1)[-1].split(":")[0]: np.asarray(group[name]) for name in names}


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value
