"""The sheet of forgeries: what it shows is what the attack does, at seeded places."""

from __future__ import annotations

import io

import numpy as np
import pytest
from MITSGANLib.attack.attacker import simulate_attack
from MITSGANLib.files.storage import save_volume
from MITSGANLib.scan.targets import Target
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.evaluation.sheet import draw_sheet, forge
from PIL import Image
from training_data import write_untrained_attackers


@pytest.fixture(scope="module")
def attackers(untrained_attackers):
    return [untrained_attackers[action] for action in ("inject", "remove")]


def test_planes_are_those_of_the_attack_through_the_target(phantom, attackers):
    target = Target("remove", phantom.nodule_kji, "the nodule")
    (forgery,) = forge(phantom.volume, "phantom", [target], attackers)
    k, j, i = phantom.nodule_kji
    attacked = simulate_attack(phantom.volume, phantom.nodule_kji, "remove", attacker=attackers[1])
    np.testing.assert_array_equal(forgery.axial.before, phantom.volume.hu[k])
    np.testing.assert_array_equal(forgery.axial.after, attacked.hu[k])
    np.testing.assert_array_equal(forgery.coronal.before, phantom.volume.hu[:, j])
    np.testing.assert_array_equal(forgery.coronal.after, attacked.hu[:, j])
    assert forgery.axial.center == (j, i)
    assert forgery.coronal.center == (k, i)
    assert np.any(forgery.axial.after != forgery.axial.before)


@pytest.mark.slow
def test_the_picture_has_a_column_for_each_place(phantom, attackers):
    places = [Target("inject", phantom.nodule_kji, "a place")]
    one = forge(phantom.volume, "phantom", places, attackers)
    narrow, wide = (Image.open(io.BytesIO(draw_sheet([("inject", one * count)], "Forgeries"))).size for count in (4, 8))
    assert wide[0] > 1.7 * narrow[0]
    assert wide[1] == narrow[1]


@pytest.mark.slow
def test_the_command_writes_a_picture_and_replaces_none(phantom, untrained_attackers, tmp_path, capsys):
    scan, sheet = tmp_path / "scan.nrrd", tmp_path / "sheet.png"
    save_volume(phantom.volume, scan)
    write_untrained_attackers(tmp_path, untrained_attackers)
    attacker = str(tmp_path / "attackers" / "untrained")
    options = ["sheet", str(sheet), str(scan), "--attackers", attacker, "--per-action", "1"]
    assert main(options) == 0
    assert Image.open(sheet).size[0] > 200
    before = sheet.read_bytes()
    assert main(options) == 4
    assert "already exists" in capsys.readouterr().err
    assert sheet.read_bytes() == before
    assert main([*options, "--overwrite"]) == 0
    assert sheet.read_bytes() == before, "seeded"


@pytest.mark.slow
def test_an_attacker_that_only_injects_has_one_row(phantom, untrained_attackers, tmp_path):
    scan = tmp_path / "scan.nrrd"
    save_volume(phantom.volume, scan)
    write_untrained_attackers(tmp_path, untrained_attackers)
    folder = tmp_path / "attackers" / "untrained"
    heights = []
    for removed in ("", "remover.safetensors"):
        if removed:
            (folder / removed).unlink()
        sheet = tmp_path / f"sheet-{removed}.png"
        assert main(["sheet", str(sheet), str(scan), "--attackers", str(folder), "--per-action", "1"]) == 0
        heights.append(Image.open(sheet).size[1])
    assert heights[1] < 0.65 * heights[0]


def test_no_places_are_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sheet", str(tmp_path / "a.png"), "scan.nrrd", "--per-action", "0"])
    assert stopped.value.code == 2
    assert "not a whole number above 0" in capsys.readouterr().err
