"""How the blocks of backbones are run: compiled, or with their activations computed again for the gradient."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ssl_bench.backbones.backbone import Backbone
from ssl_bench.nn.optimizers import Training
from ssl_bench.utils.errors import UserError


def prepare_blocks(method: nn.Module, config: Training) -> None:
    """Make the blocks of every backbone in a method run as its recipe says (``compile``, ``checkpoint``).

    Names, weights and what is computed stay as they are. Blocks without gradient have nothing to compute again.

    Raises:
        UserError: A backbone doesn't say what its blocks are.
    """
    for network in method.modules():
        if isinstance(network, Backbone) and (config.compile or config.checkpoint):
            if not (blocks := network.block_modules()) and network.can_train:
                keys = " and ".join(key for key in ("compile", "checkpoint") if getattr(config, key))
                raise UserError(f"{keys}: nothing says what the blocks of {network.name} are; leave it out")
            for block in blocks:
                trained = any(parameter.requires_grad for parameter in block.parameters())
                if config.checkpoint and trained and "forward" not in vars(block):
                    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
                if config.compile:
                    block.compile()
