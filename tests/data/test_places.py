"""Drawn places: the views of one are found by what they show of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_bench.data import datasets, shapes
from ssl_bench.data.datasets import load
from ssl_bench.data.places import VIEWS, draw_places
from ssl_bench.utils.errors import UserError


def test_a_query_searches_for_the_views_of_its_place() -> None:
    drawn = draw_places(12, size=32)
    others = len(VIEWS) - 1
    assert drawn.database.shape == (12 * others, 3, 32, 32) and drawn.queries.shape == (12, 3, 32, 32)
    for place, search in enumerate(drawn.searches):
        kinds = ["?"] * others
        for kind, found in search._asdict().items():
            for at in found.tolist():
                kinds[at - place * others] = kind
        assert kinds == list(VIEWS[1:])


def test_hard_views_are_found_less_often_than_easy_ones_and_more_often_than_by_chance() -> None:
    """By the rare colours that pictures share, six levels of each channel."""
    drawn, levels = draw_places(40, size=32), 6
    level = torch.cat([drawn.queries, drawn.database]).long() * levels // 256
    colour = ((level[:, 0] * levels + level[:, 1]) * levels + level[:, 2]).flatten(1)
    counts = torch.nn.functional.one_hot(colour, levels**3).sum(1).float()
    rarity = torch.log(len(counts) / (1 + (counts > 0).sum(0)))
    seen = torch.nn.functional.normalize(counts.sqrt() * rarity)
    closest = (seen[:40] @ seen[40:].T).argsort(1, descending=True).numpy()
    easy, hard = (
        np.mean(
            [np.isin(closest[q], getattr(search, kind)).nonzero()[0].mean() for q, search in enumerate(drawn.searches)]
        )
        for kind in ("easy", "hard")
    )
    assert easy < 5 and 30 < hard < 120  # by chance half of 360


def test_a_shorter_draw_is_the_start_of_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    long, short = draw_places(20, size=32), draw_places(11, size=32)
    assert torch.equal(long.database[: len(short.database)], short.database)
    assert torch.equal(long.queries[:11], short.queries)
    assert not torch.equal(short.queries, draw_places(11, size=32, seed=1).queries)
    monkeypatch.setattr(shapes, "_CHUNK", 1)
    assert torch.equal(draw_places(20, size=32).database, long.database)


def test_places_is_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(datasets.DRAWN, "places", (64, 10, 10))
    splits = load("places@32")
    drawn = draw_places(10, size=32)
    assert splits.train.offers == splits.test.offers == {"searches"}
    assert torch.equal(torch.stack(list(splits.test.images)), drawn.queries)
    assert torch.equal(torch.stack(list(splits.train.images)), drawn.database)
    with pytest.raises(UserError, match="search all of its images; leave #50 out"):
        load("places#50")
