"""CT-GAN's generator as Keras writes it, for tests of the reader."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from MITSGANLib.attack.networks import CTGANGenerator


def write_keras_file(path: Path, generator: CTGANGenerator, nested: bool = True) -> None:
    """A file as Keras writes it: layers in order, kernels (depth, height, width, in, out)."""
    convolutions = [b.conv for b in generator.down] + [b.same.conv for b in generator.up] + [generator.last.conv]
    norms = [b.norm for b in generator.down[1:]] + [b.norm for b in generator.up]
    layers: list[tuple[str, dict[str, np.ndarray]]] = [("input_image", {})]
    for number, conv in enumerate(convolutions):
        kernel = conv.weight.detach().numpy().transpose(2, 3, 4, 1, 0)
        layers.append((f"conv3d_{number + 6}", {"kernel:0": kernel, "bias:0": conv.bias.detach().numpy()}))
        layers.append((f"leaky_re_lu_{number}", {}))
        # d1 and the last layer have no batch norm
        if 1 <= number <= 8:
            norm = norms[number - 1]
            values = {
                "gamma:0": norm.weight, "beta:0": norm.bias,
                "moving_mean:0": norm.running_mean, "moving_variance:0": norm.running_var,
            }  # fmt: skip
            values = {name: value.detach().numpy() for name, value in values.items()}
            layers.append((f"batch_normalization_{number}", values))
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if nested else file
        root.attrs["layer_names"] = [name.encode() for name, _ in layers]
        for name, weights in layers:
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{weight}".encode() for weight in weights]
            for weight, values in weights.items():
                group.create_dataset(f"{name}/{weight}", data=values)
