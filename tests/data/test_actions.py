"""Drawn motions and distances; videos, depths and landmarks in the layouts of their authors."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_bench.data import actions, shapes, videos
from ssl_bench.data.datasets import load
from ssl_bench.data.reading import read_with_targets
from ssl_bench.data.sources import Raw
from ssl_bench.data.targets import Targets
from ssl_bench.utils.errors import RunError, UserError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_BENCH_DATA", str(tmp_path))
    return tmp_path


# Drawn ----------------------------------------------------------------------------------------------------------------


def test_objects_move_as_their_label_says() -> None:
    drawn = actions.draw_actions(32, size=32)
    seen = drawn.instances.unflatten(0, (32, actions.FRAMES)).float()
    labels = drawn.labels[:: actions.FRAMES]
    assert torch.bincount(labels).tolist() == [4] * 8
    places = torch.arange(32.0)
    area = seen.sum((2, 3))
    x, y = (seen.sum(2) @ places) / area.clamp(min=1), (seen.sum(3) @ places) / area.clamp(min=1)
    for clip, label in enumerate(labels.tolist()):
        name = actions.MOTIONS[label]
        right, down = float(x[clip, 5] - x[clip, 2]), float(y[clip, 5] - y[clip, 2])
        grown = float(area[clip, -1] / area[clip, 0].clamp(min=1))
        assert (right > 3) == (name == "right") and (right < -3) == (name == "left")
        assert (down > 3) == (name == "down") and (down < -3) == (name == "up")
        if name in ("growing", "shrinking"):
            assert grown > 2 if name == "growing" else grown < 0.5


def test_a_shorter_draw_is_the_start_of_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    long, short = actions.draw_actions(20, size=32), actions.draw_actions(11, size=32)
    assert torch.equal(long.images[: len(short.images)], short.images)
    assert not torch.equal(short.images, actions.draw_actions(11, size=32, seed=1).images)
    far, near = actions.draw_depths(20, size=32), actions.draw_depths(7, size=32)
    assert torch.equal(far.images[:7], near.images) and torch.equal(far.depths[:7], near.depths)
    monkeypatch.setattr(shapes, "_CHUNK", 1)
    assert torch.equal(actions.draw_depths(20, size=32).images, far.images)


def test_what_is_nearer_is_larger_and_lies_in_front() -> None:
    drawn = actions.draw_depths(60, size=64)
    assert drawn.depths.amin() >= actions.NEAR and drawn.depths.amax() == actions.FAR
    sizes: list[tuple[float, int]] = []
    for depth in drawn.depths:
        sizes += [(float(z), int((depth == z).sum())) for z in depth.unique() if z < actions.FAR]
    near = np.mean([count for z, count in sizes if z < 2])
    far = np.mean([count for z, count in sizes if 4 < z < 8])
    assert near > 5 * far
    covered = (drawn.depths < actions.FAR).float().mean()
    assert 0.15 < covered < 0.7


@pytest.mark.parametrize(("spec", "offers"), [("actions", "labels, instances, clips, actions"), ("depths", "depths")])
def test_what_drawn_sets_offer(spec: str, offers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_bench.data import datasets

    monkeypatch.setitem(datasets.DRAWN, spec, (32, 16, 8))
    splits = load(spec)
    assert splits.train.offers == set(offers.split(", "))
    assert splits.train.fingerprint != splits.test.fingerprint
    part = splits.train.subset(torch.tensor([3, 1]), "train")
    assert part.targets is not None and splits.train.targets is not None
    if spec == "depths":
        assert torch.equal(part.targets.depth(0), splits.train.targets.depth(3))
    if "clips" in splits.train.offers:
        with pytest.raises(UserError, match=f"{spec}#8: its images are the frames of clips; leave #8 out"):
            load(f"{spec}#8")


# Read -----------------------------------------------------------------------------------------------------------------


def picture(path: Path, seed: int, size: tuple[int, int] = (9, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize("memory", ["0", "1000000000"])
def test_nyu(data: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BENCH_MEMORY", memory)
    home = data / "nyu-depth-v2"
    for split in ("train", "test"):
        for number in (1, 2):
            picture(home / split / "kitchen" / f"rgb_0000{number}.jpg", number)
            far = np.full((6, 9), 1234 * number, np.uint16)
            far[0, 0] = 0
            Image.fromarray(far).save(home / split / "kitchen" / f"sync_depth_0000{number}.png")
    train = load("nyu-depth-v2").train
    assert train.offers == {"depths"} and len(train) == 2 and train.targets is not None
    depth = train.targets.depth(1)
    assert depth.dtype == torch.float32 and depth.shape == (6, 9)
    assert depth[0, 0] == 0 and depth[3, 3].item() == pytest.approx(2.468)
    (home / "train" / "kitchen" / "sync_depth_00002.png").write_bytes(b"no depth")
    with pytest.raises(UserError, match=r"1 unreadable image in nyu-depth-v2: .*sync_depth_00002\.png"):
        load("nyu-depth-v2")
    picture(home / "train" / "kitchen" / "sync_depth_00002.png", 0)
    with pytest.raises(RunError, match="not depths of 16 bits, but RGB"):
        load("nyu-depth-v2").train.targets.depth(1)  # type: ignore[union-attr]


def film(path: Path, levels: list[int]) -> None:
    """A film of grey frames."""
    av: Any = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), level, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)


@pytest.mark.parametrize("memory", ["0", "1000000000"])
def test_ucf101(data: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BENCH_MEMORY", memory)
    videos._frames.cache_clear()
    home = data / "ucf101"
    film(home / "UCF-101" / "Biking" / "v_Biking_g01_c01.avi", list(range(20, 220, 10)))
    film(home / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi", [40, 200])
    lists = home / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    (lists / "trainlist01.txt").write_text("Biking/v_Biking_g01_c01.avi 2\nArchery/v_Archery_g01_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("Biking/v_Biking_g01_c01.avi\n")
    splits = load("ucf101")
    train = splits.train
    assert train.offers == {"labels", "clips", "actions"} and train.classes == ("Archery", "Biking")
    assert train.labels.tolist() == [1] * 8 + [0] * 8 and len(splits.test) == 8
    assert train.targets is not None and train.targets.clips is not None
    assert train.targets.clips.tolist() == [0] * 8 + [1] * 8
    levels = [float(train.images[i].float().mean()) for i in range(16)]
    assert levels[:8] == pytest.approx([20 + 10 * k for k in (1, 3, 6, 8, 11, 13, 16, 18)], abs=4)
    assert levels[8:] == pytest.approx([40] * 4 + [200] * 4, abs=6)
    assert train.images[0].shape == (3, 16, 32)
    (lists / "testlist01.txt").write_text("Skiing/v_Skiing_g01_c01.avi\n")
    with pytest.raises(UserError, match="class 'Skiing', which isn't among the 2 classes"):
        load("ucf101")
    (lists / "testlist01.txt").write_text("Biking/../../secret.avi\n")
    with pytest.raises(UserError, match="leads out of the folder"):
        load("ucf101")


def test_the_fingerprint_of_clips(data: Path) -> None:
    """The same frames, cut into other clips."""
    pixels = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    cuts = [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]
    raws = [Raw(pixels, np.zeros(8, np.int64), ("a",), Targets(clips=torch.tensor(cut))) for cut in cuts]
    first, second = (read_with_targets(raw, "reading", hold=True).fingerprint for raw in raws)
    assert first == read_with_targets(raws[0], "reading", hold=True).fingerprint != second


def test_a_video_opens_no_other(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of parts, which FFmpeg looks up from where the command runs."""
    videos._frames.cache_clear()
    monkeypatch.chdir(data)
    film(data / "secret.avi", [50] * 9)
    for split in ("train", "val"):
        (data / "kinetics400" / split / "zumba").mkdir(parents=True)
        (data / "kinetics400" / split / "zumba" / "a.avi").write_text("ffconcat version 1.0\nfile secret.avi\n")
    with pytest.raises(UserError, match="16 unreadable images in kinetics400"):
        load("kinetics400")


def test_kinetics_and_a_file_that_is_no_video(data: Path) -> None:
    videos._frames.cache_clear()
    home = data / "kinetics400"
    for split in ("train", "val"):
        film(home / split / "abseiling" / "a.mp4", [50] * 9)
        film(home / split / "zumba" / "b.mp4", [150] * 9)
    splits = load("kinetics400")
    assert splits.train.classes == ("abseiling", "zumba") and splits.test.labels.tolist() == [0] * 8 + [1] * 8
    (home / "train" / "zumba" / "b.mp4").write_bytes(b"no video")
    videos._frames.cache_clear()
    with pytest.raises(UserError, match=r"8 unreadable images in kinetics400: .*b\.mp4#0"):
        load("kinetics400")
    with pytest.raises(UserError, match=r"classInd\.txt is not there"):
        load("ucf101")


def landmarks(home: Path, said: Any, protocol: int = 4) -> Path:
    for name in ("a", "b", "c", "q"):
        picture(home / "jpg" / f"{name}.jpg", ord(name))
    path = home / "gnd_roxford5k.pkl"
    path.write_bytes(said if isinstance(said, bytes) else pickle.dumps(said, protocol=protocol))
    return path


GROUND: dict[str, Any] = {
    "imlist": ["a", "b", "c"],
    "qimlist": ["q"],
    "gnd": [{"bbx": [0, 0, 4, 4], "easy": np.array([0]), "hard": [2], "junk": np.array([], dtype=np.int64)}],
}


def test_oxford(data: Path) -> None:
    landmarks(data / "roxford5k", GROUND)
    splits = load("roxford5k")
    assert splits.train.offers == splits.test.offers == {"searches"}
    assert (len(splits.train), len(splits.test)) == (3, 1)
    assert splits.test.targets is not None and splits.test.targets.searches is not None
    easy, hard, junk = splits.test.targets.searches[0]
    assert (easy.tolist(), hard.tolist(), junk.tolist()) == ([0], [2], [])
    landmarks(data / "roxford5k", {**GROUND, "gnd": [{**GROUND["gnd"][0], "easy": np.array([1])}]})
    assert load("roxford5k").test.fingerprint != splits.test.fingerprint  # of the same images


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["list", "numbers", "<i4", ">i8", "|u1"])
def test_a_ground_truth_of_any_protocol(data: Path, protocol: int, kind: str) -> None:
    easy: Any = [0, 1] if kind == "list" else [*np.arange(2)] if kind == "numbers" else np.arange(2, dtype=kind)
    path = landmarks(data / "roxford5k", {**GROUND, "gnd": [{"easy": easy, "hard": [2]}]}, protocol)
    if protocol < 4:  # as NumPy 1 names it
        path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    targets = load("roxford5k").test.targets
    assert targets is not None and targets.searches is not None
    assert [places.tolist() for places in targets.searches[0]] == [[0, 1], [2], []]


class Calls:
    """Calls something when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def with_easy(easy: Any) -> dict[str, Any]:
    return {**GROUND, "gnd": [{"easy": easy}]}


@pytest.mark.parametrize(
    "said",
    [
        Calls(Path.touch, Path("ran")),
        {**GROUND, "gnd": []},
        with_easy([7]),
        with_easy([0.5]),
        with_easy(np.array([0.5])),
        {**GROUND, "imlist": ["../a", "b", "c"]},
        {**GROUND, "imlist": ["a" * 5000, "b", "c"]},
        {**GROUND, "imlist": [b"a", "b", "c"]},
        {key: GROUND[key] for key in ("imlist", "gnd")},
        [1, 2],
        b"",
        pickle.dumps(GROUND)[:-40],
    ],
)
def test_a_ground_truth_that_is_none(data: Path, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    landmarks(data / "roxford5k", said)
    with pytest.raises(UserError, match=r"gnd_roxford5k\.pkl is not as its authors have it"):
        load("roxford5k")
    assert not (data / "ran").exists()
    with pytest.raises(UserError, match=r"gnd_rparis6k\.pkl is not there"):
        load("rparis6k")


def harmful() -> dict[str, Any]:
    """Ground truths that end a process, or fill its memory, where a pickle may do what it says."""
    twice: Any = [0, 0]
    for _ in range(40):
        twice = [twice, twice]
    many = {"easy": [0] * 100_000}
    return {
        "addresses": with_easy(Calls(np.ndarray, (1,), np.dtype("O"), b"A" * 8)),
        "memory": with_easy(Calls(np.ndarray, (402_653_184,), "i8")),
        "objects": with_easy(np.array([GROUND, 3], dtype=object)),
        "levels": b"]" * 15_000_000 + b"a" * 14_999_999 + b".",
        "sets": b"\x8f" * 30_000_000 + b".",
        "a deep key": b"})" + b"\x85" * 1_000_000 + b"Ns.",
        "a place of the memo": b"]r\xff\xff\xff\x7f.",
        "doubled 40 times": with_easy(twice),
        "one list of many queries": {**GROUND, "qimlist": ["q"] * 2000, "gnd": [many] * 2000},
    }


READ_EACH = """
import resource, sys
from pathlib import Path
from ssl_bench.data.landmarks import read_landmarks
from ssl_bench.utils.errors import UserError

for home in map(Path, sys.argv[1:]):
    print(home.name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_landmarks(home, "roxford5k")
    except UserError as error:
        assert "is not as its authors have it" in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError("it is read")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB
"""


def test_a_ground_truth_that_does_harm(tmp_path: Path) -> None:
    """In a process of its own, which a fault would end; it says last which file it was reading."""
    homes = [landmarks(tmp_path / kind, said).parent for kind, said in harmful().items()]
    command = [sys.executable, "-c", READ_EACH, *map(str, homes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
