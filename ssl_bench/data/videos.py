"""Clips of actions in the layouts of UCF101 and Kinetics: some frames of each video file, decoded on access."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ssl_bench.data.images import LARGEST, Encoded
from ssl_bench.data.lists import missing, read_lines, read_list, size_of
from ssl_bench.data.sources import Raw, check_names
from ssl_bench.data.targets import Targets
from ssl_bench.utils.errors import UserError
from ssl_bench.utils.files import open_regular

FRAMES = 8  # of each video that are taken, from the centres of as many equal parts
VIDEOS = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg")
FORMATS = "avi,mov,matroska,mpeg,mpegts,mpegvideo"  # those that open no other file, as lists of parts do
MOST_FRAMES = 100_000  # of a video
MOST_PIXELS = 2**23  # of a frame


class VideoFrames(Encoded):
    """Frames of video files below one folder; `FRAMES` of each video, one video after the other.

    Args:
        root: The folder.
        paths: Bytes (V,) below it.
        rows: int64 (N,): `FRAMES` times the video, plus the frame.
    """

    def __init__(self, root: str, paths: np.ndarray, rows: np.ndarray) -> None:
        self.root, self.paths, self.rows = root, paths, rows
        sizes = np.array([size_of(os.path.join(root, os.fsdecode(path))) for path in paths])
        self.sizes = sizes[rows // FRAMES] // FRAMES

    def open(self, index: int) -> BinaryIO:
        """The frame, as a file without compression."""
        row = int(self.rows[index])
        return io.BytesIO(_frames(os.path.join(self.root, self._video(row)))[row % FRAMES])

    def key(self, index: int) -> str:
        row = int(self.rows[index])
        return f"{self._video(row)}#{row % FRAMES}"

    def where(self, index: int) -> str:
        return os.path.join(self.root, self.key(index))

    def take(self, indices: np.ndarray) -> VideoFrames:
        return VideoFrames(self.root, self.paths, self.rows[indices])

    def _video(self, row: int) -> str:
        return os.fsdecode(self.paths[row // FRAMES].item())


@lru_cache(maxsize=32)
def _frames(path: str) -> tuple[bytes, ...]:
    """`FRAMES` frames of a video, each as a PPM file."""
    try:
        import av
    except ImportError as error:
        raise UserError("videos need PyAV: pip install 'ssl-bench[video]'") from error
    library: Any = av
    with (
        open_regular(path, LARGEST * 8) as file,
        library.open(file, mode="r", options={"format_whitelist": FORMATS}) as video,
    ):
        stream = video.streams.video[0]
        if stream.codec_context.width * stream.codec_context.height > MOST_PIXELS:
            raise ValueError("frames that are too large")
        count = 0
        for _ in video.decode(stream):
            count += 1
            if count > MOST_FRAMES:
                raise ValueError(f"more than {MOST_FRAMES:,} frames")
        if not count:
            raise ValueError("no frame")
        video.seek(0)
        wanted = np.floor((np.arange(FRAMES) + 0.5) * count / FRAMES).astype(int).tolist()
        found: dict[int, bytes] = {}
        for at, frame in enumerate(video.decode(stream)):
            if at in wanted:
                pixels = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
                found[at] = b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
    return tuple(found[at] for at in wanted)


def read_ucf101(root: Path) -> tuple[Raw, Raw]:
    """UCF101, split 1: `UCF-101/<class>/*.avi` and the lists of `ucfTrainTestlist/`."""
    home = root / "ucf101"
    lists = home / "ucfTrainTestlist"
    numbered = [line.split() for line in read_lines(lists / "classInd.txt")]
    if any(len(words) < 2 for words in numbered):
        raise UserError(f"{lists / 'classInd.txt'} is no list of numbers and classes")
    classes = sorted(words[1] for words in numbered)

    def split(name: str) -> Raw:
        videos = read_list(lists / name, columns=True)
        return _clips(home / "UCF-101", videos, [video.split("/")[0] for video in videos], classes, lists / name)

    return split("trainlist01.txt"), split("testlist01.txt")


def read_kinetics(root: Path) -> tuple[Raw, Raw]:
    """Kinetics-400 as torchvision lays it out: `train/<class>/` and `val/<class>/` with a file a clip."""
    home = root / "kinetics400"

    def split(name: str) -> Raw:
        files = sorted(path for path in (home / name).glob("*/*") if path.suffix.lower() in VIDEOS)
        if not files:
            raise missing(home / name / "<class>" / f"*{VIDEOS[1]}")
        classes = sorted(path.name for path in (home / "train").iterdir() if path.is_dir())
        videos = [f"{path.parent.name}/{path.name}" for path in files]
        return _clips(home / name, videos, [path.parent.name for path in files], classes, home / name)

    return split("train"), split("val")


LISTED = {"ucf101": read_ucf101, "kinetics400": read_kinetics}


def _clips(home: Path, videos: Sequence[str], of: Sequence[str], classes: Sequence[str], where: Path) -> Raw:
    """The frames of videos, each with the class and the number of its video."""
    numbers = {name: at for at, name in enumerate(classes)}
    for video, name in zip(videos, of, strict=True):
        if name not in numbers:
            raise UserError(f"{where}: {video} is of class {name!r}, which isn't among the {len(classes)} classes")
    check_names(classes, "class")
    labels = np.array([numbers[name] for name in of], np.int64).repeat(FRAMES)
    paths = np.array([os.fsencode(video) for video in videos])
    rows = np.arange(len(videos) * FRAMES, dtype=np.int64)
    clips = torch.arange(len(videos)).repeat_interleave(FRAMES)
    return Raw(VideoFrames(str(home), paths, rows), labels, tuple(classes), Targets(clips=clips))
