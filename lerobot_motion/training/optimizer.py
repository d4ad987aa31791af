"""LeRobot's AdamW in PyTorch's fused implementation."""

from dataclasses import dataclass

import torch
from lerobot.optim import AdamWConfig, OptimizerConfig
from lerobot.optim.optimizers import OptimizerParams


@OptimizerConfig.register_subclass("fused_adamw")
@dataclass
class FusedAdamWConfig(AdamWConfig):
    """LeRobot's AdamW, all of a step in one kernel: nothing of the gradients' size is allocated."""

    fused: bool = True

    def build(self, params: OptimizerParams) -> torch.optim.Optimizer:
        """Build the optimizer; see LeRobot's `AdamWConfig`.

        Args:
            params: Parameters or groups of them.

        Raises:
            ValueError: If the parameters are where there is no fused AdamW.
        """
        optimizer: torch.optim.Optimizer = super().build(params)
        for device in {p.device for group in optimizer.param_groups for p in group["params"]}:
            _try_step(device)
        return optimizer


def _try_step(device: torch.device) -> None:
    """Take a step with one number: PyTorch refuses a device at the first step, and not before."""
    number = torch.zeros((), device=device, requires_grad=True)
    number.grad = torch.zeros_like(number)
    try:
        torch.optim.AdamW([number], fused=True).step()
    except RuntimeError as error:
        raise ValueError(
            f"optimizer_fused=true cannot be used on {device}: {error}. Set "
            "--policy.optimizer_fused=false."
        ) from error
