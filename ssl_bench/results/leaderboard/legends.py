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
UNITS = {  # of tasks whose number is no accuracy
    "segmentation": """\
Segmentation, mIoU in percent: of the pixels that either the prediction or the truth gives to a class, the share that
both give to it; mean over classes (attention-jaccard: foreground alone, mean over images).""",
    "detection": """\
Detection, AP in percent: average precision of predicted boxes as COCO counts it, mean over classes and over how well a
box must fit (overlaps of 0.5 to 0.95).""",
    "video": """\
Video, J&F in percent (vos): how well regions (J) and outlines (F) of objects that were followed through a clip fit the
true ones; video-linear and video-attentive: share of clips whose action is right.""",
    "depth": """\
Depth, a1 in percent: share of pixels that are less than 1.25 times too near or too far.""",
    "retrieval": """\
Retrieval, mAP in percent: average precision of the ranking of images by similarity, mean over queries.""",
    "multilabel": """\
Several labels an image, mAP in percent: average precision of the ranking of images by each label, mean over labels.""",
}
RATIOS = """\
These are no shares of right images, so that other intervals and tests hold: mIoU and J&F are ratios of sums over images
(or clips), with intervals by bootstrap, which draws the test images again and again; AP and mAP of labels have those of
the jackknife, which leaves groups of images out. In the paired tests an image counts by what it adds to the number."""
TABLE = f"{INTERVALS}\n{DIFFERENCES}\n{COSTS}"
BEST = "bold: no method without labels is significantly better"
ON_PAGE = f"""\
Mean over seeds; small: ± 95 % interval, #rank. ▲ ▼: significantly better or worse than the untrained network that the
method started from; {BEST}. Bars: means and intervals on one scale a column. A number opens its rows."""
PAGE = f"#: rank in that evaluation; {BEST}. A number opens the rows behind it."


def ranks(tasks: Iterable[str]) -> str:
    """How ranks are made, and what is ranked, for tables of such tasks."""
    found = set(tasks)
    units = [text for task, text in UNITS.items() if task in found]
    return "\n".join(
        [RANKS, *units, *([RATIOS] if found & {"segmentation", "video", "detection", "multilabel"} else [])]
    )
