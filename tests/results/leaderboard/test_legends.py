"""The legend speaks of what the table shows, in words."""

from __future__ import annotations

import pytest

from ssl_bench.results.leaderboard import legends


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("segmentation", "mIoU in percent: of the pixels"),
        ("detection", "AP in percent: average precision of predicted boxes"),
        ("video", "J&F in percent"),
        ("depth", "a1 in percent: share of pixels"),
        ("retrieval", "mAP in percent: average precision of the ranking"),
        ("multilabel", "by each label"),
    ],
)
def test_each_task_has_its_unit_and_only_where_it_is_shown(task: str, words: str) -> None:
    assert words in legends.ranks(["classification", task]) and words not in legends.ranks(["classification"])
    assert sum(each in legends.ranks([task]) for each in legends.UNITS.values()) == 1


def test_other_intervals_are_named_where_they_are_used() -> None:
    assert legends.ranks(["classification"]) == legends.ranks(["depth"]).replace(legends.UNITS["depth"], "").strip()
    assert legends.RATIOS in legends.ranks(["detection"]) and legends.RATIOS not in legends.ranks(["depth"])
