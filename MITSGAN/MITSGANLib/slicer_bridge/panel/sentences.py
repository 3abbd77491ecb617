"""What the panel says about volumes, targets and figures."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

import slicer
from slicer.i18n import tr as _

from ...errors import MITSGANError
from ..inspection import Inspection
from ..targets import has_target, is_placing, target_from_markups
from ..volumes import PROTECTED_ATTRIBUTE, SIMULATED_ATTACK_COLOR, is_simulated_attack, is_watermarked, voxel_from_ras

if TYPE_CHECKING:
    from ...measure.attack_effect import Effect
    from ...seal.sealing import Restored
    from ...watermark.checking import Check, MissingRegion
    from ...watermark.places import Place
    from ...weights import ModelCard
    from ..verify import SignatureCheck

_FINDINGS_SHOWN = 12
_REGIONS_SHOWN = 6
_FINGERPRINT_SHOWN = 16
_MOST = 0.5


def model(name: str, card: ModelCard) -> tuple[str, str]:
    """The title of a protection model or preset in the list, and what it is."""
    known = {
        "default": (
            _("Default: forgeries often show"),
            _(
                "A network's change of at most a tenth of the scan's noise, and a watermark of at most 0.15 of it. "
                "What is painted over later lacks the watermark. Anyone can check it, and anyone can forge it."
            ),
        ),
        "strong": (
            _("Strong: the change may be seen"),
            _("Three times as strong as the default; for comparison."),
        ),
        "paper": (_("After the paper: for comparison only"), card.description),
        "block-ai": (
            _("Block unauthorized AI: hides nodules from some networks"),
            _(
                "An experiment that misleads diagnosis software, authorized or not. It hid half to four fifths of the "
                "nodules from the two networks that it was made against, and a fifth to two fifths from a third; on "
                "one small scan fewer. It changes at most 36 HU, takes minutes, and hides nothing from readers. Export "
                "with a key, and restore the original before any software reads the scan."
            ),
        ),
    }
    return known.get(name, (card.name, card.description))


def watermark() -> tuple[str, str]:
    """The title of the watermark in the list of models, and what it does."""
    return (
        _("Watermark alone, with a key"),
        _(
            "Hides signs in the scan's noise. Only your key file can find them, and nobody else can forge them. The "
            "watermark stops no attack, but it shows later what was painted over, in a copy of any format."
        ),
    )


def about_volume(node: slicer.vtkMRMLScalarVolumeNode | None, inspection: Inspection | None) -> str:
    """Whether a volume is usable, its size and its noise; rich text."""
    if node is None or inspection is None:
        return _("Select a CT volume, or load a sample.")
    if not inspection.is_ct:
        return _("<b>Not usable:</b> {reason}").format(reason=html.escape(inspection.problem))
    slices, rows, columns = inspection.shape
    x, y, z = inspection.spacing
    noise = (
        _("noise {sd:.0f} HU").format(sd=inspection.noise_sd_hu)
        if inspection.noise_sd_hu is not None
        else _("noise not measurable (too little soft tissue)")
    )
    size = _("{columns} × {rows} × {slices} voxels of {x:.2f} × {y:.2f} × {z:.2f} mm").format(
        columns=columns, rows=rows, slices=slices, x=x, y=y, z=z
    )
    lines = [_("Looks like CT in HU: {size}, {noise}.").format(size=size, noise=noise)]
    if is_simulated_attack(node):
        lines.append(_("<b>This is a simulated attack, not a patient's scan.</b>"))
    elif node.GetAttribute(PROTECTED_ATTRIBUTE) == "true":
        lines.append(_("It is protected already; protecting it again adds to the change."))
        if is_watermarked(node):
            lines.append(_("It carries a watermark, which any further change weakens."))
    return "<br>".join([*lines, *(html.escape(warning) for warning in inspection.warnings)])


def about_attacked(nodes: Iterable[slicer.vtkMRMLScalarVolumeNode | None]) -> str:
    """The names of attacked volumes in the color of simulated attacks; rich text."""
    color = "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in SIMULATED_ATTACK_COLOR))
    names = (f'<span style="color:{color}">■ {html.escape(node.GetName())}</span>' for node in nodes if node)
    return "<br>".join(names)


def about_target(
    target: slicer.vtkMRMLMarkupsNode | None,
    source: slicer.vtkMRMLScalarVolumeNode | None,
    inspection: Inspection | None,
) -> str:
    """Where the target lies in the source volume, or why it lies nowhere; empty without a target."""
    if is_placing(target):
        return _("Click the structure to attack in a slice view. Press the button again to stop.")
    if not has_target(target) or source is None or inspection is None or not inspection.is_ct:
        return ""
    try:
        k, j, i = voxel_from_ras(source, target_from_markups(target))
    except MITSGANError as error:
        return str(error)
    return _("Slice {k}, row {j}, column {i}: {hu} HU").format(
        k=k, j=j, i=i, hu=slicer.util.arrayFromVolume(source)[k, j, i]
    )


def about_effect(effect: Effect) -> str:
    """The result of a comparison in two to four sentences."""
    rmse, noise = effect.protection.rmse, effect.noise_sd_hu
    of_noise = _(" ({ratio:.2f} of its noise)").format(ratio=rmse.value / noise) if noise else ""
    sentences = [
        _("Protection changed the scan by RMSE {rmse:.1f} HU{of_noise}, most in slice {k} ({worst:.1f} HU).").format(
            rmse=rmse.value, of_noise=of_noise, k=rmse.worst_slice.slice, worst=rmse.worst_slice.value
        )
    ]
    if effect.attack_rmse_hu:
        sentences.append(
            _("The attack changed what it forged by RMSE {attack:.0f} HU.").format(attack=effect.attack_rmse_hu)
        )
        sentences.append(_("Protection moved the forgery by {share:.0%} of that.").format(share=effect.forgery_share))
        if effect.control_share is not None:
            shares = effect.control_shares
            words = _("Noise of the same RMSE moved it by {share:.0%} ({low:.0%} to {high:.0%} in {count} draws).")
            sentences.append(
                words.format(share=effect.control_share, low=shares[0], high=shares[-1], count=len(shares))
            )
    if effect.watermark is not None:
        sentences.append(about_forgery(effect.watermark))
    return " ".join(sentences)


def about_forgery(place: Place) -> str:
    """Whether the open watermark shows that the attacked place was forged."""
    if not place.can_tell:
        return _("The watermark is too weak there to show the forgery.")
    words = (
        _("The forgery shows: of the watermark {share:.0%} of what is to be expected is left there.")
        if place.is_missing
        else _("The watermark does not show the forgery: {share:.0%} of the expected watermark is there.")
    )
    return words.format(share=max(place.seen / place.expected, 0))


def about_proofs(key_id: str | None, is_signed: bool) -> str:
    """What an export does besides writing.

    :param key_id: of the key that seals; None for none.
    """
    if key_id and is_signed:
        return _("Exports are sealed with key {id} and signed.").format(id=key_id)
    if key_id:
        return _("Exports are sealed with key {id}, and not signed.").format(id=key_id)
    if is_signed:
        return _("Exports are signed. Without a key file, nothing leads back from them to the original.")
    return _("Exports are neither sealed nor signed: nothing leads back from them to the original.")


def about_restored(name: str, restored: Restored) -> str:
    """What was restored of the scan of this file name; rich text."""
    count = _("1 file") if restored.files == 1 else _("{count} files").format(count=restored.files)
    lines = [
        _("{name}: <b>restored {count}, bit for bit.</b> SHA-256 {digest}…").format(
            name=html.escape(name), count=count, digest=restored.sha256[:_FINGERPRINT_SHOWN]
        )
    ]
    return "<br>".join([*lines, *(html.escape(str(warning)) for warning in restored.warnings)])


def about_check(name: str, checked: SignatureCheck) -> str:
    """What a check of the scan of this file name found; rich text."""
    verification = checked.verification
    if verification is None:
        words = _("{name}: no manifest. Each image was checked by itself, so missing images were not noticed.")
        lines = [words.format(name=html.escape(name))]
        lines += _about_dicom_signatures(checked)
        return "<br>".join(lines)
    manifest = verification.manifest
    short = f"{manifest.fingerprint[:_FINGERPRINT_SHOWN]}…"
    signer = _("the key that you chose") if checked.is_signer_known else _("an unknown key, {key}").format(key=short)
    day = manifest.created[:10]
    if verification.is_intact:
        words = _("{name}: <b>intact</b> since it was signed on {day} by {signer}.")
    else:
        words = _("{name}: <b>CHANGED</b> since it was signed on {day} by {signer} (slices count from 0):")
    lines = [words.format(name=html.escape(name), day=html.escape(day), signer=html.escape(signer))]
    findings = [finding.text for finding in verification.findings]
    lines += [f"• {html.escape(text)}" for text in findings[:_FINDINGS_SHOWN]]
    if len(findings) > _FINDINGS_SHOWN:
        lines.append(_("• and {count} more").format(count=len(findings) - _FINDINGS_SHOWN))
    if not checked.is_signer_known:
        lines.append(_("Anyone can sign with a key of their own. Choose the public key of the signer you expect."))
    lines += [html.escape(note) for note in verification.notes]
    return "<br>".join([*lines, *_about_dicom_signatures(checked)])


def _about_dicom_signatures(checked: SignatureCheck) -> list[str]:
    return [_("DICOM signatures: {words}").format(words=html.escape(line)) for line in checked.signatures.summary()]


def about_watermark(
    name: str, check: Check, place: Place | None, *, is_open: bool = False, is_keyed: bool = True
) -> str:
    """What a check of the watermark in the volume of this name found; rich text.

    :param place: what is left of it at the target; None without a target in the volume.
    :param is_open: whether the open watermark was found, or sought and not found.
    :param is_keyed: the same for that of the chosen key.
    """
    name = html.escape(name)
    if not check.is_found:
        words = (
            _(
                "{name}: <b>no watermark found</b>, neither the open one nor one of this key. The volume may have "
                "none, or another key's. Or it was cropped, resampled, moved or strongly smoothed."
            )
            if is_open and is_keyed
            else _(
                "{name}: <b>no open watermark found.</b> The volume may have none. It may have one with a key: choose "
                "the key file. Or it was cropped, resampled, moved or strongly smoothed."
            )
            if is_open
            else _(
                "{name}: <b>no watermark of this key found.</b> The volume may have none, or another key's. Or it was "
                "cropped, resampled, moved or strongly smoothed."
            )
        )
        return words.format(name=name)
    if check.is_degraded:
        words = _(
            "{name}: <b>watermark found, but {share:.0%} of it is left</b>, as after lossy compression, smoothing, or "
            "protection at a lower strength. That is too little to list where it is missing."
        )
        lines = [words.format(name=name, share=check.gain)]
    else:
        lines = _about_regions(name, check)
    lines.append(
        _("It is the open watermark, which anyone can check.") if is_open else _("It is the watermark of your key.")
    )
    if place is not None:
        lines.append(_about_place(place))
    elif not check.regions:
        # CT-GAN's injector leaves the noise around a nodule as it was.
        hint = _("A small change, such as an added nodule, may not stand out. Place a target to ask about one point.")
        lines.append(hint)
    return "<br>".join(lines)


def _about_regions(name: str, check: Check) -> list[str]:
    told = _("{share:.0%} of the marked tissue can be checked.").format(share=check.telling_share)
    if check.telling_share < _MOST:
        told += " " + _("Elsewhere the watermark is too weak: voxels are large, or there is little noise.")
    count = len(check.regions)
    if not count:
        words = _("{name}: <b>watermark found</b>; no place stands out where it is missing.")
        return [words.format(name=name), told]
    places = _("1 place") if count == 1 else _("{count} places").format(count=count)
    words = _("{name}: <b>watermark MISSING in {places}</b>, the largest first (slices, rows, columns count from 0):")
    lines = [words.format(name=name, places=places)]
    lines += [f"• {_about_region(region)}" for region in check.regions[:_REGIONS_SHOWN]]
    if count > _REGIONS_SHOWN:
        lines.append(_("• and {count} more").format(count=count - _REGIONS_SHOWN))
    return [*lines, told]


def _about_region(region: MissingRegion) -> str:
    k, j, i = region.kji
    depth, height, width = region.size_mm
    words = _(
        "slice {k}, row {j}, column {i}: about {depth:.0f} × {height:.0f} × {width:.0f} mm, {share:.0%} of it is left"
    )
    return words.format(k=k, j=j, i=i, depth=depth, height=height, width=width, share=max(region.share, 0))


def _about_place(place: Place) -> str:
    if not place.can_tell:
        return _("At the target: cannot be told. The watermark is too weak there.")
    if place.is_missing:
        words = _(
            "At the target: <b>MISSING</b>. {share:.0%} of the expected watermark is in the {mm:.0f} mm around it."
        )
    else:
        words = _("At the target: there. {share:.0%} of the expected watermark is in the {mm:.0f} mm around it.")
    return words.format(share=max(place.seen / place.expected, 0), mm=place.window_mm)
