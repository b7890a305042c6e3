"""Files of anyone, whatever they hold: encoder files, released checkpoints, YAML."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.cases import HOW_MANY, one_line_at_most, paths, replaced, try_many, values
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ssl_bench.backbones.vit import ViT
from ssl_bench.checkpoints.encoder_file import load_encoder, save_encoder
from ssl_bench.checkpoints.model import load_model
from ssl_bench.commands.convert import convert
from ssl_bench.commands.evaluate import run_evaluations
from ssl_bench.commands.show import show
from ssl_bench.config.method_facts import read_method_facts
from ssl_bench.config.protocol import load_evaluator
from ssl_bench.config.recipe import load_recipe
from ssl_bench.config.suite import load_suite
from ssl_bench.data.datasets import Splits
from ssl_bench.results.papers.table_spec import read_definition
from ssl_bench.utils.errors import RunError, UserError

NANO = "vit_nano_patch4_16"
ABOUT: dict[str, Any] = {
    "recipe": {"method": "mae", "backbone": {"name": NANO}, "seed": 0, "training": {}, "settings": {}, "teachers": {}},
    "identity": {
        "method": "mae",
        "settings": {},
        "backbone": {"name": NANO},
        "training": {},
        "seed": 0,
        "versions": {},
    },
    "views": "1x16",
    "pretraining": {"data": "shapes", "fingerprint": "f", "images_seen": 0, "facts": {}, "teachers": {}},
    "input": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "paper": "p",
    "category": "c",
    "flags": ["x"],
    "deviations": [],
    "loaded": 100.0,
    "code": {"package": "0", "commit": None},
}
PARTS = {"format": 1, "method": "mae", "encoder": {"name": NANO, "drop_path": 0.0}, "about": ABOUT}


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {**ViT(NANO).state_dict()}


def said(call: Callable[[], Any]) -> str:
    """What a call is refused with: one line, in bounded memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(action="ignore"), pytest.raises((UserError, RunError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB
    return str(caught.value)


def tensors() -> dict[str, tuple[Callable[[], Any], str]]:
    """Weights of which one tensor is no array in memory, and the words that name it."""
    own = weights()

    def with_one(value: Any) -> Callable[[], Any]:
        return lambda: {**own, "norm.weight": value() if callable(value) else value}

    inside: dict[str, Any] = {}
    inside["model"] = inside
    twice: Any = own
    for _ in range(40):
        twice = {"a": twice, "b": twice}
    return {
        "sparse": (with_one(lambda: torch.eye(24).to_sparse()), "sparse or nested"),
        "quantised": (with_one(lambda: torch.quantize_per_tensor(torch.rand(24), 0.1, 0, torch.qint8)), "int8|safely"),
        "meta": (with_one(lambda: torch.empty(24, device="meta")), "without numbers|safely|damaged"),
        "expanded": (with_one(lambda: torch.zeros(1).expand(2**40)), "of shape"),
        "complex": (with_one(lambda: torch.zeros(24, dtype=torch.complex64)), "complex64"),
        "nested": (
            with_one(lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])),
            "nested|safely|damaged",
        ),
        "within itself": (lambda: inside, "holds itself|safely|damaged"),
        "doubled 40 times": (lambda: twice, "holds itself, or too many"),
        "empty positions": (lambda: {**own, "pos_embed": torch.zeros(1, 0, 24)}, "pos_embed|does not fit"),
        "no channels": (lambda: {**own, "pos_embed": torch.zeros(1, 17, 0)}, "pos_embed|does not fit"),
        "number for positions": (lambda: {**own, "pos_embed": torch.tensor(1.0)}, "pos_embed|does not fit"),
        "huge positions": (lambda: {**own, "pos_embed": torch.zeros(1, 1, 24).expand(1, 10**9, 24)}, "of shape"),
        "no text": (lambda: {**own, 3: torch.zeros(2)}, "state dict|not part of it|match"),
        "format is a tensor": (lambda: {**own, "format": torch.zeros(3), "encoder": 1}, "state dict|match|describes"),
        "nothing": (dict, "state dict|no vision transformer|does not"),
        "a number": (lambda: 3, "state dict"),
        "half a million lists": (lambda: {"a": [[] for _ in range(600_000)]}, "more than 500,000 values"),
    }


@pytest.mark.parametrize("kind", [*tensors()])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_tensors_that_are_no_arrays(tmp_path: Path, kind: str, old: bool) -> None:
    make, words = tensors()[kind]
    path, out = tmp_path / "w.pth", tmp_path / "out.pt"
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.save(make(), path, _use_new_zipfile_serialization=not old)
    except (RuntimeError, RecursionError, NotImplementedError):  # torch can't write it in this form
        pytest.skip("torch does not write it")
    texts = [said(lambda: load_encoder(path, NANO))]
    texts.append(said(lambda: convert(path, method="mae", backbone=NANO, out=out, show=lambda _: None)))
    assert any(word in texts[0] for word in words.split("|")), texts
    assert not out.exists()


def test_compressed_parts_and_parts_larger_than_the_file(tmp_path: Path) -> None:
    plain, path = tmp_path / "w.pth", tmp_path / "bomb.pth"
    torch.save({"w": torch.zeros(10**7)}, plain)
    with zipfile.ZipFile(plain) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for part in whole.infolist():
            bomb.writestr(part.filename, whole.read(part))
    assert path.stat().st_size < 10**6
    assert "is compressed" in said(lambda: load_encoder(path, NANO))
    assert "is compressed" in said(lambda: convert(path, method="mae", backbone=NANO, out="x", show=lambda _: None))
    assert "is compressed" in said(lambda: load_model(f"timm:resnet18@{path}"))


@pytest.mark.parametrize("place", ["fifo", "/dev/zero", "folder", "nothing"])
def test_what_is_no_file(tmp_path: Path, place: str) -> None:
    path = tmp_path / "e.pt"
    if place == "fifo":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    elif place == "/dev/zero":
        path.symlink_to(place)
    said(lambda: load_encoder(path, NANO))
    said(lambda: convert(path, method="mae", backbone=NANO, out=tmp_path / "o.pt", show=lambda _: None))
    said(lambda: load_model(f"timm:resnet18@{path}"))


# Encoder files of ours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        (("method",), 3, "method is 3, not of type string"),
        (("about",), [], "about is [], not of type object"),
        (("about", "recipe"), "mae", "about.recipe is 'mae', not of type object or null"),
        (("about", "recipe", "backbone"), {}, "about.recipe.backbone has no 'name'"),
        (("about", "pretraining"), 3, "about.pretraining is 3"),
        (("about", "flags"), "labels", "about.flags is 'labels', not of type array"),
        (("about", "flags"), [1], "about.flags[0] is 1"),
        (("about", "loaded"), float("nan"), "about.loaded is nan"),
        (("about", "paper"), "\ud800", "about.paper is '\\ud800', which is no text"),
        (("about", "identity", "versions"), {"a": 0}, "at least 1"),
        (("about", "pretraining", "teachers"), {"t": {"method": "m", "run": "../../x"}}, "doesn't match"),
        (("about", "input"), {"mean": [0, 0], "std": [1, 1, 1]}, "about.input.mean"),
        (("about", "input"), {"mean": [0, 0, 0], "std": [0, 1, 1]}, "input is"),
        (("encoder",), {"name": NANO, "num_heads": -1}, "num_heads of vit_nano_patch4_16 is '-1'"),
        (("encoder",), {"name": NANO, "drop_path": "x"}, "drop_path of vit_nano_patch4_16 is 'x'"),
        (("encoder",), {"name": NANO, "evil": 1}, "unknown option of vit_nano_patch4_16 'evil'"),
        (("encoder",), {"name": "vit_huge_patch1_128"}, "does not fit vit_huge_patch1_128"),
        (("encoder",), {"name": "vit_huge_patch1_9999"}, "patches"),
        (("encoder",), {"name": NANO, "relative_positions": "shared"}, "does not fit"),
        (("encoder",), {"name": "dvae", "blocks": 10**9}, "blocks of dvae is '1000000000'"),
        (("encoder",), {"name": "dvae", "codebook_size": 2**20, "width": 2**20}, "does not fit dvae"),
        (("encoder",), {"name": f"clip_{NANO}", "out_dim": "x"}, "out_dim"),
        (("encoder",), {"name": f"vqkd_{NANO}"}, "describes no encoder that can be built"),
        (("encoder",), {"name": 3}, "encoder.name is 3"),
    ],
    ids=str,
)
def test_wrong_types_in_an_encoder_file(tmp_path: Path, part: tuple[str, ...], value: Any, words: str) -> None:
    path = tmp_path / "e.pt"
    torch.save({**replaced(PARTS, part, value), "state_dict": weights()}, path)
    text = said(lambda: load_encoder(path))
    assert words in text and "e.pt" in text


def test_what_is_written_has_passed_the_check_that_reads_it(tmp_path: Path) -> None:
    for about in ({"flags": 3}, {"paper": {1, 2}}, {"loaded": float("nan")}):
        said(lambda about=about: save_encoder(tmp_path / "e.pt", ViT(NANO), {"name": NANO}, "m", about))
    assert not (tmp_path / "e.pt").exists()
    save_encoder(tmp_path / "e.pt", ViT(NANO), {"name": NANO}, "m", {"input": {"mean": (0, 0, 0), "std": (1, 1, 1)}})
    assert load_encoder(tmp_path / "e.pt").about["input"]["mean"] == [0, 0, 0]


@HOW_MANY
def test_any_part_of_an_encoder_file(
    examples: int, tmp_path: Path, tiny_data: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused in one line; or the row that it gives is one that can be read."""
    path, state = tmp_path / "e.pt", weights()
    knn = {"knn": load_evaluator("knn")}

    def check(case: tuple[tuple[Any, ...], Any]) -> None:
        place, value = case
        try:
            torch.save({**replaced(PARTS, place, copy.deepcopy(value)), "state_dict": state}, path)
        except (OverflowError, RecursionError, UnicodeEncodeError):  # no file can hold it
            return
        with one_line_at_most():
            loaded = load_encoder(path)
            if examples > 50:
                run_evaluations(loaded, knn, tiny_data, tmp_path / "out", suite=None)

    monkeypatch.chdir(tmp_path)
    try_many(examples, st.tuples(st.sampled_from([p for p in paths(PARTS) if p]), values), check)


@HOW_MANY
def test_any_bytes_of_an_encoder_file(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    torch.save({**PARTS, "state_dict": weights()}, path)
    whole = path.read_bytes()
    near = st.one_of(
        st.integers(0, 3000), st.integers(len(whole) - 6000, len(whole) - 1), st.integers(0, len(whole) - 1)
    )
    changes = st.lists(st.tuples(near, st.integers(0, 255)), min_size=1, max_size=4)

    def check(case: tuple[list[tuple[int, int]], int]) -> None:
        content = bytearray(whole)
        for at, byte in case[0]:
            content[at] = byte
        path.write_bytes(bytes(content[: len(whole) - case[1]]))
        with one_line_at_most():
            load_encoder(path)
            convert(path, method="mae", backbone=NANO, out=tmp_path / "o.pt", show=lambda _: None)

    try_many(examples, st.tuples(changes, st.one_of(st.just(0), st.integers(0, len(whole)))), check)


# show -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder file whose recipe names a Python file that lies beside it, and images."""
    monkeypatch.chdir(tmp_path)
    evil = "from ssl_bench import Method\nopen('ran', 'w').close()\nclass Evil(Method):\n    paper = category = 'x'\n"
    (tmp_path / "evil.py").write_text(evil)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "a.png")
    torch.save({"x": torch.zeros(1)}, tmp_path / "method.pt")
    return tmp_path


def write_encoder(folder: Path, **recipe: Any) -> Path:
    path = folder / "encoder.pt"
    about = {
        "recipe": {"method": "mae", "backbone": {"name": NANO}, "seed": 0, "training": {}, "settings": {}, **recipe}
    }
    save_encoder(path, ViT(NANO), {"name": NANO}, "mae", about)
    return path


def test_show_does_not_run_the_file_that_a_recipe_names(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_encoder(run_folder, method="evil.py:Evil")
    assert show(path, images="images", out="x.png").exists()
    assert "names Python code, evil.py:Evil, which is not run without --allow-code" in capsys.readouterr().err
    assert not (run_folder / "ran").exists()
    show(path, images="images", out="x.png", allow_code=True)
    assert (run_folder / "ran").exists()


def test_a_damaged_method_file_is_one_line(run_folder: Path) -> None:
    weights_of = run_folder / "method.pt"
    for settings, words in (
        ({"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}, "of another method"),
        ({"evil": 1}, "unknown option of mae 'evil'"),
        ({"decoder_dim": "x"}, "decoder_dim of mae is 'x'"),
        ({"decoder_dim": 2**19, "decoder_depth": 256, "decoder_heads": 1}, "its weights take"),
    ):
        path = write_encoder(run_folder, settings=settings)
        assert words in said(lambda path=path: show(path, images="images", out="x.png"))
    path = write_encoder(run_folder, settings={"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2})
    for content in (b"", b"PK\x03\x04", b"\x80\x02" + b"]" * 600_000 + b".", pickle.dumps(print)):
        weights_of.write_bytes(content)
        assert "method.pt" in said(lambda: show(path, images="images", out="x.png"))


# YAML -----------------------------------------------------------------------------------------------------------------

LOADERS: dict[str, Callable[[str], Any]] = {
    "recipe": lambda path: load_recipe("mae", path, {"backbone": NANO}),
    "protocol": load_evaluator,
    "suite": load_suite,
    "table": read_definition,
    "method.yaml": lambda path: read_method_facts(Path(path)),
}
KEYS = ["evaluation", "name", "description", "data", "methods", "recipe", "seeds", "seeds_of", "evaluations", "epochs"]
KEYS += [
    "mask_ratio",
    "backbone",
    "checkpoint",
    "releases",
    "protocols",
    "backbones",
    "tiny",
    "rows",
    "columns",
    "title",
]
KEYS += ["deviations", "method", "training", "overrides", "transfer", "image_size", "k", "fits"]


@pytest.mark.parametrize("kind", LOADERS)
@HOW_MANY
def test_any_yaml(kind: str, examples: int, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    mappings = st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=4)), values, max_size=4)
    contents = st.one_of(
        mappings.map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=60),
        st.text(max_size=60).map(_encoded),
    )

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with one_line_at_most():
            LOADERS[kind](str(path))

    try_many(examples, contents, check)


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
