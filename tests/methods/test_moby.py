"""MoBY against the worked numbers of its code (SwinTransformer/Transformer-SSL)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from stubs import StubBackbone
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_bench.backbones import build_backbone
from ssl_bench.backbones.backbone import Tokens
from ssl_bench.config.recipe import load_recipe
from ssl_bench.methods.moby import MoBY, enqueue, info_nce
from ssl_bench.utils.errors import UserError

NAMES = ("vit_micro_patch8_32", "swin_micro_patch2_window4_32")
QUEUE = F.normalize(torch.tensor([[1.0, 0, 1], [0, 1, -1], [1, 1, 0], [-1, 0, 0]]).T, dim=0)
Q1, K1 = (F.normalize(torch.tensor(rows), dim=1) for rows in ([[1, 0.5, 0], [0, 1, 2.0]], [[1, 0, 0], [0, 2, 1.0]]))
Q2, K2 = (F.normalize(torch.tensor(rows), dim=1) for rows in ([[0, 1, 1], [1, -1, 0.0]], [[1, 1, 0], [0, 0, 1.0]]))


def make(name: str = NAMES[0], **settings: object) -> MoBY:
    torch.manual_seed(0)
    options = {**MoBY.backbone_options} if name.startswith("vit") else {"drop_path": 0.2}
    return MoBY(build_backbone(name, **options), **{"hidden_dim": 16, "out_dim": 8, "queue_size": 16, **settings})


def crops(n: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 32, 32, generator=generator) for _ in range(2)]


def test_loss_numbers() -> None:
    q = Q1.clone().requires_grad_()
    first, second = info_nce(q, K1, QUEUE, 0.2), info_nce(Q2, K2, QUEUE, 0.2)
    assert first.item() == pytest.approx(0.701974, abs=1e-5)
    assert second.item() == pytest.approx(1.905856, abs=1e-5)
    assert (first + second).item() == pytest.approx(2.607830, abs=1e-5)
    first.backward()
    expected = [[-0.492001, 0.916453, 0.143677], [0.567746, -0.681399, 0.097327]]
    torch.testing.assert_close(q.grad, torch.tensor(expected), rtol=0, atol=1e-5)


def test_equal_vectors_are_at_chance() -> None:
    ones = F.normalize(torch.ones(3, 5), dim=1)
    loss = info_nce(ones, ones, ones[:1].T.expand(5, 4096), 0.2).item()
    assert loss == pytest.approx(8.318010, abs=1e-5) and 2 * loss == pytest.approx(16.636, abs=5e-4)  # of both terms


def test_against_a_naive_formula() -> None:
    q, k = F.normalize(torch.randn(6, 4, dtype=torch.float64)), F.normalize(torch.randn(6, 4, dtype=torch.float64))
    queue, total = F.normalize(torch.randn(4, 9, dtype=torch.float64), dim=0), 0.0
    for i in range(6):
        logits = [float(q[i] @ k[i]) / 0.3, *(float(q[i] @ queue[:, j]) / 0.3 for j in range(9))]
        total += math.log(sum(map(math.exp, logits))) - logits[0]
    assert info_nce(q, k, queue, 0.3).item() == pytest.approx(total / 6, abs=1e-5)


def test_queue_numbers() -> None:
    queue, pointer = torch.zeros(3, 4), torch.zeros(1, dtype=torch.long)
    pointer = enqueue(queue, K1, pointer)
    assert pointer.tolist() == [2] and not queue[:, 2:].any()
    pointer = enqueue(queue, K2, pointer)
    expected = [[1, 0, 0], [0, 0.894427, 0.447214], [0.707107, 0.707107, 0], [0, 0, 1]]
    torch.testing.assert_close(queue.T, torch.tensor(expected), rtol=0, atol=1e-5)
    assert pointer.tolist() == [0]


def test_a_batch_that_does_not_divide_the_queue() -> None:
    with pytest.raises(UserError, match="queue_size 16 must be a multiple of the batch_size 3"):
        make().loss(crops(3))


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0.99), (0.25, 0.9914644661), (0.5, 0.995), (0.99, 0.9999975328), (1, 1)]
)
def test_momentum_numbers(progress: float, expected: float) -> None:
    moby = make()
    moby.progress = progress
    assert moby.current_momentum == pytest.approx(expected, abs=1e-9)


def test_rates_of_the_papers_recipe() -> None:
    """50 of 3000 steps are warm-up; the step after step t has the scheduler's rate at t, and so has the first."""
    recipe = load_recipe("moby", "swin_tiny_in1k", {"epochs": 60, "warmup_epochs": 1}).training
    at = {0: 5e-7, 25: 5.0025e-4, 49: 9.8001e-4, 50: 9.993182e-4, 51: 9.992907e-4, 1500: 5.025e-4, 2999: 5.000273e-6}
    assert [recipe.lr_at(t + 1, 3000) for t in at] == pytest.approx(list(at.values()), rel=1e-6)
    assert recipe.lr_at(0, 3000) == pytest.approx(5e-7)


class _Plain(StubBackbone):
    """A 3 x 3 linear encoder."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tokens:
        return Tokens(x @ self.weight.T, x[:, None])


def test_a_step_crosses_the_views_moves_the_target_first_and_enqueues_last() -> None:
    moby = make(out_dim=3, queue_size=4)
    online, target = _Plain(torch.eye(3)), _Plain(2 * torch.eye(3)).requires_grad_(False)
    moby.backbone, moby.projector, moby.predictor = online, nn.Sequential(), nn.Sequential()  # type: ignore[assignment]
    moby.target.backbone, moby.target.head, moby.momentum = target, nn.Sequential(), 0.75
    moby.queue1.copy_(QUEUE)
    moby.queue2.copy_(QUEUE.flip(1))
    before, after = info_nce(Q1, K2, QUEUE.flip(1), 0.2), info_nce(K2, Q1, QUEUE, 0.2)
    loss = moby.loss([Q1, K2])["loss"]
    assert loss.item() == pytest.approx((before + after).item(), abs=1e-5)
    torch.testing.assert_close(target.weight.data, 1.75 * torch.eye(3))
    torch.testing.assert_close(moby.queue1, torch.cat([Q1.T, QUEUE[:, 2:]], dim=1))
    torch.testing.assert_close(moby.queue2, torch.cat([K2.T, QUEUE.flip(1)[:, 2:]], dim=1))
    assert moby.queue_ptr.tolist() == [2]


@pytest.mark.parametrize("name", NAMES)
def test_queues_hold_unit_vectors_and_the_target_has_no_gradient(name: str) -> None:
    moby = make(name)
    for _ in range(5):
        moby.loss(crops())["loss"].backward()
        for queue in (moby.queue1, moby.queue2):
            torch.testing.assert_close(queue.norm(dim=0), torch.ones(16))
    assert moby.queue_ptr.tolist() == [4]
    assert all(p.grad is None and not p.requires_grad for p in moby.target.parameters())
    assert moby.target.training and moby.encoder is moby.backbone


@pytest.mark.parametrize("name", NAMES)
def test_drop_path_is_the_online_encoders_alone(name: str) -> None:
    moby = make(name, momentum=1.0)
    rates = [m.drop_prob for m in moby.backbone.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.2)
    assert not any(m.drop_prob for m in moby.target.modules() if isinstance(m, DropPath))
    x = crops(8)[0]
    torch.testing.assert_close(moby.key(x), moby.key(x))
    assert not torch.allclose(moby.query(x), moby.query(x))


def test_target_starts_equal_and_follows_parameters_alone() -> None:
    moby = make()
    source = dict(moby.backbone.named_parameters())
    for key, p in moby.target.backbone.named_parameters():
        assert torch.equal(p, source[key])
    old = copy.deepcopy(dict(moby.target.backbone.named_parameters()))
    for p in moby.backbone.parameters():
        p.data += 1
    moby.progress = 0.25
    moby.loss(crops())
    for key, p in moby.target.backbone.named_parameters():
        torch.testing.assert_close(p, old[key] + 0.0085355339, rtol=1e-5, atol=1e-6)


def test_heads_have_biases_and_no_norm_at_the_end() -> None:
    moby = MoBY(build_backbone("vit_micro_patch8_32"))
    expected = {"0.weight": (4096, 96), "0.bias": (4096,), "3.weight": (256, 4096), "3.bias": (256,)}
    expected |= {f"1.{name}": (4096,) for name in ("weight", "bias", "running_mean", "running_var")}
    shapes = {key: tuple(value.shape) for key, value in moby.projector.state_dict().items() if value.ndim}
    assert shapes == expected
    assert moby.predictor[0].weight.shape == (4096, 256) and len(moby.predictor) == 4
    assert moby.queue1.shape == moby.queue2.shape == (256, 4096) and not torch.equal(moby.queue1, moby.queue2)


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        (NAMES[0], ("pos_embed", "cls_token")),
        (NAMES[1], ("layers.0.blocks.0.attn.relative_position_bias_table",)),
    ],
)
def test_positions_are_decayed(name: str, decayed: tuple[str, ...]) -> None:
    moby = make(name)
    with_decay = {id(p) for p in moby.param_groups()[0]["params"]}
    named = dict(moby.backbone.named_parameters())
    assert all(id(named[key]) in with_decay for key in decayed)
    assert all(p.ndim > 1 for p in moby.param_groups()[0]["params"])


def test_views_are_the_papers() -> None:
    first, second = make().views
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    for view in (first, second):
        assert (view.scale, view.interpolation, view.jitter) == ((0.08, 1.0), "bilinear", (0.4, 0.4, 0.2, 0.1))
        assert (view.jitter_p, view.grayscale, view.flip, view.blur_sigma) == (0.8, 0.2, 0.5, (0.1, 2.0))
