"""k-NN against worked numbers of the authors' functions, brute force, scikit-learn, and its own invariances."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Result
from ssl_bench.evaluations.frozen.knn import KNN, ranks
from ssl_bench.evaluations.solvers import neighbours
from ssl_bench.evaluations.solvers.neighbours import nearest, normalize, search, search_torch
from ssl_bench.metrics.votes import votes
from ssl_bench.utils.errors import RunError, UserError

# The authors' functions (DINO `knn_classifier`, DINOv2 `KnnModule`) on these rows, temperature 0.07, three classes.
BANK = torch.tensor(
    [[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0.1, 0.8, 0.1], [0, 0, 1], [0.5, 0.5, 0], [0, 0.3, 0.7], [0.6, 0, 0.4]]
)
BANK_LABELS = torch.tensor([0, 0, 1, 1, 2, 1, 2, 0])
QUERIES = torch.tensor([[0.7, 0.4, 0.1], [0.2, 0.5, 0.45], [0.55, 0.1, 0.5], [0.45, 0.55, 0.05]])
QUERY_LABELS = torch.tensor([0, 2, 2, 1])
COSINES = [
    [0.86164043, 0.91074314, 0.49236598, 0.60606062, 0.12309149, 0.95742711, 0.30709140, 0.78520705],
    [0.28498821, 0.36192435, 0.71247051, 0.81560123, 0.64122344, 0.70530982, 0.87003323, 0.59281128],
    [0.73333334, 0.74357228, 0.13333333, 0.30362568, 0.66666666, 0.61282588, 0.66528592, 0.97997035],
    [0.63167615, 0.71307116, 0.77204866, 0.84665426, 0.07018624, 0.99258333, 0.36863622, 0.56451865],
]
SHARES = {
    3: [[0.434327978, 0.565672022, 0], [0, 0.360945734, 0.639054266], [1, 0, 0], [0, 1, 0]],
    5: [[0.458762730, 0.541237270, 0], [0, 0.388635825, 0.611364175],
        [0.979247861, 0, 0.020752139], [0.020320468, 0.979679532, 0]],
}  # fmt: skip


def parity(k: int) -> tuple[Tensor, Tensor]:
    """Neighbours in float64: the published shares hold to 1e-6 only there."""
    bank, queries = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (BANK, QUERIES))
    return search_torch(bank, queries, k)


def test_parity_cosines_and_neighbours() -> None:
    similarity, index = search(normalize(BANK), normalize(QUERIES), 8)
    expected = torch.tensor(COSINES)
    torch.testing.assert_close(torch.zeros(4, 8).scatter(1, index, similarity), expected, atol=1e-6, rtol=0)
    assert index[:, :5].tolist() == [[5, 1, 0, 7, 3], [6, 3, 2, 5, 4], [7, 1, 0, 4, 6], [5, 3, 2, 1, 0]]


def test_parity_shares() -> None:
    similarity, index = parity(8)
    for k, v in votes(similarity, BANK_LABELS[index], 3, ks=[3, 5], temperature=0.07):
        shares = v / v.sum(1, keepdim=True)
        torch.testing.assert_close(shares, torch.tensor(SHARES[k], dtype=torch.float64), atol=1e-6, rtol=0)
        raw = v * (similarity[:, :1] / 0.07).exp()
        if k == 3:
            torch.testing.assert_close(raw[0, :2], torch.tensor([668850.3834, 871115.7647]).double(), atol=0, rtol=1e-6)
        else:
            torch.testing.assert_close(
                raw[2, ::2], torch.tensor([1278602.521, 27096.03752]).double(), atol=0, rtol=1e-6
            )


def test_parity_dinov2_softmax_weights_are_the_same_vote() -> None:
    """DINOv2 weighs by a softmax over all 8 neighbours and sums the first 5: the same shares, another scale."""
    similarity, index = parity(8)
    ((_, five), (_, eight)) = votes(similarity, BANK_LABELS[index], 3, ks=[5, 8], temperature=0.07)
    expected = [[0.45841745, 0.54082984, 0], [0, 0.38411239, 0.60424829],
                [0.97445405, 0, 0.02065055], [0.02028053, 0.97775447, 0]]  # fmt: skip
    torch.testing.assert_close((five / eight.sum(1, keepdim=True)).float(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_parity_predictions_and_accuracies() -> None:
    similarity, index = search(normalize(BANK), normalize(QUERIES), 8)
    near = BANK_LABELS[index]
    assert {k: v.argmax(1).tolist() for k, v in votes(similarity, near, 3, [1, 3, 5, 8], 0.07)} == {
        key: [1, 2, 0, 1] for key in (1, 3, 5, 8)
    }
    found = ranks(similarity, near, QUERY_LABELS, 3, [1, 3, 5, 8], [0.07])
    for k in (1, 3, 5, 8):
        assert (found[k, 0.07] == 0).double().mean() == 0.5
        assert (found[k, 0.07] < min(5, k)).double().mean() == (0.5 if k == 1 else 1.0)


def test_parity_temperature_sensitivity() -> None:
    similarity, index = search(normalize(BANK), normalize(QUERIES), 5)
    near = BANK_LABELS[index]
    assert [next(votes(similarity, near, 3, [5], t))[1].argmax(1)[0].item() for t in (0.07, 0.1)] == [1, 0]
    assert next(votes(similarity, near, 3, [5], 1e6))[1].argmax(1)[:2].tolist() == [0, 1]  # nearly unweighted


def test_small_temperatures_do_not_overflow() -> None:
    similarity, index = search(normalize(BANK), normalize(QUERIES), 8)
    (_, v), *_ = votes(similarity, BANK_LABELS[index], 3, [8], 1e-4)
    assert torch.isfinite(v).all()
    assert v.argmax(1).tolist() == [1, 2, 0, 1]


def clustered(n: int, classes: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping Gaussian clusters: k-NN accuracy well between chance and 100 %."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + 1.5 * torch.randn(n, dim, generator=generator), labels


def brute(bank: Tensor, bank_labels: Tensor, queries: Tensor, classes: int, k: int, t: float) -> np.ndarray:
    """Predictions by loops over NumPy float64, one query at a time."""
    x = bank.double().numpy() / np.linalg.norm(bank.double().numpy(), axis=1, keepdims=True)
    found = []
    for q in queries.double().numpy():
        s = x @ (q / np.linalg.norm(q))
        score = [0.0] * classes
        for j in sorted(range(len(x)), key=lambda j: -s[j])[:k]:
            score[int(bank_labels[j])] += np.exp(s[j] / t)
        found.append(int(np.argmax(score)))
    return np.array(found)


@pytest.mark.parametrize(("k", "t"), [(1, 0.07), (7, 0.07), (20, 0.1), (150, 0.07)])
def test_equals_brute_force(k: int, t: float) -> None:
    (bank, bank_labels), queries = clustered(300, 6, 16, 1), clustered(57, 6, 16, 2)[0]
    for find in (search, search_torch):
        similarity, index = find(normalize(bank), normalize(queries), 150)
        found = dict(votes(similarity, bank_labels[index], 6, sorted({k, 150}), t))[k].argmax(1)
        np.testing.assert_array_equal(found.numpy(), brute(bank, bank_labels, queries, 6, k, t))


@pytest.mark.parametrize("k", [5, 20])
def test_equals_scikit_learn(k: int) -> None:
    (bank, bank_labels), (queries, labels) = clustered(2000, 8, 24, 3), clustered(500, 8, 24, 4)
    model = KNeighborsClassifier(k, algorithm="brute", metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = model.fit(bank.double().numpy(), bank_labels.numpy()).predict(queries.double().numpy())
    similarity, index = search(normalize(bank), normalize(queries), k)
    rank = ranks(similarity, bank_labels[index], labels, 8, [k], [0.07])[k, 0.07]
    np.testing.assert_array_equal((rank == 0).numpy(), expected == labels.numpy())
    assert 0.3 < float((rank == 0).double().mean()) < 0.98


def test_search_blocks_agree_with_one_product() -> None:
    bank, queries = normalize(clustered(700, 5, 12, 5)[0]), normalize(clustered(4100, 5, 12, 6)[0])
    similarity, index = search(bank, queries, 10)
    expected = (queries @ bank.T).topk(10, dim=1)
    torch.testing.assert_close(similarity, expected.values, atol=1e-6, rtol=0)
    assert (index == expected.indices).double().mean() > 0.999  # rounding may swap two neighbours
    again = search(bank, queries, 10)
    assert torch.equal(again[0], similarity)
    assert torch.equal(again[1], index)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("k", [1, 20, 150])
def test_pieces_of_the_bank_equal_brute_force(monkeypatch: pytest.MonkeyPatch, k: int, half: bool) -> None:
    (bank, bank_labels), (queries, labels) = clustered(2500, 6, 16, 1), clustered(57, 6, 16, 2)
    monkeypatch.setattr(neighbours, "BANK_FLOATS", 1024 * 16)  # three pieces
    monkeypatch.setattr(neighbours, "SMALL_BANK_FLOATS", 0)
    monkeypatch.setattr(neighbours, "GATHERED_FLOATS", 5000)
    monkeypatch.setattr(neighbours, "QUERIES_PER_BLOCK", 20)
    blocks = list(nearest(bank, queries, k, half))
    assert [len(similarity) for similarity, _ in blocks] == [20, 20, 17]
    similarity, index = (torch.cat(part) for part in zip(*blocks, strict=True))
    rank = ranks(similarity, bank_labels[index], labels, 6, [k], [0.07])[k, 0.07]
    right = brute(bank, bank_labels, queries, 6, k, 0.07) == labels.numpy()
    assert np.mean((rank == 0).numpy() == right) == 1.0
    if not half:
        whole = search(normalize(bank), normalize(queries), k)
        torch.testing.assert_close(similarity, whole[0], atol=1e-6, rtol=0)
        assert (index == whole[1]).double().mean() > 0.999


def test_half_precision_sees_past_what_all_images_share() -> None:
    """Features of real networks have a large common part: their cosines are near 1, where bf16 has few numbers."""
    (bank, labels), (queries, truth) = clustered(3000, 8, 24, 3), clustered(400, 8, 24, 4)
    bank, queries = bank + 100, queries + 100
    ((exact, index),) = nearest(bank, queries, 20)
    ((fast, fast_index),) = nearest(bank, queries, 20, half=True)
    plain = (normalize(queries).bfloat16() @ normalize(bank).bfloat16().T).float().topk(20)
    assert exact.min() > 0.999
    torch.testing.assert_close(fast, exact, atol=1e-6, rtol=0)
    exact_top1, fast_top1, plain_top1 = (
        100 * float((ranks(s, labels[i], truth, 8, [20], [0.07])[20, 0.07] == 0).double().mean())
        for s, i in [(exact, index), (fast, fast_index), (plain.values, plain.indices)]
    )
    assert fast_top1 == pytest.approx(exact_top1, abs=0.1)
    assert plain_top1 < exact_top1 - 1  # what this test would see without the centre


@pytest.mark.parametrize("width", [64, 640, 645, 1024])
def test_grouped_topk_is_topk(width: int) -> None:
    scores = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    values, index = neighbours._topk(scores, 20)
    assert torch.equal(values, scores.topk(20).values)
    assert torch.equal(scores.gather(1, index), values)


@pytest.mark.parametrize("half", [False, True])
def test_few_images_of_any_kind(half: bool) -> None:
    """One test image, fewer training images than k, a class nobody has: no special cases."""
    encoder, data = problem(n_train=12, n_test=1, n_dev=3)
    result = KNN(half=half).run(encoder, data)
    assert result.metrics["top1"].n == 1
    assert result.chosen["headline_k"] == 10 and result.chosen["skipped_k"] == [20, 50, 100, 200]
    rows = torch.zeros(1, 4), torch.ones(3, 4)
    ((similarity, index),) = nearest(rows[1], rows[0], 3, half)  # a black image has no direction
    assert similarity.tolist() == [[0, 0, 0]] and index.tolist() == [[0, 1, 2]]


def test_half_is_written_into_the_row() -> None:
    assert KNN(half=True).settings()["half"] is True


def test_votes_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, bank_labels), (queries, labels) = clustered(300, 6, 16, 1), clustered(57, 6, 16, 2)
    similarity, index = search(normalize(bank), normalize(queries), 50)
    whole = ranks(similarity, bank_labels[index], labels, 6, [3, 50], [0.07, 0.1])
    monkeypatch.setattr("ssl_bench.evaluations.frozen.knn.VOTE_DOUBLES", 1)  # one query at a time
    parts = ranks(similarity, bank_labels[index], labels, 6, [3, 50], [0.07, 0.1])
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_equal_similarities_come_in_bank_order() -> None:
    bank = normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    for find in (search, search_torch):
        similarity, index = find(bank, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 5)
        assert index.tolist() == [[1, 2, 4, 0, 3], [0, 3, 1, 2, 4]]
        assert similarity.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_without_faiss_the_torch_search_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = normalize(clustered(300, 6, 16, 1)[0]), normalize(clustered(57, 6, 16, 2)[0])
    with_faiss = search(bank, queries, 20)
    monkeypatch.setitem(sys.modules, "faiss", None)  # makes `import faiss` raise ImportError
    without = search(bank, queries, 20)
    torch.testing.assert_close(with_faiss[0], without[0], atol=1e-6, rtol=0)
    assert torch.equal(with_faiss[1], without[1])


class Stub:
    """Features drawn once for each split; `asked` records which splits were requested, in order."""

    poolings: tuple[str, ...] = ("cls", "mean")

    def __init__(self, features: dict[str, dict[str, Tensor]]) -> None:
        self.of, self.asked = features, list[str]()

    def features(self, images: ImageSet, poolings: Sequence[str]) -> dict[str, Tensor]:
        self.asked.append(images.split)
        whole, rows = (images, slice(None)) if images.origin is None else images.origin
        return {name: self.of[whole.split][name][rows] for name in poolings}


def problem(
    n_train: int = 400, n_test: int = 90, classes: int = 6, good: str = "mean", n_dev: int = 80
) -> tuple[Stub, Data]:
    """Two poolings, one with class information and one of noise."""
    features: dict[str, dict[str, Tensor]] = {}
    sets: dict[str, ImageSet] = {}
    for split, n, seed in (("train", n_train, 1), ("test", n_test, 2)):
        x, y = clustered(n, classes, 16, seed)
        noise = torch.randn(n, 16, generator=torch.Generator().manual_seed(seed + 10))
        features[split] = {name: x if name == good else noise for name in ("cls", "mean")}
        names = tuple(f"c{i}" for i in range(classes))
        sets[split] = ImageSet("toy", split, y, names, "0" * 64, torch.zeros(n, 3, 1, 1, dtype=torch.uint8))
    order = torch.arange(n_train)
    fit, dev = sets["train"].subset(order[n_dev:], "fit"), sets["train"].subset(order[:n_dev], "dev")
    return Stub(features), Data(sets["train"], fit, dev, sets["test"])


def top1(result: Result) -> float:
    return result.metrics["top1"].value


@pytest.mark.parametrize("good", ["cls", "mean"])
def test_run_chooses_the_pooling_on_dev_and_reports_brute_force_numbers(good: str) -> None:
    encoder, data = problem(good=good)
    result = KNN().run(encoder, data)
    assert result.pooling == good
    assert result.headline == "top1"
    bank, queries = encoder.of["train"], encoder.of["test"]
    for name in ("cls", "mean"):
        right = brute(bank[name], data.train.labels, queries[name], 6, 20, 0.07) == data.test.labels.numpy()
        assert result.metrics[f"{name}/top1@k=20,T=0.07"].value == pytest.approx(100 * right.mean())
        if name == good:
            np.testing.assert_array_equal(result.correct, right)
            assert top1(result) == pytest.approx(100 * right.mean())
    assert len([name for name in result.metrics if name.startswith("top1@")]) == 14
    assert result.metrics["top1"].n == 90
    assert result.metrics["top5"].value >= top1(result)
    right = brute(bank[good][80:], data.fit.labels, bank[good][:80], 6, 20, 0.07) == data.dev.labels.numpy()
    assert result.chosen["dev_top1"][good] == pytest.approx(100 * right.mean())  # type: ignore[index]
    json.dumps(result.chosen)


def test_test_images_do_not_choose() -> None:
    encoder, data = problem()
    before = KNN().run(encoder, data)
    assert encoder.asked.index("test") > max(encoder.asked.index("dev"), encoder.asked.index("fit"))
    data.test.labels.copy_(data.test.labels.flip(0))
    encoder.of["test"]["mean"] = torch.randn(90, 16)
    after = KNN().run(encoder, data)
    assert after.chosen == before.chosen
    assert top1(after) != top1(before)


@pytest.mark.parametrize("scale", [1e-15, 3.7, 1e15])
def test_rescaled_features_change_nothing(scale: float) -> None:
    encoder, data = problem()
    before = KNN().run(encoder, data)
    encoder.of = {split: {name: x * scale for name, x in found.items()} for split, found in encoder.of.items()}
    after = KNN().run(encoder, data)
    np.testing.assert_array_equal(before.correct, after.correct)


def test_permuted_classes_change_no_correctness() -> None:
    encoder, data = problem()
    before = KNN().run(encoder, data)
    new = torch.tensor([3, 5, 0, 1, 4, 2])
    for split in (data.train, data.fit, data.dev, data.test):
        split.labels.copy_(new[split.labels])
    np.testing.assert_array_equal(KNN().run(encoder, data).correct, before.correct)


def test_duplicated_test_set_keeps_the_accuracy() -> None:
    encoder, data = problem()
    before = KNN().run(encoder, data)
    encoder.of["test"] = {name: x.repeat(2, 1) for name, x in encoder.of["test"].items()}
    twice = ImageSet("toy", "test", data.test.labels.repeat(2), data.test.classes, "0" * 64, data.test.images[:1])  # type: ignore[index]
    after = KNN().run(encoder, Data(data.train, data.fit, data.dev, twice))
    assert top1(after) == pytest.approx(top1(before))
    assert after.metrics["top1"].n == 180
    assert after.metrics["top1"].high < before.metrics["top1"].high


def test_few_training_images_skip_large_k_and_say_so() -> None:
    encoder, data = problem(n_train=12, n_test=7, n_dev=4)
    result = KNN().run(encoder, data)
    assert result.chosen["skipped_k"] == [20, 50, 100, 200]
    assert result.chosen["headline_k"] == 10
    assert result.metrics["top1"] == result.metrics["top1@k=10,T=0.07"]
    assert not any("k=20" in name for name in result.metrics)
    with pytest.raises(RunError, match="12 training images are fewer than the smallest k, 20"):
        KNN(k=(20,)).run(encoder, data)


def test_one_test_image_and_classes_missing_from_test() -> None:
    encoder, data = problem(n_test=1)
    assert KNN().run(encoder, data).metrics["top1"].value in (0.0, 100.0)
    encoder, data = problem()
    rows = (data.test.labels < 2).nonzero()[:, 0]
    few = data.test.subset(rows, "test")
    result = KNN().run(encoder, Data(data.train, data.fit, data.dev, few))
    right = brute(encoder.of["train"]["mean"], data.train.labels, encoder.of["test"]["mean"][rows], 6, 20, 0.07)
    np.testing.assert_array_equal(result.correct, right == few.labels.numpy())


def test_one_class_is_always_right() -> None:
    encoder, data = problem(classes=1)
    assert top1(KNN().run(encoder, data)) == 100.0


def test_raw_pixels_are_accepted() -> None:
    encoder, data = problem()
    encoder.poolings = ("pixels",)
    encoder.of = {split: {"pixels": found["mean"]} for split, found in encoder.of.items()}
    assert KNN().run(encoder, data).pooling == "pixels"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": (0, 20)}, "k must be positive"),
        ({"k": ()}, "k must be positive"),
        ({"temperature": (0.0,)}, "temperature must be positive"),
        ({"headline_k": 7}, "headline_k 7 is not one of k"),
        ({"headline_temperature": 0.2}, "headline_temperature 0.2 is not one"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KNN(**settings)  # type: ignore[arg-type]
