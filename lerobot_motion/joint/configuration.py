"""Settings of joint motion learning, on top of those of the base policy."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lerobot_motion.checkpoints.checkpoint_path import HiddenCheckpointPath
from lerobot_motion.config_errors import logged_refusal
from lerobot_motion.flow.estimator import (
    check_estimator_name,
    check_resolution,
    require_flow_weights,
)
from lerobot_motion.flow.motion_image import check_max_magnitude
from lerobot_motion.joint.settling import OneOrSeveral, SettledByDataset
from lerobot_motion.joint.speed import SpeedSettings
from lerobot_motion.models.latent_codec import EMBEDDED_CODECS
from lerobot_motion.motion_target import MOTION_TARGETS, NO_TARGET, target_image
from lerobot_motion.steps import BYTE_TOKENIZER
from lerobot_motion.training.train_run import TrainRun

if TYPE_CHECKING:
    # At run time a plain mixin: a dataclass base would bring its defaults before the policy's.
    from lerobot.configs import PreTrainedConfig as _PolicyConfig
else:
    _PolicyConfig = object

logger = logging.getLogger(__name__)


# What a field left at null becomes. "tiny" needs neither the hub nor a GPU.
_BACKBONE_DEFAULTS: dict[str, dict[str, Any]] = {
    "paligemma": {
        "motion_vae": "stabilityai/sdxl-vae",
        "motion_head_layers": 6,
        "motion_head_heads": 32,
        "motion_head_dim": 2048,
        "flow_estimator": "raft_large",
        "tokenizer_name": "google/paligemma-3b-pt-224",
    },
    "tiny": {
        "motion_vae": "pool",
        "motion_head_layers": 3,
        "motion_head_heads": 4,
        "motion_head_dim": 128,
        "flow_estimator": "dis",
        "tokenizer_name": BYTE_TOKENIZER,
    },
}


# SpeedSettings first: for the help of a field draccus looks into the first of the bases alone.
@dataclass
class JointMotionConfig(SpeedSettings, SettledByDataset, HiddenCheckpointPath, _PolicyConfig):
    """Fields of joint motion learning; mixed into the configuration of a pi0-style policy."""

    # Camera whose motion is learned, as the policy names it (after --rename_map), for example
    # observation.images.top. Several, in a list or separated by commas: one motion head predicts
    # the motion of all of these views together. null: the only camera; with several, an error
    # lists them.
    motion_camera: OneOrSeveral | None = None
    # Frames from the observation to the future frame of the motion image (k in arXiv 2512.18007).
    # null: chunk_size, so that actions and motion span one window.
    motion_horizon: int | None = None
    # Weight of the motion loss (lambda): loss = action_loss + motion_loss_weight * motion_loss.
    motion_loss_weight: float = 1.0
    # Optimizer steps at the start of training in which only the motion head learns, counting those
    # that it has behind it in the checkpoint that training starts from. 0: none.
    motion_warmup_steps: int = 0
    # Log, once in each of LeRobot's log intervals, the norms of both losses' gradients on the VLM
    # (the motion loss without its weight) and their cosine: action_gradient_norm,
    # motion_gradient_norm, gradient_cosine. Costs two more backward passes in that step, and the
    # memory of two more gradients of the VLM.
    log_gradient_balance: bool = False
    # What the motion head predicts: flow_image (optical flow drawn in HSV; the paper, A.1),
    # future_image (the future frame itself; no flow is estimated), or none (no motion head: the
    # base policy alone, as a control).
    motion_target: str = "flow_image"
    # Where motion targets come from: a latent store made by lerobot-motion-precompute (its
    # directory, or "auto" for the one beside the dataset); of several cameras one store for each,
    # in a list or separated by commas, or "auto". null: computed on the fly.
    motion_latents: OneOrSeveral | None = None
    # VAE of the motion image: a hub id, a local directory in diffusers' format, or one that needs
    # no download: "flow" (our own small VAE) or "pool" (8x8 averages). null: stabilityai/sdxl-vae
    # (backbone=tiny: pool).
    motion_vae: str | None = None
    # Channels, height and width of a motion latent. null: read from the VAE's config.json when the
    # policy is first built; a checkpoint carries it, so that serving needs no VAE.
    motion_latent_shape: tuple[int, int, int] | None = None
    # Transformer blocks of the motion head. null: 6 (backbone=tiny: 3).
    motion_head_layers: int | None = None
    # Attention heads of the motion head. null: 32 (backbone=tiny: 4).
    motion_head_heads: int | None = None
    # Width of the motion head. null: 2048 (backbone=tiny: 128).
    motion_head_dim: int | None = None
    # Peak learning rate of the motion head; it follows the same schedule. null: optimizer_lr.
    motion_head_lr: float | None = None
    # Optical flow for targets made on the fly: raft_large, raft_small or dis (OpenCV, on the CPU,
    # no weights). null: raft_large (backbone=tiny: dis).
    flow_estimator: str | None = None
    # Weights of RAFT: a local safetensors file in torchvision's naming. null: torchvision's own.
    flow_weights: str | None = None
    # Displacement drawn at full saturation, in pixels of the letterboxed image (the paper: 64).
    flow_max_magnitude: float = 64.0
    # Tokenizer of the instruction: a hub id, a local directory, or "bytes" (UTF-8 bytes, no
    # files). null: google/paligemma-3b-pt-224 (backbone=tiny: bytes).
    tokenizer_name: str | None = None
    # VLM and action expert: paligemma (pi0 itself), or tiny (same code, about 3M parameters) for
    # tests and tours on a CPU.
    backbone: str = "paligemma"
    # false: build and load the policy without its motion head, to serve with stock pi0's memory.
    load_motion_head: bool = True
    # Let lerobot-eval write what the policy imagines beside each rollout, as pred_episode_*.mp4
    # among its videos. Costs a pass of the VLM, ten of the motion head and the VAE's decoder for
    # every chunk of actions, and needs motion_vae at hand. The actions stay the same. A checkpoint
    # does not keep this: it is asked for where it is wanted.
    save_predicted_video: bool = False
    # Allow training without --policy.pretrained_path: a full-size backbone then starts random.
    train_from_scratch: bool = False
    # Fingerprint of the checkpoint that adapters (--peft) belong to; the run that makes them notes
    # it, and loading refuses another base. null: not checked.
    adapter_base_fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Fill the fields left at null and validate.

        Raises:
            ValueError: If a field is out of range or names something unknown.
        """
        with logged_refusal():
            super().__post_init__()
            self._name_views()
            self._resolve_defaults()
            self._validate_motion()

    def _resolve_defaults(self) -> None:
        if self.backbone not in _BACKBONE_DEFAULTS:
            raise ValueError(
                f"backbone must be one of {sorted(_BACKBONE_DEFAULTS)}, got {self.backbone!r}."
            )
        for name, value in _BACKBONE_DEFAULTS[self.backbone].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.motion_horizon is None:
            self.motion_horizon = self.chunk_size

    def _validate_motion(self) -> None:
        known = (*MOTION_TARGETS, NO_TARGET)
        if self.motion_target not in known:
            raise ValueError(f"motion_target must be one of {known}, got {self.motion_target!r}.")
        for name in ("motion_horizon", "motion_head_layers", "motion_head_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("motion_loss_weight", "motion_warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.motion_head_lr is not None and not self.motion_head_lr > 0:
            raise ValueError(f"motion_head_lr must be positive, got {self.motion_head_lr}.")
        dim, heads = self.motion_head_dim or 0, self.motion_head_heads or 1
        if dim < 1 or dim % heads:
            raise ValueError(
                f"motion_head_dim must be a multiple of motion_head_heads, got {dim} and {heads}."
            )
        if self.motion_target == NO_TARGET and self.motion_warmup_steps:
            raise ValueError(
                "motion_warmup_steps must be 0 with motion_target=none, got "
                f"{self.motion_warmup_steps}: there is no motion head to warm up. Pass "
                "--policy.motion_warmup_steps=0."
            )
        if self.log_gradient_balance and (
            self.train_expert_only or self.motion_target == NO_TARGET
        ):
            cause = (
                "train_expert_only=true freezes"
                if self.train_expert_only
                else ("motion_target=none leaves to the actions")
            )
            raise ValueError(
                "log_gradient_balance=true compares the gradients of both losses on the VLM, which "
                f"{cause}. Leave it out."
            )
        if self.save_predicted_video and not self.has_motion_head:
            cause = "motion_target=none" if self.load_motion_head else "load_motion_head=false"
            raise ValueError(
                f"save_predicted_video=true needs the motion head, which {cause} leaves out. Leave "
                "one of them out."
            )
        self.validate_speed()
        self._validate_flow()

    def _validate_flow(self) -> None:
        check_estimator_name(self.flow_estimator)
        check_max_magnitude(self.flow_max_magnitude)
        if self.estimates_flow:
            check_resolution(str(self.flow_estimator), self.image_resolution)

    @property
    def has_motion_head(self) -> bool:
        """Whether the policy has a motion head."""
        return self.load_motion_head and self.motion_target != NO_TARGET

    @property
    def estimates_flow(self) -> bool:
        """Whether the targets are drawn from optical flow."""
        return self.motion_target != NO_TARGET and target_image(self.motion_target).needs_flow

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Frames that training asks of every observation key: now, and the motion horizon.

        None where no future is needed: without a motion head, or with targets from a latent store.
        """
        if not self.has_motion_head or self.motion_latents is not None:
            return None
        return [0, self.motion_horizon or 0]

    def enter_run(self, run: TrainRun) -> None:
        """Take note of the run that trains this policy; called by the hook in `training/run.py`.

        Args:
            run: Settings of the run.

        Raises:
            OSError: If the weights of `flow_estimator` are not there and cannot be downloaded, or
                the file of `flow_weights` is truncated or of another format.
            ValueError: If the run trains a policy without its motion head, or a full-size backbone
                from random weights unasked, or `flow_weights` are not those of `flow_estimator`.
        """
        if not self.load_motion_head:
            raise ValueError(
                "load_motion_head=false is for serving; a run without the motion head would train "
                "plain pi0. Leave it out, or say --policy.motion_target=none to do just that."
            )
        if self.use_peft and not run.adapters:
            raise ValueError(
                f"{self.pretrained_path} holds adapters (LoRA), which only a run with --peft can "
                "save again (LeRobot 0.6.1). Add --peft.method_type=LORA to train them on; to "
                "train all weights, start from the base checkpoint."
            )
        if self.pretrained_path is None:
            self.refuse_random_backbone()
        self.require_attention()
        self._warn_of_target()
        if self.estimates_flow and self.motion_latents is None:
            require_flow_weights(str(self.flow_estimator), self.flow_weights)
        if self.has_motion_head and self.motion_warmup_steps >= run.num_steps:
            logger.warning(
                "motion_warmup_steps=%d is not shorter than the run (steps=%d): only the motion "
                "head will learn, and no action. Joint learning begins at step %d of the head, "
                "counting those that it has behind it in the checkpoint that the run starts from.",
                self.motion_warmup_steps,
                run.num_steps,
                self.motion_warmup_steps,
            )
        if self.has_motion_head and self.train_expert_only:
            logger.warning(
                "train_expert_only=true freezes the VLM: the motion loss can train the motion head "
                "alone, and the actions learn nothing from it. freeze_vision_encoder=true would "
                "freeze the vision tower only."
            )
        self._train_run = run

    def _warn_of_target(self) -> None:
        if self.motion_target == NO_TARGET and self.motion_latents is not None:
            logger.warning(
                "motion_latents=%s is not read: motion_target=none.", self.motion_latents
            )
        draws_other_images = self.has_motion_head and not self.estimates_flow
        if draws_other_images and self.motion_vae in EMBEDDED_CODECS:
            logger.warning(
                "motion_vae=%s is made for motion images: latents of %s may be far from unit "
                "variance, and their loss outweigh the actions'. Fine to try things out; to "
                "compare targets use a VAE of natural images "
                "(--policy.motion_vae=stabilityai/sdxl-vae).",
                self.motion_vae,
                self.motion_target,
            )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Save, without what belongs to a run rather than to the policy.

        A saved `save_predicted_video` would slow down whoever drives a robot. A saved
        `pretrained_revision` is taken for one of the repository that it was saved to; adapters note
        that of their base themselves.
        """
        saved = copy.copy(self)
        saved.save_predicted_video = False
        if self.use_peft:
            saved.pretrained_revision = None
        super(JointMotionConfig, saved)._save_pretrained(save_directory)

    def refuse_random_backbone(self) -> None:
        """Refuse to train a full-size backbone that no checkpoint was loaded into.

        Raises:
            ValueError: If the backbone is full-size and `train_from_scratch` is not set.
        """
        if self.backbone != "tiny" and not self.train_from_scratch:
            raise ValueError(
                "no --policy.pretrained_path is given, so the full-size VLM would start from "
                "random weights. Pass a LeRobot checkpoint "
                f"(--policy.pretrained_path=lerobot/{self.type.removeprefix('motion_')}_base), or "
                "say --policy.train_from_scratch=true."
            )

    @property
    def motion_head_settings(self) -> dict[str, Any]:
        """Arguments of the `MotionHead`, but for the width of the prefix."""
        return {
            "latent_shape": self.motion_latent_shape,
            "num_layers": self.motion_head_layers,
            "num_heads": self.motion_head_heads,
            "dim": self.motion_head_dim,
            "num_views": max(1, len(self.motion_cameras)),
            "absent_views": self.absent_views,
        }
