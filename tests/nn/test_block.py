"""A block that leaves out what nobody reads, against the whole block."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_bench.backbones.vit import ViT
from ssl_bench.nn.block import Block, every_output
from ssl_bench.nn.sharding import blocks_of


def gradients(block: Block, x: Tensor, run: Callable[[Block, Tensor], Tensor]) -> list[Tensor]:
    """The output, and the gradients of its squares: of the input and of all weights."""
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    torch.manual_seed(1)  # of the drop path
    out = run(block, x)
    out.square().sum().backward()
    assert x.grad is not None
    return [out, x.grad, *(p.grad for p in block.parameters() if p.grad is not None)]


@pytest.mark.parametrize("tokens", [17, 50])  # attention as plain products, and fused
@pytest.mark.parametrize("read", [slice(0, 1), slice(-5, None)])
@pytest.mark.parametrize("bias", [False, True])
def test_what_is_read_and_all_gradients_are_the_whole_blocks(tokens: int, read: slice, bias: bool) -> None:
    torch.manual_seed(0)
    block = Block(12, 3, qkv_bias=True, init_values=0.5, drop_path=0.5)
    x, mask = torch.randn(4, tokens, 12), torch.randn(1, 3, tokens, tokens) if bias else None
    spared = gradients(block, x, lambda b, x: b(x, attn_mask=mask, read=read))
    whole = gradients(block, x, lambda b, x: b(x, attn_mask=mask)[:, read])
    assert len(spared) == len(whole) == 2 + len(list(block.parameters()))
    for one, other in zip(spared, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_less_is_computed_and_the_count_of_flops_does_not_change() -> None:
    block, seen = Block(12, 3), []
    block.mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    block(torch.randn(2, 7, 12), read=slice(0, 1))
    with every_output():
        assert block(torch.randn(2, 7, 12), read=slice(0, 1)).shape == (2, 7, 12)
    assert seen == [1, 7]


@pytest.mark.parametrize("options", [{}, {"registers": 2}, {"relative_positions": "shared"}])
def test_class_token_is_that_of_the_whole_network(options: dict[str, object]) -> None:
    network, images = ViT("vit_nano_patch4_16", **options), torch.randn(2, 3, 16, 16)  # type: ignore[arg-type]
    torch.testing.assert_close(network.class_token(images), network(images).cls, rtol=1e-4, atol=1e-5)


def test_sharded_training_finds_the_blocks() -> None:
    assert all(isinstance(block, Block) for block in blocks_of(ViT("vit_nano_patch4_16")))
