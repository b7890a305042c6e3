"""Lightning's strategy for fully sharded training, with the checkpoints of every other training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from ssl_bench.nn.sharding import average_gradients, like, step_apart, whole


class Sharded(ModelParallelStrategy):
    """FSDP by ``Method.configure_model``, on CPUs too.

    Checkpoints hold whole tensors under the usual names, so that a training may go on with another strategy or number
    of processes.

    Args:
        processes: That share the weights: all.
    """

    lightning_restore_optimizer = True  # from the checkpoint, by the method below
    save_checkpoint = ParallelStrategy.save_checkpoint  # one file, by the first process
    load_checkpoint = ParallelStrategy.load_checkpoint

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """As the method configures them; sharded and whole parameters are updated one after the other."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            step_apart(optimizer)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average what FSDP doesn't."""
        assert self.lightning_module is not None
        average_gradients(self.lightning_module)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, one after the other. All processes gather them; the first one keeps and writes them."""
        assert self.lightning_module is not None
        return whole(self.lightning_module.state_dict(), self._kept)

    @property
    def _kept(self) -> str:
        return "cpu" if self.is_global_zero else "meta"

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each process takes its part."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole tensors, likewise."""
        return whole(super(ModelParallelStrategy, self).optimizer_state(optimizer), self._kept)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each process takes its part."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                index: {
                    key: like(value, parameters[index]) if isinstance(value, Tensor) else value
                    for key, value in of_parameter.items()
                }
                for index, of_parameter in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})
