"""Policies in each regime of training, a training step of them, and the bytes it leaves behind."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.default import PeftConfig
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from lerobot_motion.joint.backbone import tiny_backbone
from lerobot_motion.joint.parameter_counts import total_parameters, trainable_parameters
from lerobot_motion.motion_pi0.modeling_motion_pi0 import MotionPi0Policy
from lerobot_motion.motion_pi05.modeling_motion_pi05 import MotionPi05Policy
from lerobot_motion.steps import MOTION_LATENT, MOTION_VALID

POLICIES: dict[str, tuple[type[Any], ModuleType]] = {
    "pi0": (modeling_pi0.PI0Policy, modeling_pi0),
    "pi05": (modeling_pi05.PI05Policy, modeling_pi05),
    "motion_pi0": (MotionPi0Policy, modeling_pi0),
    "motion_pi05": (MotionPi05Policy, modeling_pi05),
}
DTYPES = ("bfloat16", "float32")
CAMERAS = ("observation.images.top", "observation.images.wrist")
CAMERA_SIZE = (240, 320)
STATE_DIM = ACTION_DIM = 14
# Tokens of a long prompt by PaliGemma's tokenizer: a sentence of LIBERO's, and with pi0.5
# as many joints as here, each at its end, of three digits.
LONG_TASK = (
    "put the white mug on the left plate and put the yellow and white mug on the right plate"
)
PROMPT_TOKENS = {"pi0": 21, "pi05": 86}

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_resolution": (112, 112),
        "chunk_size": 4,
        "n_action_steps": 4,
        "max_state_dim": 16,
        "max_action_dim": 16,
    },
    "full": {},
}
_MOTION_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"backbone": "tiny", "motion_latent_shape": (3, 14, 14)},
    # SDXL's VAE, known without asking the Hub for it.
    "full": {"motion_latent_shape": (4, 28, 28)},
}


@dataclass(frozen=True)
class Regime:
    """What learns in a run.

    Attributes:
        name: As in the table.
        setting: Field of the policy's configuration that is set, if any.
        value: Its value.
        lora: Whether adapters are trained, at LeRobot's defaults (--peft.method_type=LORA).
    """

    name: str
    setting: str | None = None
    value: Any = None
    lora: bool = False

    @property
    def warmup(self) -> bool:
        """Whether only the motion head learns."""
        return self.setting == "motion_warmup_steps"

    def exists_for(self, policy: str) -> bool:
        """Whether a policy can be trained so: stock policies have no warm-up."""
        return not self.warmup or policy.startswith("motion_")


REGIMES = (
    Regime("full"),
    Regime("warm-up", "motion_warmup_steps", 1_000),
    Regime("LoRA", lora=True),
    Regime("frozen VLM", "train_expert_only", value=True),
)


@dataclass(frozen=True)
class Variant:
    """A policy in a regime.

    Attributes:
        policy: LeRobot's name of the policy's type.
        regime: What learns.
        dtype: `dtype` of the policy's configuration.
        size: tiny or full.
        settings: Further fields of the policy's configuration, and their values.
        num_cameras: Cameras that it sees.
    """

    policy: str
    regime: Regime
    dtype: str
    size: str
    settings: tuple[tuple[str, Any], ...] = ()
    num_cameras: int = len(CAMERAS)


def build(variant: Variant, device: torch.device) -> Any:
    """Build a policy with random weights, as lerobot-train has it before the first step.

    Args:
        variant: What is trained.
        device: Where; on the meta device nothing is allocated.
    """
    policy_class, module = POLICIES[variant.policy]
    config = _config(variant)
    # Its validation knows no meta device.
    config.device = str(device)
    tiny_stock = variant.size == "tiny" and not variant.policy.startswith("motion_")
    with torch.device(device), tiny_backbone(module) if tiny_stock else nullcontext():
        policy: Any = policy_class(config)
        if variant.regime.lora:
            # LeRobot's own: ours would note the base checkpoint's weights, and there are none.
            policy = PreTrainedPolicy.wrap_with_peft(
                policy, peft_cli_overrides=asdict(PeftConfig())
            )
    return policy.train()


def _config(variant: Variant) -> Any:
    settings = _SIZES[variant.size] | {"device": "cpu", "dtype": variant.dtype}
    if variant.policy.startswith("motion_"):
        settings |= _MOTION_SIZES[variant.size]
        settings |= {"motion_camera": CAMERAS[0], "train_from_scratch": True}
    if variant.regime.setting is not None:
        settings[variant.regime.setting] = variant.regime.value
    cameras = camera_names(variant.num_cameras)
    return POLICIES[variant.policy][0].config_class(
        **(settings | dict(variant.settings)),
        # LeRobot wants one for adapters; nothing is read from it.
        pretrained_path=f"lerobot/{variant.policy.removeprefix('motion_')}_base",
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
            **{camera: PolicyFeature(FeatureType.VISUAL, (3, *CAMERA_SIZE)) for camera in cameras},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    )


def camera_names(num_cameras: int) -> list[str]:
    """Names of cameras, the motion camera first.

    Args:
        num_cameras: How many.
    """
    further = (f"{CAMERAS[-1]}{i}" for i in range(len(CAMERAS), num_cameras))
    return [*CAMERAS, *further][:num_cameras]


def absent_cameras_in_title(absent_cameras: int) -> str:
    """What the title of a report says of cameras that policies have and batches lack.

    Args:
        absent_cameras: How many.

    Raises:
        ValueError: If there are less than none.
    """
    if absent_cameras < 0:
        raise ValueError(f"absent_cameras must not be negative, got {absent_cameras}.")
    return f", {absent_cameras} more cameras that are absent" if absent_cameras else ""


def make_batch(
    policy: nn.Module,
    batch_size: int,
    device: torch.device,
    prompt_tokens: int | None = None,
    absent_cameras: int = 0,
) -> dict[str, Tensor]:
    """A batch as the preprocessor leaves it, of random numbers.

    Args:
        policy: Whose batch.
        batch_size: Number of samples.
        device: Where.
        prompt_tokens: Tokens of every prompt that are not padding; all of them if None.
        absent_cameras: Cameras, the last ones, that the batch lacks.
    """
    config: Any = policy.config
    length = config.tokenizer_max_length
    num_cameras = len(config.image_features) - absent_cameras
    places = torch.arange(length, device=device)
    is_prompt = places < (length if prompt_tokens is None else prompt_tokens)
    batch = {
        "observation.state": torch.rand(batch_size, STATE_DIM, device=device),
        "action": torch.rand(batch_size, config.chunk_size, ACTION_DIM, device=device),
        "observation.language.tokens": torch.ones(
            batch_size, length, dtype=torch.long, device=device
        ),
        "observation.language.attention_mask": is_prompt.repeat(batch_size, 1),
        **{
            camera: torch.rand(batch_size, *feature.shape, device=device)
            for camera, feature in [*config.image_features.items()][:num_cameras]
        },
    }
    if getattr(config, "motion_latent_shape", None) is not None:
        shape = config.motion_sample_shape  # (C, h, w), of several views (V, C, h, w)
        batch[MOTION_LATENT] = torch.rand(batch_size, *shape, device=device)
        valid = torch.ones(batch_size, *shape[:-3], dtype=torch.bool, device=device)
        batch[MOTION_VALID] = valid
    return batch


# --- a training step ---


class NumbersOffFakes(TorchFunctionMode):
    """Within this context numbers read off tensors that have none, meta or fake, are zeros.

    What a policy reads so, it logs; but for the counter of the warm-up, which stands at zero.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function, unless it reads numbers."""
        if args and isinstance(args[0], Tensor) and _is_empty(args[0]):
            if func in {Tensor.item, Tensor.__int__, Tensor.__float__}:
                return 0
            if func is Tensor.tolist:
                return np.zeros(args[0].shape).tolist()
            if func is Tensor.numpy:
                return np.zeros(args[0].shape)
            if func is Tensor.cpu and args[0].is_meta:
                return torch.zeros(args[0].shape, dtype=args[0].dtype)
            # By which torch.distributions checks its parameters.
            if func is torch._is_all_true:  # noqa: SLF001
                return True
        return func(*args, **(kwargs or {}))


def _is_empty(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def train_step(
    policy: Any,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """Take a step as lerobot-train does, and leave the gradients where they are.

    Args:
        policy: The policy.
        batch: A batch.
        optimizer: Of an earlier step, or None to make LeRobot's.

    Returns:
        The optimizer.
    """
    config: Any = policy.config
    if optimizer is None:
        optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    optimizer.zero_grad()
    with arithmetic(next(iter(batch.values())).device, config.dtype):
        loss, _ = policy.forward(batch)
    loss.backward()
    optimizer.step()
    return optimizer


@contextmanager
def arithmetic(device: torch.device, dtype: str) -> Iterator[None]:
    """Autocast as lerobot-train has it; the meta device has none, and needs no numbers.

    Args:
        device: Of the batch.
        dtype: Of the policy's configuration.
    """
    if device.type == "meta":
        with NumbersOffFakes():
            yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        yield


# --- what it leaves behind ---


@dataclass(frozen=True)
class Footprint:
    """What is in memory after a training step, but for activations.

    Attributes:
        parameters: Parameters by part, without adapters.
        trainable: Those that require a gradient, by part, adapters with what they adapt.
        num_learning: Those that got one.
        weights: Bytes of parameters and buffers.
        gradients: Bytes of gradients.
        optimizer: Bytes of AdamW's state.
    """

    parameters: dict[str, int]
    trainable: dict[str, int]
    num_learning: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def num_parameters(self) -> int:
        """Parameters of the policy, without adapters."""
        return sum(self.parameters.values())

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimizer


def footprint_after(
    policy: nn.Module, optimizer: torch.optim.Optimizer, *, warmup: bool
) -> Footprint:
    """Add up what a training step left behind.

    Args:
        policy: The policy, with its gradients.
        optimizer: Its optimizer.
        warmup: Whether only the motion head learns.
    """
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    return Footprint(
        parameters=total_parameters(policy),
        trainable=trainable_parameters(policy, warmup=warmup),
        num_learning=sum(gradient.numel() for gradient in gradients),
        weights=_bytes([*policy.parameters(), *policy.buffers()]),
        gradients=_bytes(gradients),
        optimizer=_bytes(
            [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
        ),
    )


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
