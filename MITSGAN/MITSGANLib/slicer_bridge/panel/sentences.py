"""What the panel says about volumes, states, verdicts, targets and figures."""

from __future__ import annotations

import datetime
import enum
import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import slicer
from slicer.i18n import tr as _

from ...errors import MITSGANError
from ...examination.verdict import ChangedPlace, Outcome, Voxel
from ...measure.attack_effect import NOISE, PROTECTED, Effect
from ...protection.presets import preset_of
from ...scan.volume import PROTECTION, SIMULATED_ATTACK, ProcessingStep
from ...seal.sealing import Restored
from ...watermark.checking import Place
from ...weights import ModelCard
from ..examine import ExaminedVolume
from ..inspection import Inspection
from ..layout import hex_color
from ..origin import carries_signature, place_of_attack
from ..targets import has_target, is_placing, is_too_large, target_from_markups, target_problem
from ..volumes import SIMULATED_ATTACK_COLOR, history_of, voxel_from_ras

_FINGERPRINT_SHOWN = 16
_DIGITS_OF_DAY = 10


class Tone(enum.Enum):
    """What a state means, as a color: red, green, blue. Each can be read on a light and on a dark window."""

    NONE = "128, 128, 128"
    GOOD = "38, 145, 75"  # protected, or as signed
    NEUTRAL = "47, 128, 195"  # nothing found
    UNKNOWN = "160, 125, 20"  # cannot be told
    ATTACK = "217, 89, 0"
    CHANGED = "205, 30, 60"


@dataclass(frozen=True)
class StateWords:
    """The state of a volume."""

    tone: Tone
    text: str  # rich
    kji: Voxel | None = None  # voxel (slice, row, column) to go to


def model(name: str, card: ModelCard | None = None) -> tuple[str, str]:
    """The title of a protection model or preset in the list, and what it is; the first sentence says most.

    :param card: has title and text where the panel has none of its own, and the text of "paper".
    """
    known = {
        "watermark": (
            _("Watermark alone: no network"),
            _(
                "Hides signs in the scan's noise, which what is painted over later lacks; no attack is stopped. With a "
                "key file chosen, only that can find or forge them; else anyone can."
            ),
        ),
        "default": (
            _("Default: forgeries often show"),
            _(
                "What is painted over later often lacks the watermark; no attack is stopped. It is a network's change "
                "of at most a tenth of the scan's noise, and a watermark of at most 0.15 of it. Anyone can check the "
                "watermark, and anyone who knows it can forge it. To find every later change, sign what you export."
            ),
        ),
        "strong": (
            _("Strong: the change may be seen"),
            _("Three times as strong as the default, for comparison; no attack is stopped."),
        ),
        "paper": (_("After the paper: for comparison only"), card and card.description),
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
    return known.get(name) or (card.name, card.description)


def about_protecting(about_model: str, parameters: Any) -> str:
    """What the button will do, in a sentence or two."""
    first = about_model.partition(". ")[0].removesuffix(".") + "." if about_model else ""
    source, volume = parameters.sourceVolume, parameters.volume
    if source and volume and source is not volume:
        first += " " + _("Protecting again makes another copy of the original, {name}.").format(name=source.GetName())
    return first


def about_volume(node: slicer.vtkMRMLScalarVolumeNode | None, inspection: Inspection | None) -> tuple[str, str]:
    """Whether a volume is usable, its size and its noise in one line of rich text; and what more to know."""
    if node is None:
        return _("Load a CT, or a sample:"), ""
    if inspection is None:
        return _("Looking at its voxels…"), ""
    if inspection.problem:
        return _("<b>Not usable:</b> {reason}").format(reason=html.escape(inspection.problem)), ""
    slices, rows, columns = inspection.shape
    sd = inspection.noise_sd_hu
    noise = _("noise not measurable") if sd is None else _("noise {sd:.0f} HU").format(sd=sd)
    words = _("CT: {columns}×{rows}×{slices}, {thickness:.3g} mm, {noise}").format(
        columns=columns, rows=rows, slices=slices, thickness=inspection.spacing[2], noise=noise
    )
    if inspection.warnings:
        words += ", " + _counted(len(inspection.warnings), _("1 remark"), _("{count} remarks"))
    return words, "\n".join(inspection.warnings)


def about_state(
    node: slicer.vtkMRMLScalarVolumeNode | None,
    inspection: Inspection | None,
    examined: ExaminedVolume | None,
    has_open_watermark: bool | None = None,
) -> StateWords:
    """What is known of a volume: from its examination, else from what its node, file or DICOM header says.

    :param has_open_watermark: whether it was seen in the voxels; None where that is not known.
    """
    if node is None:
        return StateWords(Tone.NONE, _("<b>No CT is shown</b>"))
    try:
        history = history_of(node)
    except MITSGANError as error:
        return StateWords(Tone.UNKNOWN, _("<b>Cannot be told:</b> {reason}").format(reason=html.escape(str(error))))
    if inspection is not None and inspection.problem:
        return StateWords(Tone.UNKNOWN, _("<b>Cannot be told:</b> this volume cannot be used, see below"))
    attack, protection = history.last(SIMULATED_ATTACK), history.last(PROTECTION)
    if attack is not None:
        return _about_attack(attack, examined)
    if examined is not None:
        return _about_found(examined, protection)
    if carries_signature(node):
        words = _("<b>Signed</b>, not verified yet: press Examine")
        return StateWords(Tone.NEUTRAL, f"{_protected(protection)}<br>{words}" if protection else words)
    if protection is not None:
        return StateWords(Tone.GOOD, _protected(protection))
    if has_open_watermark:
        words = _("<b>Protected</b>: it carries the open watermark. By what and when is not recorded")
        return StateWords(Tone.GOOD, words)
    if has_open_watermark is False:
        return StateWords(Tone.NONE, _("<b>No record of protection</b>, and no open watermark in its middle slices"))
    return StateWords(Tone.NONE, _("<b>No record of protection</b>"))


def _protected(step: ProcessingStep) -> str:
    """By what a volume is protected, and when."""
    parameters, kinds = step.parameters, {"open": _("open watermark"), "keyed": _("watermark with a key")}
    by = preset_of(parameters) or parameters.get("model") or kinds.get(str(parameters.get("watermark")))
    words = _("<b>Protected ({by})</b> by MITSGAN") if by else _("<b>Protected</b> by MITSGAN")
    words = words.format(by=html.escape(str(by)))
    try:
        day = datetime.date.fromisoformat(step.time[:_DIGITS_OF_DAY])
    except ValueError:
        return words
    return words + ", " + day.isoformat()


def _about_attack(step: ProcessingStep, examined: ExaminedVolume | None) -> StateWords:
    kji = place_of_attack(step)
    action = {"inject": _("nodule added"), "remove": _("nodule removed")}.get(str(step.parameters.get("action")))
    words = _("<b>Simulated attack</b>, no patient's scan")
    if action and kji:
        words = _("<b>Simulated attack:</b> {action} in slice {k}").format(action=action, k=kji[0])
    if examined is not None:
        places = examined.verdict.places
        if places:
            found = _("The examination found: {where}").format(where=where(examined, places[0]))
        elif kji and (place := examined.asked.get(kji)) and place.strength >= 1:
            found = _("The examination lists no place; asked about this one, it says changed")
        else:
            found = _("The examination found no place; only the header tells")
        words += "<br>" + found
        kji = places[0].kji if places else kji
    return StateWords(Tone.ATTACK, words, kji)


def _about_found(examined: ExaminedVolume, protection: ProcessingStep | None) -> StateWords:
    verdict = examined.verdict
    if verdict.outcome is Outcome.CHANGED:
        if not verdict.places:
            reason = next((one.text for one in verdict.evidence if one.strength >= 1), "")
            return StateWords(Tone.CHANGED, _("<b>Changed:</b> {reason}").format(reason=html.escape(reason)))
        place = verdict.places[0]
        head = _("<b>Painted over:</b> {where}") if place.is_sure else _("<b>Probably painted over:</b> {where}")
        if any(one.kind == "signature" for one in place.evidence):
            head = _("<b>Changed since it was signed:</b> {where}")
        words = head.format(where=where(examined, place))
        more = len(verdict.places) - 1
        if more:
            words += ", " + (_("and 1 more place") if more == 1 else _("and {more} more places").format(more=more))
        return StateWords(Tone.CHANGED, words, place.kji)
    if verdict.outcome is Outcome.INTACT:
        manifest = examined.verification and examined.verification.manifest
        by = _("by the key that you chose, {key}…").format(key=manifest.fingerprint[:8]) if manifest else _("by DICOM")
        return StateWords(Tone.GOOD, _("<b>Signed: intact</b>, {by}").format(by=by))
    if verdict.outcome is Outcome.CANNOT_TELL:
        reason = "; ".join(verdict.reasons)
        return StateWords(Tone.UNKNOWN, _("<b>Cannot be told:</b> {reason}").format(reason=html.escape(reason)))
    share = max((share for _kind, share in verdict.told), default=0.0)
    words = _("<b>Nothing found</b> in the {share:.0%} of the lungs that can be told about").format(share=share)
    return StateWords(Tone.NEUTRAL, f"{_protected(protection)}<br>{words}" if protection else words)


def where(examined: ExaminedVolume, place: ChangedPlace) -> str:
    """The slice and the lung of a place."""
    side = examined.side(place)
    words = _("slice {k}").format(k=place.kji[0])
    return f"{words}, {side}" if side else words


def about_place(examined: ExaminedVolume, place: ChangedPlace) -> tuple[str, str, str]:
    """A line of the table of places: where, how surely, and why in a few words."""
    plain = {
        "signature": _("not as signed"),
        "watermark": _("watermark missing"),
        "noise missing": _("noise missing"),
        "coarse noise missing": _("too smooth"),
        "noise of another color": _("noise unlike around"),
        "noise that the scanner does not let through": _("noise of no scanner"),
        "copied tissue": _("copied tissue"),
        "CT-GAN's noise source": _("trace of CT-GAN"),
        "forensic judge": _("judged forged"),
    }
    why = list(dict.fromkeys(plain.get(one.kind, one.kind) for one in place.evidence))
    return where(examined, place), _("surely") if place.is_sure else _("probably"), ", ".join(why)


def about_verdict(examined: ExaminedVolume, target: Voxel | None) -> str:
    """The verdict in a few lines of rich text.

    :param target: voxel (slice, row, column) that the user asks about; None for none.
    """
    verdict = examined.verdict
    lines = [_head(examined), *(html.escape(_sentence(reason)) for reason in verdict.reasons)]
    lines.append(_about_watermark(examined))
    lines += [html.escape(_sentence(one.text)) for one in verdict.evidence if one.kind == "signature"]
    if examined.verification and not examined.is_signer_known:
        lines.append(_("Anyone can sign with a key of their own. Choose the public key of the signer you expect."))
    lines.append(html.escape(examined.note))
    if target is not None:
        lines.append(_about_target_place(examined, target))
    return "<br>".join(filter(None, lines))


def _head(examined: ExaminedVolume) -> str:
    outcome, places = examined.verdict.outcome, examined.verdict.places
    if outcome is Outcome.CHANGED:
        if places:
            many = _("<b>Changed</b> in {count} places, listed below.")
            return _counted(len(places), _("<b>Changed</b> in 1 place, listed below."), many)
        if examined.volume.provenance.is_simulated_attack:
            return _("<b>Simulated</b>, says the header. The voxels show no place.")
    return {
        Outcome.INTACT: _("<b>Intact</b>: nothing changed since it was signed."),
        Outcome.CHANGED: _("<b>Changed</b>."),
        Outcome.NOTHING_FOUND: _("<b>Nothing found.</b> That is not “genuine”: see below what was not examined."),
        Outcome.CANNOT_TELL: _("<b>Cannot be told.</b>"),
    }[outcome]


def _about_watermark(examined: ExaminedVolume) -> str:
    mark = examined.examination.mark
    whose = _("your key's watermark") if examined.is_keyed else _("the open watermark")
    if not mark.is_found:
        return _("No watermark was found. One with a key needs the key file.") if not examined.is_keyed else ""
    if mark.is_degraded:
        words = _("It carries {whose}, but {share:.0%} of it is left, as after lossy compression.")
        return words.format(whose=whose, share=mark.gain)
    return _("It carries {whose}.").format(whose=whose)


def _about_target_place(examined: ExaminedVolume, target: Voxel) -> str:
    place = examined.asked.get(target)
    if place is None:
        return _("At the target: being looked at…")
    if place.strength >= 1:
        return _("At the target: <b>{words}</b>.").format(words=html.escape(place.words.partition(":")[0]))
    if not examined.examination.can_tell(target):
        return _("At the target: cannot be told.")
    return _("At the target: nothing was found.")


def about_examination(examined: ExaminedVolume) -> str:
    """What was examined and what was not, in full; rich text."""
    verdict = examined.verdict
    told = [
        _("{kind}: {share:.0%} of the lungs can be told about").format(kind=html.escape(kind), share=share)
        for kind, share in verdict.told
    ]
    parts = [
        (_("Found"), [f"{one.kind}: {one.text}" for one in verdict.evidence]),
        (_("Examined"), told),
        (_("Would mostly have been listed there"), verdict.excluded),
        (_("Not excluded"), verdict.not_excluded),
    ]
    return "".join(
        f"<b>{html.escape(title)}</b><br>" + "<br>".join(f"• {html.escape(line)}" for line in lines) + "<br>"
        for title, lines in parts
        if lines
    )


def legend(examined: ExaminedVolume) -> str:
    """The key of the map's colors; rich text."""
    shown = [label for value, label in examined.legend.labels.items() if value]
    return " &nbsp; ".join(
        f'<span style="color:{hex_color(rgba[:3])}">■</span> {html.escape(words)}' for words, rgba in shown
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def about_attacked(nodes: Iterable[slicer.vtkMRMLScalarVolumeNode | None]) -> tuple[str, str]:
    """That there are attacked volumes, by whom, in the color of simulated attacks as rich text; and their names."""
    attacked = list(filter(None, nodes))
    if not attacked:
        return "", ""
    step = history_of(attacked[0]).last(SIMULATED_ATTACK)
    by = html.escape(str(step.parameters.get("attacker", ""))) if step else ""
    words = _("Simulated attack by {by}: source and protected").format(by=by)
    names = "\n".join(node.GetName() for node in attacked)
    return f'<span style="color:{hex_color(SIMULATED_ATTACK_COLOR)}">■ {words}</span>', names


def about_target(
    target: slicer.vtkMRMLMarkupsNode | None, source: slicer.vtkMRMLScalarVolumeNode | None, action: str
) -> str:
    """Where the target lies in the source volume, and what speaks against it; empty without a target."""
    if is_placing(target):
        return _("Click the structure to attack in a slice view. Press the button again to stop.")
    if not has_target(target) or source is None:
        return ""
    try:
        k, j, i = voxel_from_ras(source, target_from_markups(target))
    except MITSGANError as error:
        return str(error)
    words = _("Slice {k}, row {j}, column {i}: {hu} HU").format(
        k=k, j=j, i=i, hu=slicer.util.arrayFromVolume(source)[k, j, i]
    )
    problem = target_problem(target, source)
    if problem:
        return f"{words}. {problem}"
    if action == "remove" and is_too_large(target, source):
        words += ". " + _("This is larger than the 20 mm that the attack makes up: it will leave a patch.")
    return words


def about_effect(effect: Effect) -> str:
    """The result of a comparison in two to four sentences."""
    rmse, noise = effect.protection.rmse, effect.noise_sd_hu
    of_noise = _(" ({ratio:.2f} of its noise)").format(ratio=rmse.value / noise) if noise else ""
    words = _("Protection changed the scan by RMSE {rmse:.1f} HU{of_noise}, most in slice {k} ({worst:.1f} HU).")
    worst = rmse.worst_slice
    words = words.format(rmse=rmse.value, of_noise=of_noise, k=worst.slice, worst=worst.value)
    forgery = effect.attack and effect.attack.forgery
    if forgery and forgery.own.rmse.value:
        attack = _("The attack changed what it forged by RMSE {attack:.0f} HU.").format(attack=forgery.own.rmse.value)
        moved = _("Protection moved the forgery by {share:.1%} of that.").format(share=forgery.share(PROTECTED))
        words, shares = f"{words} {attack} {moved}", forgery.noise_shares
        if shares:
            control = _("Noise of the same RMSE moved it by {share:.1%} ({low:.1%} to {high:.1%} in {count} draws).")
            words += " " + control.format(share=forgery.share(NOISE), low=shares[0], high=shares[-1], count=len(shares))
    return words if effect.watermark is None else f"{words} {_about_forgery(effect.watermark)}"


def _about_forgery(place: Place) -> str:
    """Whether the open watermark shows that the attacked place was forged."""
    if not place.can_tell:
        return _("The watermark is too weak there to show the forgery.")
    words = _("The watermark does not show the forgery: {share:.0%} of the expected watermark is there.")
    if place.is_missing:
        words = _("The forgery shows: of the watermark {share:.0%} of what is to be expected is left there.")
    return words.format(share=max(place.seen / place.expected, 0))


def about_proofs(key_id: str | None, is_signed: bool, *, typed_alone: bool = False) -> str:
    """What an export does besides writing.

    :param key_id: of the key that seals; None for none.
    :param typed_alone: whether a passphrase was typed and no key chosen that it could open.
    """
    if typed_alone:
        return _("The passphrase alone does nothing: choose or make a key file, too.")
    if key_id and is_signed:
        return _("Exports are signed, and key {id} leads back to the original.").format(id=key_id)
    if key_id:
        return _("Key {id} leads from exports back to the original; they are not signed.").format(id=key_id)
    if is_signed:
        return _("Exports are signed; nothing leads back to the original.")
    return _("Exports are not signed, and nothing leads back to the original: see Keys and signatures.")


def about_restored(name: str, restored: Restored) -> str:
    """What was restored of the scan of this file name; rich text."""
    count = _counted(restored.files, _("1 file"), _("{count} files"))
    words = _("{name}: <b>restored {count}, bit for bit.</b> SHA-256 {digest}…")
    words = words.format(name=html.escape(name), count=count, digest=restored.sha256[:_FINGERPRINT_SHOWN])
    return "<br>".join([words, *(html.escape(str(warning)) for warning in restored.warnings)])


def _counted(count: int, one: str, many: str) -> str:
    return one if count == 1 else many.format(count=count)
