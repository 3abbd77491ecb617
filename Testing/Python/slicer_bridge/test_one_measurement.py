"""One measurement: panel, report, demonstration and command line give the same figures of the same attack."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import json
import re

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.measure.attack_effect import NOISE, PROTECTED
from MITSGANLib.protection import protector
from MITSGANLib.slicer_bridge.volumes import ras_from_voxel
from MITSGANTrainingLib.commandline import main
from panel_data import add_scan


@pytest.fixture
def small_phantom(phantom, monkeypatch):
    """The phantom's slices around its nodule, for whoever asks for the phantom."""
    k, j, i = phantom.nodule_kji
    volume = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[k - 10 : k + 10])
    small = dataclasses.replace(phantom, volume=volume, nodule_kji=(10, j, i))
    monkeypatch.setattr("MITSGANTrainingLib.commands.demo.thorax_phantom", lambda **_options: small)
    return small


@pytest.mark.slow
def test_all_four_give_the_same_figures(small_phantom, panel, tmp_path, monkeypatch):
    """The whole change by protection, the attack's own, how far protection and each draw of noise move the forgery."""
    # The demonstration: who chooses the places.
    monkeypatch.setattr("MITSGANTrainingLib.commands.demo.load_protector", protector.load_protector)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--phantom", "--targets", "1", "--device", "cpu", "--json", str(tmp_path / "demo.json")]) == 0
    demo = json.loads((tmp_path / "demo.json").read_text())
    target = next(one for one in demo["targets"] if one["action"] == "remove")
    kji, expected = target["kji"], _figures(demo["whole"], target)
    assert expected["attack"] > 0
    assert expected["draw 0"] < expected["draw 1"], "a spread"

    # The command line.
    files = {name: str(tmp_path / f"{name}.nrrd") for name in ("scan", "protected", "scan-attacked", "both")}
    save_volume(small_phantom.volume, files["scan"])
    ready = protector.load_protector()
    save_volume(protector.protect(small_phantom.volume, model=ready, device="cpu"), files["protected"])
    for before, after in (("scan", "scan-attacked"), ("protected", "both")):
        record = tmp_path / f"{after}.json"
        words = ["--action", "remove", f"--voxel={','.join(map(str, kji))}", "--device", "cpu", "--json", str(record)]
        assert main(["attack", files[before], files[after], *words]) == 0
    attack = json.loads((tmp_path / "scan-attacked.json").read_text())
    assert attack["change"]["rmse_hu"] == pytest.approx(expected["attack"], abs=6e-4)
    record = tmp_path / "compare.json"
    words = ["--attacked", files["scan-attacked"], files["both"], "--device", "cpu", "--json", str(record)]
    assert main(["compare", files["scan"], files["protected"], *words]) == 0
    compared = json.loads(record.read_text())
    assert _figures(compared["whole"], compared["attack"]) == pytest.approx(expected)

    # The panel.
    source = add_scan(panel, load_volume(files["scan"]))
    protected = panel.logic.protect(source, device="cpu")
    ras = ras_from_voxel(source, kji)
    attacked = panel.logic.simulateAttack(source, protected, ras, "remove", device="cpu")
    effect = panel.logic.compare(source, protected, attacked, attacker="default", device="cpu").effect
    assert _figures(effect.protection.to_dict(), effect.attack.to_dict()) == pytest.approx(expected)

    from MITSGANLib.slicer_bridge.panel.sentences import about_effect  # imports qt, which the panel's fixture brings

    # The report: of what was measured, and anew.
    page, anew = tmp_path / "report.html", tmp_path / "anew.html"
    panel.logic.saveReport(source, protected, ras, page, "remove", attacked_nodes=attacked, effect=effect, device="cpu")
    panel.logic.saveReport(source, protected, ras, anew, "remove", device="cpu")
    rows = [re.search(r"<tr><td>remove, slice .*?</tr>", path.read_text(encoding="utf-8")) for path in (page, anew)]
    assert rows[0].group() == rows[1].group()
    html = page.read_text(encoding="utf-8")
    row = re.search(r"<tr><td>remove, slice .*?</tr>", html).group()
    forgery = effect.attack.forgery
    low, high = (f"{share:.1%}" for share in (forgery.noise_shares[0], forgery.noise_shares[-1]))
    assert f"<td>{expected['attack']:.1f} HU</td>" in row
    assert f"({forgery.share(PROTECTED):.1%})" in row
    assert f"<td>{forgery.share(NOISE):.1%} ({low} to {high})</td>" in row
    said = re.findall(r"[\d.]+%", about_effect(effect))
    assert len(said) >= 4
    assert [share for share in said if share not in row] == [], "the panel's own digits"
    assert f"changed the scan by RMSE {expected['protection']:.1f} HU" in html
    assert f"own noise is {effect.noise_sd_hu:.1f} HU" in html


def _figures(whole: dict, attack: dict) -> dict:
    return {
        "protection": whole["metrics"]["rmse"]["value"],
        "attack": attack["attack_rmse_hu"],
        "moved": attack["relative_forgery_change"]["protected"],
        "noise": attack["relative_forgery_change"]["noise"],
        **{f"draw {number}": share for number, share in enumerate(attack["noise_draws"])},
    }
