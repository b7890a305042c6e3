"""The explanations that are printed with a leaderboard."""

from __future__ import annotations

from collections.abc import Iterable

FOOTNOTES = {
    "¹": "¹ trained with labels, or with a teacher that was trained with labels.",
    "²": "² stale: made by an older version of a component than the present one.",
    "³": "³ with external data, external weights or an external teacher.",
    "⁴": "⁴ with a warning, which is printed with the table.",
}
SHORT = """\
Mean over seeds ± 95 % interval (difference from the untrained network that the method started from), pooling. ▲ ▼:
significantly better or worse than that network; ▽: worse, not significantly. `ssl-bench leaderboard DIR --explain` says
how each number is made."""
INTERVALS = """\
Accuracies in percent: mean over seeds ± 95 % interval. The interval combines Student's t over seeds with the interval
over test images; with one seed it is the latter alone."""
ARROWS = """\
▲ ▼: significantly better or worse than the untrained network, by the test behind the ranks; ▽: worse, but not
significantly."""
DIFFERENCES = f"In brackets: the difference from the untrained network that the method started from.\n{ARROWS}"
COSTS = """\
Every choice is made on images held out of the training set; the test split is used once. Patches: encoded with gradient
for one image, all views together; in brackets those encoded without gradient, by a momentum encoder or EMA teacher.
FLOPs: matrix products of the whole pre-training. Time and memory: of one pre-training run on the device named."""
RANKS = """\
Rank: 1 + the number of methods that are significantly better. Two methods without a significant difference share a rank
unless a third one separates them. Tests are paired over test images: McNemar's score test on the mean over seeds, with
the variance between seeds added (Welch-Satterthwaite degrees of freedom; a method with one seed adds none), at 5 %
after Holm's correction for all pairs of an evaluation. Where an image is used several times (episodes, draws of labels,
corruptions), the share of its correct predictions counts, and the variance over draws is added. In evaluations marked ~
some row has no predictions for each image; there the 95 % intervals are compared as independent. Diagnostics are not
ranked. Mean rank: over all evaluations, only for methods that have every one of them."""
RATIOS = """\
mIoU and J&F are ratios of sums over test images (of video over clips): their intervals are bootstraps over images, and
in paired tests an image counts by what it adds to the ratio (n times the derivative by its weight, the infinitesimal
jackknife)."""
TABLE = f"{INTERVALS}\n{DIFFERENCES}\n{COSTS}"
BEST = "bold: no method without labels is significantly better"
ON_PAGE = f"""\
Mean over seeds; small: ± 95 % interval, #rank. ▲ ▼: significantly better or worse than the untrained network that the
method started from; {BEST}. Bars: means and intervals on one scale a column. A number opens its rows."""
PAGE = f"#: rank in that evaluation; {BEST}. A number opens the rows behind it."


def ranks(tasks: Iterable[str]) -> str:
    """How ranks are made, for tables of such tasks."""
    return f"{RANKS}\n{RATIOS}" if set(tasks) & {"segmentation", "video"} else RANKS
