"""The attack on a scan: marked, local, refused where meaningless; attackers of both kinds of files."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from keras_file import write_keras_file
from MITSGANLib.attack import keras_files
from MITSGANLib.attack.attacker import load_attacker, own_tensors, simulate_attack, tampered_box
from MITSGANLib.attack.chain import mask_center
from MITSGANLib.attack.keras_files import load_equalization, load_keras_generator, load_numeric_pickle
from MITSGANLib.attack.networks import CTGANConfig, CTGANGenerator
from MITSGANLib.errors import ModelError, TargetError
from MITSGANLib.weights import ModelCard, actions_of, write_weights
from scipy import ndimage


class TestSimulatedAttack:
    @pytest.mark.parametrize("action", ["inject", "remove"])
    def test_is_marked_and_changes_the_neighborhood_of_the_target(self, phantom, untrained_attackers, action):
        k, j, i = phantom.nodule_kji
        attacked = simulate_attack(phantom.volume, (k, j, i), action, attacker=untrained_attackers[action])
        assert attacked.provenance.is_simulated_attack
        assert "SIMULATED ATTACK" in attacked.provenance.steps[-1].description
        assert attacked.same_geometry(phantom.volume)
        changed = np.argwhere(attacked.hu != phantom.volume.hu)
        assert len(changed) > 50
        # 32 mm are 13 slices of 2.5 mm; the touch-up reaches 1.3 times as many voxels along each axis.
        assert (np.abs(changed - (k, j, i)).max(axis=0) <= 9).all()
        assert np.abs(np.median(changed, axis=0) - (k, j, i)).max() <= 3

    def test_is_deterministic(self, phantom, untrained_attackers):
        first, second = (
            simulate_attack(phantom.volume, phantom.nodule_kji, "remove", attacker=untrained_attackers["remove"])
            for _ in range(2)
        )
        assert (first.hu == second.hu).all()

    @pytest.mark.parametrize(
        ("kji", "words"),
        [((500, 10, 10), "outside"), ((-1, 60, 60), "outside"), ((1, 60, 60), "border"), ((24, 8, 8), "air")],
    )
    def test_meaningless_targets_are_refused_with_the_reason(self, phantom, untrained_attackers, kji, words):
        with pytest.raises(TargetError, match=words):
            simulate_attack(phantom.volume, kji, "inject", attacker=untrained_attackers["inject"])

    def test_an_injector_does_not_remove(self, phantom, untrained_attackers):
        with pytest.raises(ModelError, match="inject"):
            simulate_attack(phantom.volume, phantom.nodule_kji, "remove", attacker=untrained_attackers["inject"])

    def test_cube_is_the_one_the_generator_replaces(self, phantom):
        box = tampered_box(phantom.volume, phantom.nodule_kji)
        edges = [(part.stop - part.start) * mm for part, mm in zip(box, phantom.volume.spacing_kji, strict=True)]
        assert edges == pytest.approx([32, 32, 32], abs=2)


@pytest.fixture
def own_folder(tmp_path, untrained_attackers) -> Path:
    for action, role in (("inject", "injector"), ("remove", "remover")):
        attacker = untrained_attackers[action]
        generator = attacker.inpainter.generator
        card = ModelCard(
            name=role, kind=role, description="",
            architecture={"class": "CTGANGenerator", "config": {"base_filters": 4}},
            data={}, training={}, figures={}, limits="", seed=0, command="", commit="",
        )  # fmt: skip
        write_weights(tmp_path / f"{role}.safetensors", own_tensors(generator, attacker.inpainter.equalization), card)
    return tmp_path


class TestOwnFiles:
    def test_load_gives_the_same_attack_within_half_precision(self, own_folder, phantom, untrained_attackers):
        loaded = load_attacker(own_folder, "remove")
        expected = simulate_attack(phantom.volume, phantom.nodule_kji, "remove", attacker=untrained_attackers["remove"])
        result = simulate_attack(phantom.volume, phantom.nodule_kji, "remove", attacker=loaded)
        difference = np.abs(result.hu.astype(int) - expected.hu)
        changed = expected.hu != phantom.volume.hu
        assert changed.sum() > 50
        assert np.percentile(difference[changed], 90) <= 3

    def test_a_changed_byte_is_refused(self, own_folder):
        path = own_folder / "injector.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not those its model card describes"):
            load_attacker(own_folder, "inject")

    @pytest.mark.parametrize("damage", ["missing", "not json", "unknown field", "other width"])
    def test_a_bad_card_is_refused(self, own_folder, damage):
        path = own_folder / "injector.json"
        card = json.loads(path.read_text())
        if damage == "missing":
            path.unlink()
        elif damage == "not json":
            path.write_text("{")
        elif damage == "unknown field":
            path.write_text(json.dumps({**card, "surprise": 1}))
        else:
            card["architecture"]["config"]["base_filters"] = 5
            path.write_text(json.dumps(card))
        with pytest.raises(ModelError):
            load_attacker(own_folder, "inject")

    def test_a_folder_says_what_it_can_do(self, own_folder):
        assert actions_of(own_folder) == ["inject", "remove"]
        (own_folder / "injector.safetensors").unlink()
        assert actions_of(own_folder) == ["remove"]
        (own_folder / "INJ").mkdir()
        assert actions_of(own_folder) == ["inject", "remove"]
        assert actions_of(own_folder / "nowhere") == []

    def test_an_installed_attacker_without_a_remover_says_so(self, tmp_path, own_folder, monkeypatch):
        installed = tmp_path / "models" / "attackers" / "half"
        installed.mkdir(parents=True)
        monkeypatch.setattr("MITSGANLib.attack.attacker.MODELS_FOLDER", tmp_path / "models")
        monkeypatch.setattr("MITSGANLib.attack.attacker.available_attackers", lambda: ["half"])
        for file in own_folder.glob("injector.*"):
            file.rename(installed / file.name)
        assert load_attacker("half", "inject").action == "inject"
        with pytest.raises(ModelError, match="'half' has no remover"):
            load_attacker("half", "remove")

    def test_unknown_name_lists_what_is_there(self):
        with pytest.raises(ModelError, match="neither an installed attacker"):
            load_attacker("no-such-attacker", "inject")


@pytest.fixture
def trained_like_generator() -> CTGANGenerator:
    """Random weights with batch statistics that differ from channel to channel, so that no mix-up goes unseen."""
    torch.manual_seed(3)
    generator = CTGANGenerator(CTGANConfig(base_filters=3))
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            for values, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                torch.nn.init.uniform_(values, low, high)
    return generator.eval().requires_grad_(False)


class TestPublishedFiles:
    @pytest.mark.slow
    @pytest.mark.parametrize("nested", [True, False])
    def test_keras_weights_give_the_same_output(self, tmp_path, trained_like_generator, nested):
        write_keras_file(tmp_path / "G_model.h5", trained_like_generator, nested)
        loaded = load_keras_generator(tmp_path / "G_model.h5")
        x = mask_center(torch.rand(2, 1, 32, 32, 32) - 0.5)
        assert loaded.config.base_filters == 3
        assert torch.equal(loaded(x), trained_like_generator(x))

    def test_a_convolution_follows_keras_same_padding(self, trained_like_generator):
        """Against SciPy: at stride 1 a 4x4x4 kernel sees one voxel before and two after; at stride 2 one and one."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((8, 8, 8)).astype(np.float32)
        down, last = trained_like_generator.down[0].conv, trained_like_generator.last
        with torch.no_grad():
            ours = down(torch.from_numpy(x)[None, None])[0, 0].numpy()
        kernel = down.weight[0, 0].numpy()
        padded = np.pad(x, 1)
        expected = sum(
            kernel[a, b, c] * padded[a : a + 7 : 2, b : b + 7 : 2, c : c + 7 : 2]
            for a in range(4) for b in range(4) for c in range(4)
        ) + down.bias[0].item()  # fmt: skip
        assert np.allclose(ours, expected, atol=1e-5)

        channels = last.conv.in_channels
        many = rng.standard_normal((channels, 8, 8, 8)).astype(np.float32)
        with torch.no_grad():
            ours = last(torch.from_numpy(many)[None])[0, 0].numpy()
        expected = last.conv.bias.item() + sum(
            # origin -1 of an even kernel: one voxel before, two after
            ndimage.correlate(many[n], last.conv.weight[0, n].numpy(), mode="constant", origin=-1)
            for n in range(channels)
        )
        assert np.allclose(ours, expected, atol=1e-4)

    @pytest.mark.parametrize("probe", ["import time; time.sleep(60)", "import os, signal; os.kill(os.getpid(), 11)"])
    def test_files_at_which_the_library_hangs_or_crashes_are_refused(
        self, tmp_path, trained_like_generator, monkeypatch, probe
    ):
        """Damaged files do that to HDF5, so another process reads them first."""
        write_keras_file(tmp_path / "G_model.h5", trained_like_generator)
        monkeypatch.setattr(keras_files, "PROBE", probe)
        monkeypatch.setattr(keras_files, "PROBE_SECONDS", 1)
        with pytest.raises(ModelError, match=r"G_model\.h5 is damaged"):
            load_keras_generator(tmp_path / "G_model.h5")

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("width", [1, 5000])
    def test_arrays_of_another_width_take_no_memory(self, tmp_path, width):
        """The width is that of the first kernel; the others say otherwise."""
        path = tmp_path / "G_model.h5"
        write_keras_file(path, CTGANGenerator(CTGANConfig(base_filters=2)).eval())
        with h5py.File(path, "a") as file:
            group = file["model_weights"]["conv3d_6"]
            del group["conv3d_6/kernel:0"]
            group.create_dataset("conv3d_6/kernel:0", data=np.zeros((4, 4, 4, 1, width), np.float32))
        with pytest.raises(ModelError, match="do not fit"):
            load_keras_generator(path)

    @pytest.mark.slow
    @pytest.mark.parametrize("damage", ["not hdf5", "discriminator", "wrong shape"])
    def test_other_files_are_refused(self, tmp_path, trained_like_generator, damage):
        path = tmp_path / "G_model.h5"
        write_keras_file(path, trained_like_generator)
        if damage == "not hdf5":
            path.write_bytes(b"no")
        else:
            with h5py.File(path, "a") as file:
                root = file["model_weights"]
                if damage == "discriminator":
                    root.attrs["layer_names"] = root.attrs["layer_names"][:10]
                else:
                    group = root["conv3d_8"]
                    del group["conv3d_8/kernel:0"]
                    group.create_dataset("conv3d_8/kernel:0", data=np.zeros((4, 4, 4, 2, 12)))
        with pytest.raises(ModelError):
            load_keras_generator(path)

    def test_published_tables(self, real_ct):
        """Fixed points of the published injector's table, read off the authors' file."""
        folder = real_ct.parent / "ctgan-lut" / "INJ"
        if not folder.is_dir():
            pytest.skip(f"the published look-up tables are not at {folder}")
        table = load_equalization(folder)
        hu = [-1000, -950, -900, -850, -800, -750, -700, -500, 0, 50, 100, 1000]
        expected = [-0.493, -0.463, -0.349, -0.139, 0.035, 0.134, 0.188, 0.270, 0.392, 0.424, 0.450, 0.498]
        values = table.to_network(torch.tensor(hu, dtype=torch.float64)).numpy()
        assert values == pytest.approx(expected, abs=6e-4)

    @pytest.mark.slow
    def test_a_folder_of_published_files_attacks(self, tmp_path, phantom, trained_like_generator, untrained_attackers):
        table = untrained_attackers["inject"].inpainter.equalization
        for name in ("INJ", "REM"):
            folder = tmp_path / name
            folder.mkdir()
            write_keras_file(folder / "G_model.h5", trained_like_generator)
            (folder / "equalization.pkl").write_bytes(pickle.dumps([table.bins, table.cdf], protocol=2))
            np.save(folder / "normalization.npy", np.array([table.mean, table.minimum, table.maximum]))
        attacked = simulate_attack(phantom.volume, phantom.nodule_kji, "inject", attacker=tmp_path)
        assert (attacked.hu != phantom.volume.hu).any()
        shutil.rmtree(tmp_path / "REM")
        with pytest.raises(ModelError, match="REM"):
            load_attacker(tmp_path, "remove")


class _Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


class TestUnpickler:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_numeric_arrays_come_through(self, tmp_path, protocol):
        path = tmp_path / "equalization.pkl"
        arrays = [np.linspace(0, 1, 7), np.arange(7)]
        path.write_bytes(pickle.dumps(arrays, protocol=protocol))
        loaded = load_numeric_pickle(path)
        assert all((a == b).all() for a, b in zip(loaded, arrays, strict=True))

    @pytest.mark.parametrize(
        "content",
        [
            pickle.dumps([_Evil()]),
            pickle.dumps([np.array([_Evil()], dtype=object)]),
            pickle.dumps([np.array(["text"])]),
            pickle.dumps({"a": 1}),
            pickle.dumps(["text"]),
            b"",
            b"\x80\x04garbage",
        ],
        ids=["call", "object array", "text array", "dict", "text", "empty", "garbage"],
    )
    def test_anything_else_is_refused_and_nothing_runs(self, tmp_path, capsys, content):
        path = tmp_path / "equalization.pkl"
        path.write_bytes(content)
        with pytest.raises(ModelError):
            load_numeric_pickle(path)
        assert capsys.readouterr().out == ""
