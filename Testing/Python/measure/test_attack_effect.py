"""The figures of a scene: each pair at its place, the control by the same attacker alone, cancellation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from MITSGANLib.attack.attacker import simulate_attack
from MITSGANLib.attack.chain import boxes_read
from MITSGANLib.budget.noise import scan_noise
from MITSGANLib.errors import CancelledError, InputError
from MITSGANLib.judges.jury import Judgment, Jury, Seen
from MITSGANLib.measure.attack_effect import (
    ATTACK_PAIR,
    CLEAN,
    INTO_ORIGINAL,
    NOISE,
    NOISE_SEEDS,
    PROTECTED,
    PROTECTION_PAIR,
    AttackEffect,
    measure_effect,
)
from MITSGANLib.measure.noise_controls import equal_rmse_noise, noise_in_boxes
from MITSGANLib.scan.regions import MIDDLE, regions_at
from MITSGANLib.scan.volume import PROTECTION, ProcessingStep


@pytest.fixture(scope="module")
def volumes(phantom, untrained_attackers):
    """Source, protected, and both attacked: 16 slices around the nodule, protection being 2 HU in a checkerboard."""
    k, j, i = phantom.nodule_kji
    source = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[k - 8 : k + 8])
    change = (2 - 4 * (np.indices(source.shape).sum(axis=0) % 2)).astype(np.int16)
    protected = source.with_hu(source.hu + change, ProcessingStep(PROTECTION, "checkerboard"))
    attacker = untrained_attackers["remove"]
    return (
        source,
        protected,
        *(simulate_attack(scan, (8, j, i), "remove", attacker=attacker, device="cpu") for scan in (source, protected)),
    )


def test_protection_alone(volumes):
    seen = []
    result = measure_effect(*volumes[:2], progress=lambda *step: seen.append(step))
    assert [finding.compared for finding in result.comparisons] == [PROTECTION_PAIR]
    assert result.noise_sd_hu == scan_noise(volumes[0].hu, volumes[0].spacing_kji).sd_hu
    assert result.protection.rmse.value == pytest.approx(2.0)
    assert result.rmse_by_slice == {PROTECTION_PAIR: pytest.approx((2.0,) * 16)}
    assert result.attack is None
    assert seen[-1] == (16, 16)


@pytest.mark.slow
def test_attack_and_control(volumes, untrained_attackers):
    seen = []
    attacker = untrained_attackers["remove"]
    result = measure_effect(*volumes, attacker=attacker, device="cpu", progress=lambda *s: seen.append(s))
    source, _protected, attacked, attacked_protected = (volume.hu.astype(float) for volume in volumes)
    middle = next(f.comparison.region for f in result.comparisons if f.comparison.region.name == MIDDLE).index
    own = np.sqrt(np.mean((attacked - source)[middle] ** 2))
    moved = np.sqrt(np.mean((attacked_protected - attacked)[middle] ** 2))
    forgery = result.attack.forgery
    figures = forgery.own.rmse.value, forgery.share(PROTECTED)
    assert figures == pytest.approx((own, moved / own))
    assert figures == pytest.approx((344.539, 0.0160613), rel=0.01), "networks round by machine"
    shares = forgery.noise_shares
    assert len(shares) == len(NOISE_SEEDS) > 2
    assert shares[0] < forgery.share(NOISE) < shares[-1], "draws differ"
    assert forgery.share(NOISE) == np.median(shares)
    again = measure_effect(*volumes, attacker=attacker, device="cpu")
    assert again.attack.forgery.noise_shares == shares, "seeded"
    expected = [np.sqrt(np.mean((attacked - source)[k] ** 2)) for k in range(16)]
    assert result.rmse_by_slice[ATTACK_PAIR] == pytest.approx(expected, rel=1e-5)
    assert seen[-1] == (16 + 15, 16 + 15), "slices, and steps of the attack"
    assert result.watermark is None, "nothing was marked"
    assert seen == sorted(seen)


@pytest.mark.slow
def test_judges_say_whether_an_attack_succeeds(volumes, untrained_attackers):
    """Each arm as the jury sees it, and a draw of noise as often as there are draws."""
    source, _protected, *attacked = volumes
    effect = measure_effect(*volumes, attacker=untrained_attackers["remove"], device="cpu").attack
    jury = Jury.load()
    seen = jury.look([one.hu for one in (source, *attacked)], source.spacing_kji, effect.kji)
    for arm, after in zip((CLEAN, PROTECTED), seen[1:], strict=True):
        expected = jury.verdict("remove", seen[0], after).succeeded
        assert effect.succeeded(arm) == (None if expected is None else (int(expected), 1))
    assert len(effect.verdicts[NOISE]) == len(NOISE_SEEDS)
    assert set(effect.to_dict()["verdicts"]) == {CLEAN, PROTECTED, INTO_ORIGINAL, NOISE}


@pytest.mark.slow
def test_what_an_unchanged_scan_leads_him_to_is_the_attack_on_the_original(volumes, untrained_attackers):
    """Read and pasted into are the same scan then; and what he reads decides what he paints."""
    source, protected, attacked, attacked_protected = volumes
    attacker = untrained_attackers["remove"]
    unchanged = measure_effect(source, source, attacked, attacked, attacker=attacker, device="cpu").attack
    assert unchanged.verdicts[INTO_ORIGINAL] == unchanged.verdicts[CLEAN]
    changed = measure_effect(source, protected, attacked, attacked_protected, attacker=attacker, device="cpu").attack
    assert changed.verdicts[INTO_ORIGINAL] not in (changed.verdicts[CLEAN], changed.verdicts[PROTECTED])


def test_success_is_counted_where_there_was_something_to_reach():
    seen = Seen(0.9, 0.1)
    yes = Judgment("remove", seen, seen, possible=True, achieved=True, unnoticed=True, alarm=False)
    nothing = dataclasses.replace(yes, possible=False)
    missed = dataclasses.replace(yes, unnoticed=False)
    effect = AttackEffect((1, 8, 8), "remove", None, (), None, verdicts={CLEAN: (nothing,), NOISE: (yes, missed)})
    assert [effect.succeeded(arm) for arm in (CLEAN, PROTECTED, NOISE)] == [None, None, (1, 2)]


@pytest.mark.slow
def test_the_control_is_attacked_as_the_scan_is(volumes, untrained_attackers):
    """The attack copies noise from a fixed place of the scan: of a part of it, it would be another place."""
    source, protected, attacked, _ = volumes
    unprotected = measure_effect(
        source, source, attacked, attacked, attacker=untrained_attackers["remove"], device="cpu"
    )
    assert unprotected.attack.forgery.noise_shares == (0.0,) * len(NOISE_SEEDS), "noise of no RMSE changes nothing"
    whole = equal_rmse_noise(source, protected)
    boxes = boxes_read(source.shape, attacked.provenance.steps[-1].parameters["target_kji"], source.spacing_kji)
    noise = noise_in_boxes(source, protected, boxes)
    for box in boxes:
        powers = [np.mean(np.subtract(hu[box], source.hu[box], dtype=float) ** 2) for hu in (whole.hu, noise)]
        assert powers[1] == pytest.approx(powers[0], rel=0.1)
    outside = np.ones(source.shape, bool)
    for box in boxes:
        outside[box] = False
    assert (noise == source.hu)[outside].all()


@pytest.mark.parametrize("read", [True, False])
def test_an_attack_reads_these_boxes_alone(volumes, untrained_attackers, read):
    source = volumes[0]
    kji = (8, 44, 40)
    changed = np.full(source.shape, not read)
    for box in boxes_read(source.shape, kji, source.spacing_kji):
        changed[box] = read
    other = source.with_hu(np.where(changed, source.hu + np.int16(9), source.hu))
    outcome = [
        simulate_attack(scan, kji, "remove", attacker=untrained_attackers["remove"], device="cpu").hu
        for scan in (source, other)
    ]
    where = regions_at(source, kji).cube.index
    assert (outcome[0][where] == outcome[1][where]).all() == (not read)


def test_another_attacker_makes_no_control(volumes, untrained_attackers):
    other = dataclasses.replace(untrained_attackers["remove"], digest="1" * 64)
    for attacker in (None, other):
        assert measure_effect(*volumes, attacker=attacker, device="cpu").attack.forgery.share(NOISE) is None


def test_attacks_at_different_places_are_refused(volumes, untrained_attackers):
    source, protected, attacked, _ = volumes
    k, j, i = attacked.provenance.steps[-1].parameters["target_kji"]
    elsewhere = simulate_attack(
        protected, (k, j + 2, i), "remove", attacker=untrained_attackers["remove"], device="cpu"
    )
    with pytest.raises(InputError, match="same point"):
        measure_effect(source, protected, attacked, elsewhere)
    with pytest.raises(InputError, match="where it was attacked"):
        measure_effect(source, protected, source, protected)


def test_cancel_stops(volumes):
    def cancel(_done, _total):
        raise CancelledError("enough")

    with pytest.raises(CancelledError):
        measure_effect(*volumes, progress=cancel)
