"""Evaluators: an encoder in, numbers out. Protocol files in ``evaluations/`` set their keywords."""

from __future__ import annotations

from ssl_bench.evaluations.evaluator import Evaluator
from ssl_bench.evaluations.frozen.attention_jaccard import AttentionJaccard
from ssl_bench.evaluations.frozen.clustering import Clustering
from ssl_bench.evaluations.frozen.copy_detection import CopyDetection
from ssl_bench.evaluations.frozen.depth_linear import DepthLinear
from ssl_bench.evaluations.frozen.diagnostics import Diagnostics
from ssl_bench.evaluations.frozen.factors import Factors
from ssl_bench.evaluations.frozen.fewshot import FewShot
from ssl_bench.evaluations.frozen.knn import KNN
from ssl_bench.evaluations.frozen.landmarks import Landmarks
from ssl_bench.evaluations.frozen.linear import Linear
from ssl_bench.evaluations.frozen.logistic import Logistic
from ssl_bench.evaluations.frozen.lowshot import LowShot
from ssl_bench.evaluations.frozen.multilabel import MultiLabel
from ssl_bench.evaluations.frozen.patch_linear import PatchLinear
from ssl_bench.evaluations.frozen.retrieval import Retrieval
from ssl_bench.evaluations.frozen.robustness import Robustness
from ssl_bench.evaluations.frozen.segmentation_knn import SegmentationKNN
from ssl_bench.evaluations.frozen.segmentation_linear import SegmentationLinear
from ssl_bench.evaluations.frozen.video_linear import VideoLinear
from ssl_bench.evaluations.frozen.vos import VOS
from ssl_bench.evaluations.trained.detection import Detection
from ssl_bench.evaluations.trained.finetune import FineTune
from ssl_bench.evaluations.trained.probe import Probe
from ssl_bench.evaluations.trained.segmentation_finetune import SegmentationFineTune

EVALUATIONS: dict[str, type[Evaluator]] = {
    "knn": KNN,
    "linear": Linear,
    "probe": Probe,
    "logistic": Logistic,
    "fewshot": FewShot,
    "lowshot": LowShot,
    "finetune": FineTune,
    "clustering": Clustering,
    "retrieval": Retrieval,
    "robustness": Robustness,
    "factors": Factors,
    "diagnostics": Diagnostics,
    "segmentation-knn": SegmentationKNN,
    "segmentation-linear": SegmentationLinear,
    "patch-linear": PatchLinear,
    "vos": VOS,
    "attention-jaccard": AttentionJaccard,
    "detection": Detection,
    "segmentation-finetune": SegmentationFineTune,
    "multilabel": MultiLabel,
    "depth-linear": DepthLinear,
    "video-linear": VideoLinear,
    "copy-detection": CopyDetection,
    "landmarks": Landmarks,
}
