"""How the blocks of backbones are run: compiled, or with their activations computed again for the gradient."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.nn.optimizers import Training


def prepare_blocks(method: nn.Module, config: Training) -> None:
    """Make the blocks of every backbone in a method run as its recipe says (``compile``, ``checkpoint``).

    Names, weights and what is computed stay as they are. Blocks without gradient have nothing to compute again.
    """
    for network in method.modules():
        if isinstance(network, Backbone) and (config.compile or config.checkpoint):
            for block in network.block_modules():
                trained = any(parameter.requires_grad for parameter in block.parameters())
                if config.checkpoint and trained and "forward" not in vars(block):
                    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
                if config.compile:
                    block.compile()
