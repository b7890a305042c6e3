"""What the numbers of a paper's table are, in words."""

from __future__ import annotations

from collections.abc import Iterable

from ssl_bench.results.papers.published import Number

ACCURACIES = ("top1", "top5", "macc", "acc")
NAMES = {  # of metrics, as papers print them; any other stands for itself
    **dict.fromkeys(ACCURACIES, "accuracy"),
    "miou": "mIoU",
    "j_f_mean": "J&F",
    "j_mean": "J",
    "f_mean": "F",
    "jaccard": "Jaccard index",
    "map": "mAP",
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "box_ap75": "box AP75",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
    "mce": "mCE",
}


def units(numbers: Iterable[Number]) -> str:
    """The metrics of published numbers with their units, in the order in which they come; one sentence a unit.

    Example:
        >>> from ssl_bench.results.papers.published import published
        >>> units(number for number in published() if number.metric in ("top1", "top5"))
        'Accuracies in percent.'
    """
    found: dict[str, dict[str, None]] = {}
    for number in numbers:
        found.setdefault(number.unit, {})[NAMES.get(number.metric, number.metric)] = None
    said = []
    for unit, names in found.items():
        *most, last = names
        words = f"{', '.join(most)} and {last}" if most else last
        words = "accuracies" if words == "accuracy" else words
        said.append(f"{words[0].upper()}{words[1:]} in {unit}." if words[0].islower() else f"{words} in {unit}.")
    return " ".join(said)
