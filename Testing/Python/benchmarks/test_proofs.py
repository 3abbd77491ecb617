"""The comparison of proofs: what MITSGAN's own find, and what is said of rivals that are absent or of no use."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def proofs(script):
    return script("proofs")


@pytest.mark.slow
def test_own_proofs(proofs, tmp_path):
    found = proofs.compare(proofs.own_rivals(tmp_path), tmp_path)
    control, *deeds = found
    assert not any(found[control].values())
    missed = {(deed, name) for deed in deeds for name, noticed in found[deed].items() if not noticed}
    assert missed == {
        ("another Patient ID", "`sign --pixels-only`"),
        ("another SOP Instance UID", "`sign --pixels-only`"),
        ("a missing series", "`sign`, each series"),
    }


def test_who_refuses_the_control_is_left_out(proofs):
    found = {"nothing": {"good": False, "bad": True}, "deed": {"good": True, "bad": True}}
    text = proofs.table(found)
    assert "| deed | found |" in text
    assert text.endswith("bad refuses the untouched study, so it is left out.")


def test_absent_rivals_are_named(proofs, monkeypatch, capsys):
    monkeypatch.setattr(proofs, "compare", lambda rivals, _folder: {"nothing": {one.name: False for one in rivals}})
    assert proofs.main(["--dcmsign", "none-such", "--c2pa", "none-such"]) == 0
    out, err = capsys.readouterr()
    assert "dcmsign" in err
    assert "c2pa-health-imaging" in err
    assert "dcmsign" not in out
