"""The task *Examine this scan* and the state at the top, clicked through: what is said of which volume."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_factory import ct_series, phantom_hu
from MITSGANLib.examination.verdict import Outcome
from MITSGANLib.files.dicom.read import read_series
from MITSGANLib.files.dicom.series import choose_series, scan_dicom
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.files.volume_files import read_file, write_file
from MITSGANLib.keys.key_files import Key
from MITSGANLib.keys.signing_keys import load_signing_key, new_signing_key, save_signing_key
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.phantom import sample_phantom, thorax_phantom
from MITSGANLib.scan.volume import SIMULATED_ATTACK, CTVolume, ProcessingStep, Provenance
from MITSGANLib.signature.signing import Signers, sign_scan
from MITSGANLib.watermark.pattern import OPEN_KEY, watermark_key

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.slicer_bridge.layout import VIEWS, comparison_is_shown
from MITSGANLib.slicer_bridge.origin import STEPS_ATTRIBUTE, steps_of
from MITSGANLib.slicer_bridge.volumes import node_from_volume, ras_from_voxel
from panel_data import (
    add_scan,
    choose,
    hu,
    node_names,
    opacities,
    ordinary_composites,
    place_target,
    snapshot,
    wait_until,
)

KEY = watermark_key(Key(bytes(range(32))))
PAINTED, ELSEWHERE = (7, 107, 98), (7, 107, 260)
CHANGED, UNTOLD = 1, 2


@pytest.fixture(scope="module")
def ct() -> CTVolume:
    """Both lungs in the voxels of a clinical scan."""
    whole = thorax_phantom((16, 340, 404), (2.5, 0.9, 0.9), seed=5, noise_hu=24).volume
    return dataclasses.replace(whole, hu=whole.hu[:, 40:260, 20:384].copy())


@pytest.fixture(scope="module")
def marked(ct) -> CTVolume:
    return protect(ct, model=watermark_alone())


@pytest.fixture(scope="module")
def few_slices(ct) -> dict[str, CTVolume]:
    """Half of it, which is enough to find a watermark: the open one, and one with the key."""
    half = dataclasses.replace(ct, hu=ct.hu[4:12])
    keys = {"open": OPEN_KEY, "keyed": KEY}
    return {kind: protect(half, model=watermark_alone(key)) for kind, key in keys.items()}


@pytest.fixture(scope="module")
def painted(marked) -> CTVolume:
    """The watermarked scan with 24 mm of the right lung copied to another place of it."""
    values = marked.hu.copy()
    values[4:12, 93:119, 80:106] = marked.hu[4:12, 101:127, 96:122]
    return marked.with_hu(values)


@pytest.fixture(scope="module")
def examinations() -> dict:
    """What was examined by any test of this file."""
    return {}


@pytest.fixture(autouse=True)
def once(monkeypatch, examinations, on_its_grid):  # noqa: ARG001
    """Examine the same voxels with the same history once: the panel is the subject here."""
    from MITSGANLib.examination import examiner

    examine = examiner.examine

    def remembered(volume, *, progress=None, **options):
        made_of = (volume.hu.tobytes(), volume.spacing, repr(volume.provenance.steps), *sorted(options.items()))
        for done in (0, 50):
            if progress:
                progress(done, 100)
        if made_of not in examinations:
            examinations[made_of] = examine(volume, progress=progress, **options)
        return examinations[made_of]

    monkeypatch.setattr(examiner, "examine", remembered)


@pytest.fixture
def signing(tmp_path) -> tuple[Path, Path]:
    private = tmp_path / "signing.pem"
    return private, save_signing_key(new_signing_key(), private)


def nameless(volume: CTVolume) -> CTVolume:
    """As from a file or from DICOM, which say nothing of what was done."""
    return dataclasses.replace(volume, provenance=Provenance("file"))


def from_file(panel, path: Path, name: str = "CT"):
    """Display a file as if Slicer had loaded it, without what the library reads from its header."""
    node = add_scan(panel, nameless(read_file(path)), name)
    node.AddDefaultStorageNode()
    node.GetStorageNode().SetFileName(str(path))
    panel.onParametersModified()
    return node


def axial_heights() -> list[float]:
    """World z in mm of the ordinary axial views."""
    names = [composite.GetLayoutName() for composite in ordinary_composites()]
    views = [slicer.mrmlScene.GetSingletonNode(name, "vtkMRMLSliceNode") for name in names]
    return [view.GetSliceToRAS().GetElement(2, 3) for view in views if view.GetOrientation() == "Axial"]


def rows(panel) -> list[list[str]]:
    table = panel.ui.placesTable
    return [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]


class TestState:
    def test_without_a_volume_and_without_a_ct(self, panel):
        assert "No CT is shown" in panel.ui.stateLabel.text
        assert not panel.ui.goThereButton.visible
        panel.ui.volumeSelector.setCurrentNode(
            slicer.util.addVolumeFromArray(np.arange(4096, dtype=np.int16).reshape(16, 16, 16), name="MR")
        )
        wait_until(lambda: "Cannot be told" in panel.ui.stateLabel.text)

    @pytest.mark.slow
    def test_a_scan_a_protected_and_an_attacked_one(self, loaded, scan):
        ui = loaded.ui
        assert ui.stateLabel.text == "<b>No record of protection</b>"
        ui.protectButton.click()
        assert "<b>Protected (untrained)</b> by MITSGAN, 20" in ui.stateLabel.text
        place_target(loaded, scan.nodule_kji)
        ui.simulateAttackButton.click()
        assert "<b>Simulated attack:</b> nodule added in slice 8" in ui.stateLabel.text
        assert ui.goThereButton.isVisible()
        ui.goThereButton.click()
        node = loaded._parameterNode.volume
        seen = [slicer.mrmlScene.GetSingletonNode(view.tag, "vtkMRMLSliceNode") for view in VIEWS.values()]
        height = pytest.approx(ras_from_voxel(node, scan.nodule_kji)[2])
        assert [view.GetSliceToRAS().GetElement(2, 3) for view in seen] == [height] * 4
        ui.volumeSelector.setCurrentNode(loaded._parameterNode.sourceVolume)
        assert "No record of protection" in ui.stateLabel.text

    @pytest.mark.slow
    def test_without_a_record_the_open_watermark_tells(self, panel, ct, marked):
        ui = panel.ui
        add_scan(panel, nameless(marked))
        wait_until(lambda: ui.stateLabel.text.startswith("<b>Protected</b>: it carries the open watermark"))
        assert not ui.protectButton.enabled
        assert "protected already" in ui.protectButton.toolTip
        add_scan(panel, nameless(ct), "Other CT")
        wait_until(lambda: "no open watermark" in ui.stateLabel.text)
        assert ui.stateLabel.text.startswith("<b>No record of protection</b>")
        assert ui.protectButton.enabled

    @pytest.mark.slow
    def test_what_slicer_itself_saves_keeps_the_record(self, panel, scan, marked, tmp_path):
        step = ProcessingStep(SIMULATED_ATTACK, "SIMULATED ATTACK", {"action": "inject", "target_kji": [8, 81, 44]})
        for volume, words in (
            (marked, "<b>Protected (open watermark)</b> by MITSGAN, 20"),
            (scan.volume.with_hu(scan.volume.hu, step), "<b>Simulated attack:</b> nodule added in slice 8"),
        ):
            made = node_from_volume(volume, "Made")
            path = tmp_path / f"{made.GetID()}.nrrd"
            made.GetStorageNode().SetFileName(str(path))
            assert made.GetStorageNode().WriteData(made)
            node = add_scan(panel, nameless(volume), "Loaded")
            node.AddDefaultStorageNode()
            node.GetStorageNode().SetFileName(str(path))
            panel.onParametersModified()
            assert node.GetAttribute(STEPS_ATTRIBUTE) is None
            assert words in panel.ui.stateLabel.text

    def test_presets_have_their_name(self, panel, scan):
        parameters = {"model": "mitsgan-small", "strength_hu": 16.0, "watermark": "open", "watermark_strength_hu": 10.0}
        step = ProcessingStep("protection", "x", parameters, "2026-01-02T03:04:05+00:00")
        add_scan(panel, scan.volume.with_hu(scan.volume.hu, step))
        assert "<b>Protected (default)</b> by MITSGAN, 2026-01-02" in panel.ui.stateLabel.text

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
    def test_a_file_tells_that_it_was_protected(self, panel, marked, tmp_path, suffix):
        write_file(marked, tmp_path / f"scan{suffix}")
        node = from_file(panel, tmp_path / f"scan{suffix}")
        assert node.GetAttribute(STEPS_ATTRIBUTE) is None
        assert "<b>Protected" in panel.ui.stateLabel.text
        assert not panel.ui.protectButton.enabled
        assert "protected already" in panel.ui.protectButton.toolTip

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
    def test_a_file_tells_that_it_is_simulated(self, panel, ct, tmp_path, suffix):
        step = ProcessingStep(SIMULATED_ATTACK, "SIMULATED ATTACK")
        write_file(ct.with_hu(ct.hu, step), tmp_path / f"scan{suffix}")
        node = from_file(panel, tmp_path / f"scan{suffix}")
        assert "<b>Simulated attack</b>" in panel.ui.stateLabel.text
        with pytest.raises(Exception, match="never exported as DICOM"):
            panel.logic.exportDicom(node, tmp_path / "out")

    @pytest.mark.slow
    def test_a_series_tells_how_it_was_protected(self, panel, standin, tmp_path):
        ct_series(phantom_hu((6, 64, 64))).write(tmp_path / "in")
        original = read_series(choose_series(scan_dicom(tmp_path / "in")))
        save_volume(protect(original, model=watermark_alone()), tmp_path / "out")
        standin.dicomDatabase.files = {path.name: path for path in (tmp_path / "out").iterdir()}
        node = node_from_volume(nameless(load_volume(tmp_path / "out")), "CT")
        node.SetAttribute("DICOM.instanceUIDs", " ".join(sorted(standin.dicomDatabase.files)))
        panel.ui.volumeSelector.setCurrentNode(node)
        assert "<b>Protected (open watermark)</b> by MITSGAN, 20" in panel.ui.stateLabel.text
        (step,) = steps_of(node)
        assert step.parameters["watermark_strength_hu"] == watermark_alone().watermark.budget.strength_hu

    def test_what_cannot_be_read_cannot_be_told(self, panel, scan):
        node = add_scan(panel, scan.volume)
        node.SetAttribute(STEPS_ATTRIBUTE, "{")
        node.GetImageData().Modified()
        panel.onParametersModified()
        assert "<b>Cannot be told:</b> What the attribute" in panel.ui.stateLabel.text
        assert not panel.ui.protectButton.enabled
        assert not panel.ui.examineButton.enabled


@pytest.mark.slow
class TestExamine:
    def test_it_needs_a_volume(self, panel):
        assert not panel.ui.examineButton.enabled
        assert "Select a CT volume" in panel.ui.examineButton.toolTip

    @pytest.mark.slow
    def test_what_was_painted_is_named_shown_and_gone_to(self, panel, painted, pictures, standin):
        ui = panel.ui
        node = add_scan(panel, painted, "CT")
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        node.SetAndObserveTransformNodeID(transform.GetID())
        ui.examineButton.click()
        assert standin.errors == []
        ((place, surely, why),) = rows(panel)
        # The middle of slices 4 to 11 lies between these two.
        middle = {f"slice {k}, right lung": (k, *PAINTED[1:]) for k in (7, 8)}
        assert place in middle
        assert ui.stateLabel.text == f"<b>Painted over:</b> {place}"
        assert "<b>Changed</b> in 1 place" in ui.verdictLabel.text
        assert "It carries the open watermark" in ui.verdictLabel.text
        assert surely == "surely"
        assert "copied tissue" in why
        assert "watermark missing" in why
        labels = panel._parameterNode.changeMap
        assert labels.GetParentTransformNode() is transform
        assert hu(labels)[PAINTED] == CHANGED
        assert not hu(labels)[:, :, 200:].any(), "the other lung"
        for composite in ordinary_composites():
            assert composite.GetLabelVolumeID() == labels.GetID()
        assert opacities() == [0.4]
        ui.showChangesCheckBox.checked = False
        assert opacities() == [0.0]
        ui.showChangesCheckBox.checked = True
        assert "changed" in ui.legendLabel.text
        assert "cannot be told" in ui.legendLabel.text
        assert "Not excluded" in ui.detailsLabel.text
        for composite in ordinary_composites():
            slicer.mrmlScene.GetSingletonNode(composite.GetLayoutName(), "vtkMRMLSliceNode").JumpSliceByOffsetting(
                0, 0, 0
            )
        ui.placesTable.cellClicked.emit(0, 1)
        assert axial_heights() == [pytest.approx(ras_from_voxel(node, middle[place])[2])]
        pictures.take("examined")

        other = add_scan(panel, painted, "Other CT")
        assert ui.verdictLabel.text == ""
        assert rows(panel) == []
        assert opacities() == [0.0], "it is not of this one"
        assert "No record" not in ui.stateLabel.text
        ui.volumeSelector.setCurrentNode(node)
        assert "Painted over" in ui.stateLabel.text
        assert opacities() == [0.4]
        hu(node)[0, 0, 0] += 1
        node.GetImageData().Modified()
        panel.onParametersModified()
        assert "Painted over" not in ui.stateLabel.text, "it is another image now"
        assert opacities() == [0.0]
        slicer.mrmlScene.RemoveNode(other)

    @pytest.mark.slow
    def test_another_examination_replaces_the_map(self, panel, painted):
        add_scan(panel, painted)
        for _ in range(2):
            panel.ui.examineButton.click()
            assert len(node_names("vtkMRMLLabelMapVolumeNode")) == 1

    @pytest.mark.slow
    def test_an_untouched_scan_is_never_called_genuine(self, panel, marked, standin):
        add_scan(panel, marked)
        place_target(panel, PAINTED)
        panel.ui.examineButton.click()
        assert standin.errors == []
        assert "Nothing found" in panel.ui.stateLabel.text
        assert "not “genuine”" in panel.ui.verdictLabel.text
        assert "At the target: nothing was found" in panel.ui.verdictLabel.text
        target = panel._parameterNode.targetPoint
        target.SetNthControlPointPositionWorld(0, ras_from_voxel(panel._parameterNode.volume, ELSEWHERE))
        panel.onParametersModified()
        assert "At the target: being looked at" in panel.ui.verdictLabel.text, "it takes a second"
        wait_until(lambda: "At the target: nothing was found" in panel.ui.verdictLabel.text)
        assert rows(panel) == []
        assert panel._parameterNode.changeMap is None or not (hu(panel._parameterNode.changeMap) == CHANGED).any()

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["open", "keyed"])
    def test_a_chosen_key_hides_neither_watermark(self, panel, dialogs, key_file, few_slices, kind):
        choose(panel, dialogs, "keyFile", key_file)
        add_scan(panel, nameless(few_slices[kind]))
        panel.ui.examineButton.click()
        words = "It carries your key's watermark" if kind == "keyed" else "It carries the open watermark"
        assert words in panel.ui.verdictLabel.text

    @pytest.mark.slow
    def test_without_its_key_a_watermark_cannot_be_told(self, panel, few_slices):
        add_scan(panel, few_slices["keyed"])
        panel.ui.examineButton.click()
        assert "Cannot be told" in panel.ui.stateLabel.text
        assert "needs the key file" in panel.ui.verdictLabel.text

    @pytest.mark.slow
    def test_a_simulated_attack_stays_one_whatever_is_found(self, panel, marked):
        step = ProcessingStep(SIMULATED_ATTACK, "SIMULATED ATTACK", {"action": "inject", "target_kji": list(PAINTED)})
        add_scan(panel, marked.with_hu(marked.hu, step))
        panel.ui.examineButton.click()
        assert "<b>Simulated attack:</b> nodule added in slice 7" in panel.ui.stateLabel.text
        assert "found no place" in panel.ui.stateLabel.text
        assert "The voxels show no place" in panel.ui.verdictLabel.text

    def test_canceled_it_leaves_what_was_there(self, panel, marked):
        ui = panel.ui
        add_scan(panel, marked)
        before = snapshot()
        ui.examineProgressBar.valueChanged.connect(
            lambda _done: ui.examineButton.text == "Cancel" and ui.examineButton.click()
        )
        ui.examineButton.click()
        assert "Canceled" in ui.statusLabel.text
        assert snapshot() == before
        assert ui.examineButton.text == "Examine"
        assert ui.verdictLabel.text == ""

    def test_closing_the_scene_stops_it(self, panel, marked, standin):
        ui = panel.ui
        add_scan(panel, marked)
        ui.examineProgressBar.valueChanged.connect(lambda done: done > 0 and slicer.mrmlScene.Clear(False))
        ui.examineButton.click()
        assert standin.errors == []
        assert ui.verdictLabel.text == ""
        assert "No CT is shown" in ui.stateLabel.text

    def test_it_goes_on_while_another_volume_is_displayed(self, panel, marked, scan):
        ui = panel.ui
        node = add_scan(panel, marked, "First")
        other = node_from_volume(scan.volume, "Other")
        ui.examineProgressBar.valueChanged.connect(lambda _done: setattr(panel._parameterNode, "volume", other))
        ui.examineButton.click()
        assert "First was examined" in ui.statusLabel.text
        assert "Nothing found" not in ui.stateLabel.text
        ui.volumeSelector.setCurrentNode(node)
        assert "Nothing found" in ui.stateLabel.text


@pytest.mark.slow
class TestSignature:
    @pytest.fixture
    def signed(self, scan, tmp_path, signing) -> Path:
        write_file(scan.volume, tmp_path / "in.nrrd")
        sign_scan(tmp_path / "in.nrrd", tmp_path / "signed.nrrd", Signers(load_signing_key(signing[0])))
        return tmp_path / "signed.nrrd"

    @pytest.mark.slow
    def test_an_intact_file_is_said_to_be_so_by_the_key_that_was_chosen(self, panel, dialogs, signed, signing):
        from_file(panel, signed)
        assert "<b>Signed</b>, not verified yet" in panel.ui.stateLabel.text
        panel.ui.examineButton.click()
        assert "Anyone can sign" in panel.ui.verdictLabel.text
        assert "intact" not in panel.ui.stateLabel.text
        choose(panel, dialogs, "publicKey", signing[1])
        panel.ui.examineButton.click()
        assert "<b>Signed: intact</b>, by the key that you chose" in panel.ui.stateLabel.text

    @pytest.mark.slow
    def test_one_changed_voxel_is_found_named_and_shown(self, panel, signed, pictures):
        volume = read_file(signed)
        values = volume.hu.copy()
        values[5, 70, 40] += 1
        write_file(dataclasses.replace(volume, hu=values, provenance=Provenance("x")), signed, overwrite=True)
        from_file(panel, signed)
        panel.ui.examineButton.click()
        assert "<b>Changed since it was signed:</b> slice 5" in panel.ui.stateLabel.text
        assert rows(panel)[0][2] == "not as signed"
        labels = hu(panel._parameterNode.changeMap)
        assert np.argwhere(labels).min(axis=0).tolist() == [5, 64, 32]
        assert np.argwhere(labels).max(axis=0).tolist() == [5, 95, 63]
        assert "changed tile" in panel.ui.legendLabel.text
        assert not comparison_is_shown()
        pictures.take("verified")

    def test_the_signature_of_another_image_is_not_counted(self, panel, dialogs, signed, signing):
        node = from_file(panel, signed)
        choose(panel, dialogs, "publicKey", signing[1])
        hu(node)[5, 70, 40] += 1
        node.GetImageData().Modified()
        panel.onParametersModified()
        panel.ui.examineButton.click()
        assert "intact" not in panel.ui.stateLabel.text
        assert "shows another image" in panel.ui.verdictLabel.text

    def test_an_altered_manifest_is_a_change(self, panel, signed):
        manifest = Path(f"{signed}.manifest.json")
        manifest.write_bytes(manifest.read_bytes().replace(b"1", b"2", 1))
        from_file(panel, signed)
        panel.ui.examineButton.click()
        assert "<b>Changed:</b>" in panel.ui.stateLabel.text
        assert "altered" in panel.ui.verdictLabel.text

    def test_files_that_are_gone_are_said_to_be(self, panel, standin, scan, tmp_path):
        node = add_scan(panel, scan.volume)
        node.SetAttribute("DICOM.instanceUIDs", "1.2.3")
        panel.ui.examineButton.click()
        assert standin.errors == []
        assert "No signature was looked for" in panel.ui.verdictLabel.text
        assert str(tmp_path) not in panel.ui.verdictLabel.text

    def test_a_series_with_a_changed_slice(self, panel, standin, tmp_path, signing):
        ct_series(phantom_hu((6, 40, 40))).write(tmp_path / "in")
        sign_scan(tmp_path / "in", tmp_path / "signed", Signers(load_signing_key(signing[0])))
        files = sorted((tmp_path / "signed").iterdir())
        dataset = pydicom.dcmread(files[4])
        stored = dataset.pixel_array.copy()
        stored[3, 4] += 1
        dataset.PixelData = stored.tobytes()
        dataset.save_as(files[4])
        standin.dicomDatabase.files = {path.name: path for path in files}
        node = node_from_volume(nameless(load_volume(tmp_path / "signed")), "CT")
        node.SetAttribute("DICOM.instanceUIDs", " ".join(path.name for path in files))
        panel.ui.volumeSelector.setCurrentNode(node)
        assert "not verified yet" in panel.ui.stateLabel.text
        panel.ui.examineButton.click()
        assert "Changed since it was signed" in panel.ui.stateLabel.text


@pytest.mark.slow
def test_the_story_works_on_the_built_in_sample():
    """Untouched, protected with the installed default, with its nodule removed, and with another added."""
    from MITSGANLib.attack.attacker import simulate_attack
    from MITSGANLib.examination.examiner import examine
    from MITSGANLib.protection.presets import available_protectors
    from MITSGANLib.weights import available_attackers

    if not available_protectors() or not available_attackers():
        pytest.skip("no models are installed")
    sample = sample_phantom()
    nodule, healthy = sample.nodule_kji, (26, 146, 314)
    assert examine(sample.volume).places == ()
    protected = protect(sample.volume, device="cpu")
    verdict = examine(protected).verdict
    assert verdict.outcome is Outcome.NOTHING_FOUND
    assert dict(verdict.told)["watermark"] > 0.9
    removed = examine(simulate_attack(protected, nodule, "remove", device="cpu")).verdict
    assert removed.places[0].is_sure
    assert np.linalg.norm(np.subtract(removed.places[0].kji, nodule) * (2.5, 0.9, 0.9)) < 10
    injected = examine(simulate_attack(protected, healthy, "inject", device="cpu"))
    assert injected.at(healthy).strength >= 1, "a small one is at least changed where somebody asks"
