"""What the tables' figures mean, in words: regions, pairs, averages, controls, and the paper beside them."""

from __future__ import annotations

IMAGE = "Ours: the whole slice of the target, all of its voxels, compared with the clean slice."
SQUARE = (
    "Ours: the square of 32 mm (not pixels) on the target's slice, where the attack pastes; its whole cube is 32 mm"
    " in each direction."
)
SWEEP = (
    "Ours: the square of 32 mm on the target's slice, the attacked protected image compared with the clean one. The"
    " weight is the one that each model's card names; other settings of training may differ between columns."
)
NO_SWEEP = (
    "Left out: no protector's card names a weight of the paper's term (alpha or paper_weight), and --sweep names none."
)
FORGERY = (
    "Not in the paper. Measured in the middle 20 mm of the attacked cube, which the attacker's network makes up. "
    "Attack's own change: RMSE between the image before and after the attack. Forgery moved: RMSE between the "
    "attack on this image and the attack on the clean scan. Share: that, divided by the attack's own change of the "
    "clean scan at the same place."
)
FORGERY_STATISTICS = (
    "The share is the median over a patient's targets, the rest are means. The last two columns are differences of "
    "shares at the same target, protection minus noise of equal RMSE: only what exceeds 0 is the merit of the "
    "protection's pattern. A forgery that moved is another forgery, not always a worse one: see Figure 6."
)
SUCCESS = (
    "Not in the paper. Two frozen classifiers judge every place before and after the attack. Nodule judge: is there a "
    "nodule in the middle of the 32 mm cube? Forensic judge: was this place forged? Its threshold was set to 5 % false "
    "alarms on untouched places of the scans that it was validated on. AUC: how likely it scores an attacked place "
    "above an untouched one of the same arm; 0.5 is chance. Untouched, alarm: places of the arm, not attacked, that it "
    "takes for forged, so false alarms of protection or noise itself."
)
SUCCESS_COUNT = (
    "Finding: an injection reaches it where the nodule judge sees a nodule that the clean scan does not have, a "
    "removal where it no longer sees the one that is there; places where the clean scan offers nothing to reach count "
    "neither way, and the last column says how many count. Success, past the judges: the finding is reached and the "
    "forensic judge passes the place; past all checks: and 'mitsgan check' does not find it either, where the scan "
    "carries the open watermark. Check: whether it misses the watermark at the place, after the attack and before. "
    "Minus unprotected: the difference of the former at the same places, in percentage points; protection should make "
    "it negative, and more so than noise of equal RMSE. These attackers do not know of the watermark. Judges are small "
    "networks with errors of their own, and no radiologists."
)
SUCCESS_INTERVAL = (
    "In brackets the {confidence:.0%} percentile interval of a two-stage bootstrap ({resamples} resamples, seed "
    "{seed}): patients are drawn, and places of each. With one patient places alone are drawn, which says nothing of "
    "others. Forgery moved: as in the table above, resampling patients."
)
NO_JUDGES = (
    "Visibility and success (Table 4) are left out: no judges are installed or named. Train them with 'mitsgan train "
    "judge-nodule-residual --data DATA' and 'mitsgan train judge-forensic --data DATA', and name the two files with "
    "--judges."
)
PLANTED = (
    "Removals: {nodules} nodules ({kind}) are planted in turn at seeded places of healthy lung, so "
    "that there is something to remove; clean, protected and noisy scans all have them. In a removal, clean means the "
    "scan with the planted nodule before protection."
)
CHANGE = (
    "Not in the paper. Protected against clean scan, the whole volume. Worst slice: the slice of each scan with the"
    " largest RMSE, lowest PSNR, or largest absolute mean change; worst tile: the 32x32-voxel tile of any slice "
    "with the lowest mean local SSIM, of the picture clipped to the lung (-600/1500 HU) or mediastinal (40/400 HU) "
    "window, with the window's width as data range. Noise: the scan's own, in soft tissue."
)
CHANGE_NEARBY = (
    "Signed gradients and searches change the scan at or around the targets only, so their figures over all slices say "
    "little."
)
CONTROLS = (
    "Noise instead: the clean scan with noise in place of protection, of the same RMSE in every slice and within "
    "the voxels that protection may change; CT-like noise has the spectrum, slice correlation and local level of "
    "the same scan's own noise."
)

KINDS = {
    "noise": "noise:N is white Gaussian noise of N HU (root mean square) in the patient, without a network.",
    "ct-noise": "ct-noise:N is noise of N HU (root mean square) like the scan's own, without a network.",
    "gradient": (
        "gradient:N@H is N steps of signed gradients through the very attack that is measured, of at most H HU at the "
        "targets alone: a bound on what a protector of this strength can do, no protection for use."
    ),
    "search": (
        "search:N@H is the search of 'protect --model search' against the attacker that is measured alone, N steps in "
        "each block of the lung within 8 mm of the targets, whose places it does not know, of at most H HU."
    ),
}
NO_LPIPS = "not measured: no network's ImageNet weights are on this machine, or a package that LPIPS needs is missing."
