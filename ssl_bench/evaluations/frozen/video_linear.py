"""Action recognition on frozen features of single frames: averaged, set side by side, or pooled by attention.

The light video protocol of DINOv2 (Oquab et al., TMLR 2024, arXiv:2304.07193, section 7.3: eight frames, averaged for
UCF101 and Kinetics, concatenated for Something-Something) and, with attention over the frames, the attentive probe of
V-JEPA (Bardes et al., TMLR 2024, arXiv:2404.08471, section 4.2) at its smallest.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.data.datasets import ImageSet
from ssl_bench.evaluations.evaluator import Data, Encoder, Evaluator, Result, at_edge
from ssl_bench.evaluations.frozen.logistic import Logistic
from ssl_bench.evaluations.heads import standardisation
from ssl_bench.evaluations.selection import choose_head
from ssl_bench.evaluations.subsets import balanced_subset
from ssl_bench.metrics.metric import accuracies, true_class_rank
from ssl_bench.utils.bounds import Area, Count, Few, NonNegative, Positive, Seed
from ssl_bench.utils.errors import RunError, UserError, unknown
from ssl_bench.views.execution import seeded

OVER_TIME = ("average", "concatenate", "attention")
BATCH = 128  # clips a step of the attentive probe
WARMUP = 0.1  # of its steps


class VideoLinear(Evaluator):
    """Accuracy of a classifier of clips on the features of some of their frames.

    With "average" and "concatenate" the classifier is an exact logistic regression; with "attention" a learned query
    attends to the frames, each with a learned place in time, before a linear layer, trained by AdamW (cosine). A tenth
    of the training clips is dev, where the pooling and C or the learning rate are chosen; all of them then train.

    Args:
        frames: Of each clip, from the centres of as many equal parts.
        over_time: "average", "concatenate" or "attention".
        C: Inverse strengths of the penalty; of logistic regression.
        lr: Learning rates; of attention.
        weight_decay: Likewise.
        epochs: Passes over the training clips; likewise.
        heads: Of the attention, which must divide the width of the features.
        dev: Share of the training clips that is held out.
        poolings: Features to compare.
        seed: Of the attention's weights, the order of clips and the draw of dev.

    Raises:
        UserError: A number out of range, or an unknown way to pool.
    """

    version: ClassVar[int] = 1
    task: ClassVar[str] = "video"
    needs: ClassVar[str] = "actions"
    metric_help: ClassVar[dict[str, str]] = {
        "top1": "accuracy over clips, percent",
        "top5": "truth among the five classes with the highest scores, percent",
    }

    def __init__(
        self,
        frames: Count = 8,
        over_time: str = "average",
        C: tuple[Positive, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        lr: tuple[Positive, ...] = (3e-4, 1e-3, 3e-3),
        weight_decay: NonNegative = 0.05,
        epochs: Count = 50,
        heads: Few = 3,
        dev: Area = 0.1,
        poolings: tuple[str, ...] = ("cls", "mean"),
        seed: Seed = 0,
    ) -> None:
        self.frames, self.over_time, self.C, self.lr = frames, over_time, tuple(C), tuple(lr)
        self.weight_decay, self.epochs, self.heads, self.dev = weight_decay, epochs, heads, dev
        self.poolings, self.seed = tuple(poolings), seed
        self.head = Logistic(self.C)
        if over_time not in OVER_TIME:
            raise unknown("video-linear over_time", over_time, OVER_TIME)
        if not self.lr or heads < 1 or dev == 1:
            raise UserError(
                f"video-linear: lr must name a rate, heads be at least 1 and dev below 1, got {lr}, {heads}, {dev}"
            )

    def run(self, encoder: Encoder, data: Data) -> Result:
        """Choose on held-out training clips, train on all of them, score test once.

        Raises:
            UserError: The encoder has none of the poolings.
            RunError: Features that mean nothing, too few clips, or no head stayed finite.
        """
        classes = len(data.train.classes)
        train, labels = self._clips(encoder, data.train)
        test, truth = self._clips(encoder, data.test)
        held = balanced_subset(labels, classes, self.dev, self.seed)
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[held] = False
        if len(labels[kept].unique()) < 2:
            raise RunError(f"video-linear: the training clips of {data.train.name} left after dev show one class")
        tried: dict[tuple[str, float], tuple[float, float]] = {}
        for name, x in train.items():
            for value in self.lr if self.over_time == "attention" else self.C:
                scores = self._scores(x[kept], labels[kept], x[held], classes, value)
                entropy = F.cross_entropy(scores.double(), labels[held])
                correct = true_class_rank(scores, labels[held]) == 0
                tried[name, value] = 100 * float(correct.double().mean()), -float(entropy)
        (pooling, value), facts = choose_head("video-linear", tried)
        scores = self._scores(train[pooling], labels, test[pooling], classes, value)
        rank = true_class_rank(scores, truth)
        kind, grid = ("lr", self.lr) if self.over_time == "attention" else ("C", self.C)
        chosen: dict[str, object] = {
            "pooling": pooling,
            kind: value,
            f"{kind}_at_edge": at_edge(value, grid),
            "clips": len(labels),
            "dev_clips": len(held),
            **facts,
        }
        return Result(accuracies(rank), "top1", (rank == 0).numpy(), chosen, pooling)

    def _clips(self, encoder: Encoder, images: ImageSet) -> tuple[dict[str, Tensor], Tensor]:
        """Features (clips, frames, D) of a split by pooling, and the classes (clips,) of its clips."""
        assert images.targets is not None and images.targets.clips is not None
        of = images.targets.clips
        at = [(of == clip).nonzero().squeeze(1) for clip in of.unique()]
        rows = torch.cat([frames[segment_centres(len(frames), self.frames)] for frames in at])
        found = self.features(encoder, images.subset(rows, images.split))
        labels = torch.stack([images.labels[frames[0]] for frames in at])
        return {name: x.unflatten(0, (len(at), self.frames)) for name, x in found.items()}, labels

    def _scores(self, x: Tensor, labels: Tensor, queries: Tensor, classes: int, value: float) -> Tensor:
        """(Q, classes) of queries (Q, frames, D) by a classifier of (N, frames, D)."""
        if self.over_time == "attention":
            return self._attended(x, labels, queries, classes, value)
        pool = (lambda f: f.mean(1)) if self.over_time == "average" else (lambda f: f.flatten(1))
        return self.head.fit(pool(x), labels, classes, [value])[0].scores(pool(queries))[:, 0]

    def _attended(self, x: Tensor, labels: Tensor, queries: Tensor, classes: int, lr: float) -> Tensor:
        mean, scale = standardisation(x.flatten(0, 1))
        x, queries = (x - mean) * scale, (queries - mean) * scale
        steps = self.epochs * -(-len(x) // BATCH)
        with seeded(self.seed):
            probe = AttentiveProbe(x.shape[2], self.frames, classes, self.heads)
            optimizer = torch.optim.AdamW(probe.parameters(), lr, weight_decay=self.weight_decay)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=WARMUP, cycle_momentum=False)
            for _ in range(self.epochs):
                for at in torch.randperm(len(x)).split(BATCH):
                    loss = F.cross_entropy(probe(x[at]), labels[at])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        with torch.no_grad():
            return probe.eval()(queries)


class AttentiveProbe(nn.Module):
    """A learned query that attends to the frames of a clip, and a linear layer.

    Raises:
        UserError: `heads` doesn't divide `dim`.
    """

    def __init__(self, dim: int, frames: int, classes: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"video-linear: heads is {heads}, which does not divide the {dim} features of a frame")
        self.places = nn.Parameter(0.02 * torch.randn(frames, dim))
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, frames, D) -> (B, classes)."""
        x = x + self.places
        found, _ = self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)
        scores: Tensor = self.head(self.norm(found[:, 0]))
        return scores


def segment_centres(length: int, count: int) -> Tensor:
    """Which of so many frames are taken: those at the centres of `count` equal parts, int64 (count,).

    Example:
        >>> segment_centres(10, 8).tolist(), segment_centres(300, 8).tolist()
        ([0, 1, 3, 4, 5, 6, 8, 9], [18, 56, 93, 131, 168, 206, 243, 281])
    """
    return ((torch.arange(count, dtype=torch.float64) + 0.5) * length / count).floor().long()
