"""The README's table of threats, row by row: what ``mitsgan examine`` says, and what it does not.

Copies with their source are in ``test_examination.py``. Reading a scan leaves nothing to examine. The other columns
are in ``Testing/Python/test_threats.py``. How often on real scans: docs/results/reveal.md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import copy_suite
import forgeries
import numpy as np
import pydicom
import pytest
from dicom_factory import ct_series
from MITSGANLib.attack.attacker import load_attacker, simulate_attack
from MITSGANLib.budget.budget import WATERMARK_BUDGET
from MITSGANLib.examination.examiner import Examination, examine
from MITSGANLib.examination.verdict import Outcome
from MITSGANLib.files.storage import load_volume
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume, Provenance
from MITSGANLib.watermark.checking import Glance
from MITSGANLib.watermark.embedding import versions
from MITSGANLib.watermark.pattern import OPEN_KEY, ScanSigns
from MITSGANLib.watermark.sums import Reading
from MITSGANTrainingLib.evaluation.fidelity import jpeg2000
from MITSGANTrainingLib.evaluation.planting import SYNTHETIC, NoduleFile

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("on_its_grid")]

SECRET_KEY = dataclasses.replace(OPEN_KEY, secret=bytes(range(32)))

Voxel = tuple[int, int, int]


@pytest.fixture(scope="module")
def other() -> CTVolume:
    """Another patient, with noise of a sharp kernel."""
    return thorax_phantom(shape=(28, 200, 200), spacing_kji=(3.0, 1.5, 1.5), seed=8, noise_hu=20.0).volume


def looked_at(volume: CTVolume, key=OPEN_KEY) -> Examination:
    return examine(volume, key=key, with_judge=False)


def painted(volume: CTVolume, kji: Voxel, noise_hu: float) -> CTVolume:
    rng = np.random.default_rng(0)
    return forgeries.forge(volume, [kji], lambda v, k: forgeries.paint(v, k, noise_hu, rng))


def with_signs(forged: CTVolume, before: CTVolume, key) -> CTVolume:
    """By somebody who knows how: what was changed gets the signs that its new HU and its place call for."""
    signs, reading = ScanSigns.of(forged, key), Reading.bare(before, key, WATERMARK_BUDGET)
    hu = forged.hu.copy()
    for k in np.flatnonzero((forged.hu != before.hu).any(axis=(1, 2))):
        changed = forged.hu[k] != before.hu[k]
        hu[k][changed] += (signs.of_slice(int(k), forged.hu[k]) * reading.allowed_in(int(k))[0])[changed]
    return forged.with_hu(hu)


@pytest.fixture(scope="module")
def untouched(marked: CTVolume) -> Examination:
    return looked_at(marked)


def test_an_untouched_copy_is_no_alarm(untouched):
    assert untouched.verdict.outcome is Outcome.NOTHING_FOUND
    assert not untouched.verdict.reasons


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_slices_of_the_scan_before_it_was_protected_are_no_compression(scan, marked, share):
    count = scan.shape[0]
    first = round((1 - share) * count)
    hu = marked.hu.copy()
    hu[first:] = scan.hu[first:]
    verdict = looked_at(marked.with_hu(hu)).verdict
    assert verdict.outcome is Outcome.CHANGED
    assert not any("compression" in one.text for one in verdict.evidence)
    reached = [one for one in verdict.places if one.kji[0] + one.size_mm[0] / 2 / scan.spacing_kji[0] > first]
    assert reached == list(verdict.places)
    assert max(one.size_mm[0] for one in reached) > 0.5 * share * count * scan.spacing_kji[0]


def test_what_a_network_erases_is_an_alarm_where_one_asks(marked, place):
    forged = simulate_attack(marked, place, "remove", attacker=load_attacker("ctgan-small", "remove"))
    assert looked_at(forged).at(place).strength >= 1


def listed_near(examination: Examination, kji: Voxel) -> bool:
    volume = examination.volume
    away = [np.subtract(one.kji, kji) * volume.spacing_kji for one in examination.verdict.places]
    return any(np.linalg.norm(mm) < 20 for mm in away)


def test_a_nodule_that_a_network_paints_is_listed(tall):
    marked, place = protect(tall, model=watermark_alone(OPEN_KEY)), lung_positions(tall, 1, 4, margin_mm=30.0)[0]
    forged = simulate_attack(marked, place, "inject", attacker=load_attacker("unet-attention", "inject"))
    assert listed_near(looked_at(marked.with_hu(forged.hu)), place)


def test_a_pasted_nodule_is_an_alarm_where_one_asks(marked, place):
    nodules = NoduleFile.of(SYNTHETIC).read()
    forged = forgeries.forge(marked, [place], lambda v, k: forgeries.paste(v, k, nodules, 0))
    assert looked_at(forged).at(place).strength >= 1


@pytest.mark.parametrize("watermark", versions(), ids=lambda one: f"version {one.version}")
def test_a_copy_that_does_not_say_what_it_was_marked_with_is_no_alarm(other, watermark):
    marked = protect(other, model=watermark_alone(watermark.key, watermark.budget))
    silent = dataclasses.replace(marked, provenance=Provenance())
    assert Glance(silent).watermark.version == watermark.version
    examination = looked_at(silent)
    assert examination.mark.is_found
    assert examination.verdict.outcome is Outcome.NOTHING_FOUND


def test_edited_headers_change_nothing(marked, tmp_path):
    mm = marked.spacing_kji
    ct_series(marked.hu, spacing=tuple(mm[::-1]), origin=tuple(marked.origin)).write(tmp_path)
    verdicts = []
    for patient in ("42", "43"):
        for path in Path(tmp_path).iterdir():
            dataset = pydicom.dcmread(path)
            dataset.PatientID = patient
            dataset.save_as(path)
        verdicts.append(looked_at(load_volume(tmp_path)).verdict)
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].outcome is not Outcome.CHANGED


def test_another_scan_that_was_protected_is_no_alarm(other):
    """Nothing in it is false but that it is shown for another patient's."""
    assert looked_at(protect(other, model=watermark_alone(OPEN_KEY))).verdict.outcome is Outcome.NOTHING_FOUND


def test_lossy_compression_is_no_alarm_and_loses_part(marked, untouched):
    lossy = looked_at(marked.with_hu(np.stack([jpeg2000(plane, 5.0) for plane in marked.hu])))
    assert lossy.verdict.outcome is not Outcome.CHANGED
    assert lossy.mark.is_found
    assert lossy.mark.gain < 0.8 * untouched.mark.gain


def test_what_was_painted_before_smoothing_lacks_more_of_the_watermark(marked, place):
    copy = copy_suite.COPIES["Gaussian of 0.5 voxel"](painted(marked, place, 0)).volume
    examination = looked_at(copy)
    assert examination.mark.is_degraded
    watermark = next(one for one in examination.suspicions if one.kind == "watermark")
    here = watermark.score[examination.block_of(place)]
    assert here > 0.65
    assert here > 1.5 * np.percentile(watermark.score[examination.lungs], 99)
    assert examination.at(place).strength >= 1


def test_what_lies_outside_the_lungs_is_not_sought(untouched, place):
    assert untouched.can_tell(place)
    assert not untouched.can_tell((14, 12, 12)), "air around the patient"


@pytest.mark.parametrize(("key", "is_missed"), [(OPEN_KEY, True), (SECRET_KEY, False)])
def test_who_knows_the_open_watermark_forges_it_and_who_lacks_a_key_does_not(scan, place, key, is_missed):
    before = protect(scan, model=watermark_alone(key))
    examination = looked_at(with_signs(painted(before, place, 0), before, OPEN_KEY), key)
    watermark = next(one for one in examination.suspicions if one.kind == "watermark")
    assert bool(watermark.score[examination.blocks.block_of(place)] < 0.3) is is_missed


@pytest.mark.parametrize("noise_hu", [0, 20])
def test_paint_without_noise_or_with_white_noise_is_an_alarm_where_one_asks(marked, place, noise_hu):
    assert looked_at(painted(marked, place, noise_hu)).at(place).strength >= 1


def test_tampering_before_protection_lacks_nothing_of_the_watermark(scan, place):
    forged = forgeries.forge(scan, [place], forgeries.smooth_edit)
    examination = looked_at(protect(forged, model=watermark_alone(OPEN_KEY)))
    assert examination.verdict.outcome is Outcome.NOTHING_FOUND
    assert examination.at(place).strength < 1
