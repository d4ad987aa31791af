"""Going into training or evaluation mode, which LeRobot asks for all the time.

LeRobot 0.6.1 asks for training mode before every step, and its policies ask themselves for
evaluation mode before every action, also before one that only waits in the queue. PyTorch then sets
a flag in each of a thousand modules: milliseconds in which a GPU or a robot has nothing to do, and
more of them with a motion head. Here the flags are read first.
"""

from typing import TYPE_CHECKING, Self

from torch import nn

if TYPE_CHECKING:
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy as _Policy
else:
    # At run time a plain mixin, whose next class in the MRO is LeRobot's policy.
    _Policy = nn.Module


class QuickModes(_Policy):
    """Mixed into a policy: asking for the mode that it is in costs little."""

    def train(self, mode: bool = True) -> Self:
        """Go into training or evaluation mode, unless every module of the policy is in it.

        Args:
            mode: Whether into training mode.
        """
        # Frozen parts stay in evaluation mode, by LeRobot's doing, which a look cannot tell.
        freezes = self.config.freeze_vision_encoder or self.config.train_expert_only
        if (mode and freezes) or not _is_settled(self, mode):
            super().train(mode)
        return self


def _is_settled(module: nn.Module, mode: bool) -> bool:
    """Whether a module and all within it are in training or in evaluation mode."""
    # PyTorch's own iterators take as long as setting the flags.
    left: list[nn.Module | None] = [module]
    while left:
        found = left.pop()
        if found is None:
            continue
        if found.training != mode:
            return False
        left += found._modules.values()  # noqa: SLF001
    return True
