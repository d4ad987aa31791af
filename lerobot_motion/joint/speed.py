"""Settings that change how fast a policy trains and acts, and not what it learns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lerobot_motion.joint.attention import AUTO, EAGER, SDPA, require_sdpa
from lerobot_motion.training.optimizer import FusedAdamWConfig
from lerobot_motion.training.ranks import own_device

if TYPE_CHECKING:
    # At run time a plain mixin: a dataclass base would bring its defaults before the policy's.
    from lerobot.configs import PreTrainedConfig as _PolicyConfig
else:
    _PolicyConfig = object


@dataclass
class SpeedSettings(_PolicyConfig):
    """Fields of speed; mixed into the configuration of a pi0-style policy (docs/speed.md)."""

    # Attention of VLM and action expert in training: eager (LeRobot's own), sdpa (PyTorch's fused
    # attention: the same mask, the same loss up to rounding, less memory and time), or auto: sdpa
    # on a CUDA GPU that computes it rightly, eager elsewhere.
    train_attention: str = "auto"
    # The same for actions and imagined motion: eager (actions are those of the stock policy to the
    # last bit) or sdpa.
    inference_attention: str = "eager"
    # Leave out of the prefix, in training, what fills it up: tokens after the longest prompt of a
    # batch, and cameras that the batch lacks. The same loss up to rounding, for less work. null: on
    # CUDA GPUs, but not under compile_model, which wants fixed shapes.
    train_skip_padding: bool | None = None
    # The same for actions and imagined motion; false: actions are the stock policy's to the last
    # bit.
    inference_skip_padding: bool = False
    # AdamW in one kernel, without temporary memory of the gradients' size. null: on CUDA GPUs.
    optimizer_fused: bool | None = None
    # Draws of noise and time for the motion loss of each sample, which share one pass of the VLM;
    # the loss is their mean. More of them: less variance, more work in the motion head.
    motion_samples_per_step: int = 1

    def validate_speed(self) -> None:
        """Check the fields.

        Raises:
            ValueError: If one is out of range or names something unknown.
        """
        known = {"train_attention": (AUTO, EAGER, SDPA), "inference_attention": (EAGER, SDPA)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}.")
        if self.motion_samples_per_step < 1:
            raise ValueError(
                f"motion_samples_per_step must be at least 1, got {self.motion_samples_per_step}."
            )

        for name in ("train_skip_padding", "inference_skip_padding"):
            if getattr(self, name) and self.compile_model:
                raise ValueError(
                    f"{name}=true needs compile_model=false, got both: a compiled policy would be "
                    "compiled again for every length of a prompt. Leave one of them out."
                )

    def skips_padding(self, device: torch.device, *, training: bool) -> bool:
        """Whether padding of the prefix is left out of what is computed.

        Args:
            device: Where it is computed.
            training: Whether the policy is in training mode.
        """
        if not training:
            return self.inference_skip_padding
        if self.train_skip_padding is None:
            return device.type == "cuda" and not self.compile_model
        return self.train_skip_padding

    def require_attention(self) -> None:
        """Refuse an attention that the device lacks, before anything is built.

        Raises:
            ValueError: If the device cannot compute the attention that was asked for.
        """
        if self.train_attention == SDPA:
            device = own_device(torch.device(str(self.device)))
            require_sdpa(device, getattr(torch, self.dtype))

    def get_optimizer_preset(self) -> Any:
        """LeRobot's AdamW, fused where that is asked for or known to be there."""
        preset = super().get_optimizer_preset()
        fused = self.optimizer_fused
        if fused is None:
            fused = torch.device(str(self.device)).type == "cuda"
        return FusedAdamWConfig(**vars(preset)) if fused else preset
