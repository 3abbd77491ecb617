"""What signatures say of a scan, as evidence, and its changed tiles as places."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from ..errors import InputError
from ..runtime.progress import Progress
from ..scan.volume import CTVolume
from ..signature.contents import ScanContents
from ..signature.dicom.digital_signature import ImageSignatures
from ..signature.digests import TILE
from ..signature.verification import INTACT, Verification
from ..watermark.pattern import OPEN_KEY, WatermarkKey
from .examiner import Examination, examine
from .verdict import ChangedPlace, Evidence, Outcome, Verdict

SIGNATURE = "signature"

_MOST_PLACES = 20


def with_signatures(
    verdict: Verdict,
    volume: CTVolume | None,
    verification: Verification | None,
    signatures: ImageSignatures,
    trusted: Collection[str],
) -> Verdict:
    """A verdict of the voxels, after signatures had their say: they decide where there are any that can be trusted.

    :param volume: the scan; None where its slices form none.
    :param verification: against its manifest; None where there is none.
    :param signatures: DICOM's own.
    :param trusted: fingerprints of signers that the user trusts.
    """
    evidence, places, outcome = [], [], verdict.outcome
    if verification is not None:
        known = verification.manifest.fingerprint in trusted
        signer = "by a signer you trust" if known else "by an unknown signer"
        if not verification.is_intact:
            kinds = sorted({one.kind for one in verification.discrepancies})
            text = f"it is not what was signed {signer}: {', '.join(kinds) or 'voxels'}"
            evidence.append(Evidence(SIGNATURE, text, 2.0))
            places, outcome = _changed_tiles(verification, volume), Outcome.CHANGED
        else:
            evidence.append(Evidence(SIGNATURE, f"it is as it was signed {signer}"))
            outcome = Outcome.INTACT if known else outcome
    if signatures.signed:
        if signatures.changed or (verification is None and not signatures.all_signed):
            outcome = Outcome.CHANGED
            evidence.append(Evidence(SIGNATURE, "DICOM's own signatures do not fit all images", 2.0))
        elif verification is None and signatures.all_valid:
            signer = "certificates you trust" if signatures.all_trusted else "unknown certificates"
            evidence.append(Evidence(SIGNATURE, f"DICOM's own signatures fit all images, by {signer}"))
            outcome = Outcome.INTACT if signatures.all_trusted else outcome
    reasons = verdict.reasons
    if outcome is Outcome.INTACT and verdict.places:
        reasons = (*reasons, "what stands out below was there when it was signed, or is a false alarm")
    places, evidence = (*places, *verdict.places), (*evidence, *verdict.evidence)
    return dataclasses.replace(verdict, outcome=outcome, places=places, evidence=evidence, reasons=reasons)


def examine_contents(
    scan: ScanContents,
    verification: Verification | None,
    signatures: ImageSignatures,
    *,
    key: WatermarkKey = OPEN_KEY,
    trusted: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[Verdict, Examination | None]:
    """All evidence there is of a scan, its voxels and its signatures; no examination where its slices form no volume.

    :param key, progress: as in ``examiner.examine``.
    :param verification, signatures, trusted: as in :func:`with_signatures`.
    :raises InputError: the slices form no volume, and no manifest says what they were.
    """
    examination = None
    if scan.volume is not None:
        examination = examine(scan.volume, key=key, progress=progress)
        verdict = examination.verdict
    elif verification is None:
        raise InputError(scan.problem)
    else:
        verdict = Verdict(Outcome.CANNOT_TELL, reasons=("its slices form no volume",))
    return with_signatures(verdict, scan.volume, verification, signatures, trusted), examination


def _changed_tiles(verification: Verification, volume: CTVolume | None) -> list[ChangedPlace]:
    """Connected changed tiles, the largest first."""
    from scipy import ndimage

    signed = verification.manifest.empty_volume()
    labels, _ = ndimage.label(verification.tiles != INTACT, np.ones((3, 3, 3)))
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        tiles = int(np.count_nonzero(labels[box] == number))
        axes = zip(box, (1, TILE, TILE), signed.shape, strict=True)
        ends = [(part.start * edge, min(part.stop * edge, size)) for part, edge, size in axes]
        middle = [(low + high - 1) // 2 for low, high in ends]
        size_mm = tuple(round((high - low) * mm, 1) for (low, high), mm in zip(ends, signed.spacing_kji, strict=True))
        lps = signed.voxel_to_lps(middle)
        kji = tuple(middle) if volume is None else volume.nearest_voxel(lps)
        text = f"{tiles} tile{'s' if tiles > 1 else ''} of 32x32 voxels not as signed"
        place = ChangedPlace(kji, tuple(round(float(x), 1) for x in lps), size_mm, (Evidence(SIGNATURE, text, 2.0),))
        found.append((tiles, place))
    return [place for _, place in sorted(found, key=lambda pair: -pair[0])[:_MOST_PLACES]]
