"""How the two losses pull at the VLM that they share: norms of their gradients, and the cosine.

`--policy.log_gradient_balance=true` logs them once in each of LeRobot's log intervals, so that
motion_loss_weight can be set by sight.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor

from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.training.ranks import is_sharded

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy as _Policy
else:
    # At run time a plain mixin, whose next class in the MRO is LeRobot's policy.
    _Policy = torch.nn.Module

# Elements that are multiplied at once in float32: 64 MB.
_CHUNK = 2**24


class GradientBalance(_Policy):
    """Mixed into a joint policy: measures the balance of its losses when a log interval ends."""

    config: JointMotionConfig
    # Since the process began.
    _steps_of_run = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the policy.

        Args:
            *args: Passed on to LeRobot.
            **kwargs: Passed on to LeRobot.
        """
        super().__init__(*args, **kwargs)
        if self.config.log_gradient_balance and self.config.compile_model:
            # Compiled code may free what a second backward pass needs (PyTorch says so, and how to
            # keep it, in the error that it then raises).
            functorch_config.donated_buffer = False

    def update(self) -> None:
        """Count an optimizer step."""
        self._steps_of_run += 1

    def measure_balance(self, action_loss: Tensor | None, motion_loss: Tensor) -> dict[str, float]:
        """Compare both losses' gradients on the VLM in the last step of a log interval.

        Costs two more backward passes in that step, and the memory of two more gradients of the
        VLM. On several ranks each looks at its own batch, and LeRobot logs the mean.

        Args:
            action_loss: Loss of a training batch, of any shape; None in the warm-up.
            motion_loss: The same of the motion head, without `motion_loss_weight`.

        Returns:
            See `gradient_balance`; nothing in other steps, in the warm-up or in validation.

        Raises:
            ValueError: If FSDP shards the VLM.
        """
        wanted = self.config.log_gradient_balance and self.training and self._interval_ends()
        if not wanted or action_loss is None:
            return {}
        vlm = self.model.paligemma_with_expert.paligemma
        shared = [parameter for parameter in vlm.parameters() if parameter.requires_grad]
        if any(map(is_sharded, shared)):
            raise ValueError(
                "log_gradient_balance=true cannot see the gradients of parameters that FSDP "
                "shards. Set it to false, or measure in a run without FSDP."
            )
        return gradient_balance(action_loss.mean(), motion_loss.mean(), shared)

    def _interval_ends(self) -> bool:
        """Whether LeRobot logs after this step; outside of its runs every step is measured."""
        run = self.config.train_run
        if run is None:
            return True
        step = run.first_step + self._steps_of_run + 1
        return run.log_freq > 0 and step % run.log_freq == 0


def gradient_balance(
    action_loss: Tensor, motion_loss: Tensor, parameters: Sequence[Tensor]
) -> dict[str, float]:
    """Compare the gradients of two losses; their graph stays for the backward pass to come.

    Args:
        action_loss: A scalar.
        motion_loss: A scalar.
        parameters: The parameters that both losses share. A loss need not reach all of them.

    Returns:
        `action_gradient_norm`, `motion_gradient_norm`, `gradient_cosine`; NaN where undefined.
    """
    if not parameters:
        return dict.fromkeys(
            ("action_gradient_norm", "motion_gradient_norm", "gradient_cosine"), math.nan
        )
    of_action = _gradients(action_loss, parameters)
    of_motion = _gradients(motion_loss, parameters)
    action_norm = math.sqrt(_inner_product(of_action, of_action))
    motion_norm = math.sqrt(_inner_product(of_motion, of_motion))
    norms = action_norm * motion_norm
    return {
        "action_gradient_norm": action_norm,
        "motion_gradient_norm": motion_norm,
        "gradient_cosine": _inner_product(of_action, of_motion) / norms if norms else math.nan,
    }


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _inner_product(gradients: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> float:
    """Inner product over all parameters, summed in float32 and over chunks in float64.

    The latter on the host: not every device has float64, and a GPU is waited for only once.
    """
    products = [
        (a * b).sum()  # a product of matrices would be autocast to bfloat16
        for gradient, other in zip(gradients, others, strict=True)
        if gradient is not None and other is not None
        for a, b in _chunks(gradient, other)
    ]
    return math.fsum(torch.stack(products).tolist()) if products else 0.0


def _chunks(gradient: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    pairs = zip(
        torch.split(gradient.flatten(), _CHUNK), torch.split(other.flatten(), _CHUNK), strict=True
    )
    return ((a.float(), b.float()) for a, b in pairs)
