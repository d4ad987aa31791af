"""What motion learning adds to a pi0-style policy: joint loss, warm-up, imagination, loading."""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import ACTION
from torch import Tensor

from lerobot_motion.checkpoints.card_tables import describe_dataset
from lerobot_motion.checkpoints.loading import (
    CheckpointSource,
    load_weights,
    read_policy_type,
    warn_of_missing_processors,
)
from lerobot_motion.joint.adapters import (
    AdapterTraining,
    adapters_for,
    expect_adapters,
    naming_adapters,
)
from lerobot_motion.joint.backbone import JointModel
from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.joint.dataset_checks import check_dataset
from lerobot_motion.joint.driving import PaceWarning
from lerobot_motion.joint.gradient_balance import GradientBalance
from lerobot_motion.joint.imagining import Imagining
from lerobot_motion.joint.modes import QuickModes
from lerobot_motion.joint.objective import MotionTarget, mean_of_draws, motion_losses
from lerobot_motion.joint.predicted_video import PredictedVideo
from lerobot_motion.joint.validation_losses import ValidationLosses
from lerobot_motion.motion_target import NO_TARGET
from lerobot_motion.steps import MOTION_LATENT, MOTION_VALID
from lerobot_motion.training.ranks import check_sharding, drawing_apart


class JointMotionPolicy(
    AdapterTraining,
    GradientBalance,
    PaceWarning,
    QuickModes,
    PredictedVideo,
    Imagining,
    ValidationLosses,
):
    """Mixed into LeRobot's `PI0Policy`: trains a motion head beside the action head.

    The policy acts exactly as its base: the methods that drive a robot are the base's own.
    """

    # LeRobot's policy type whose checkpoints can be warm-started from.
    base_policy_type: ClassVar[str]

    config: JointMotionConfig
    model: JointModel
    # Until a checkpoint is loaded.
    starts_random = True

    @staticmethod
    def settle(config: JointMotionConfig, dataset_meta: Any | None) -> None:
        """Settle what depends on the VAE and the dataset, before anything is built.

        Args:
            config: The policy's configuration.
            dataset_meta: Metadata of the training dataset, or None outside training.

        Raises:
            OSError: If the VAE's configuration cannot be read.
            ValueError: If the dataset cannot teach motion.
        """
        if dataset_meta is not None:
            config.dataset_facts = describe_dataset(dataset_meta)
        if not config.has_motion_head:
            return
        config.settle_latent_shape()
        if dataset_meta is not None:
            check_dataset(config, dataset_meta)

    def forward(
        self, batch: dict[str, Tensor], reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, Any]]:
        """Compute the joint loss, L_action + motion_loss_weight * L_motion (the paper, eq. 5).

        In the warm-up only the motion loss is computed, on prefix features without a gradient: the
        action path is left out of the graph altogether, since a gradient of zero would still let
        AdamW decay pi0's weights.

        Args:
            batch: Output of the preprocessor on a training batch.
            reduction: "mean" for a scalar, "none" for a loss of every sample, (B,).

        Returns:
            The loss, and a dict with `loss`, `action_loss` (NaN in the warm-up), `motion_loss` (not
            with motion_target=none, which is the base policy's own loss) and pi0's `loss_per_dim`.
            A sample without a valid target counts as 0 in the mean of the motion loss, so that
            every frame weighs the same in whichever batch and rank it falls.

        Raises:
            ValueError: If the batch has no motion target.
        """
        if not self.training:
            return self._joint_loss(batch, reduction)
        with drawing_apart(batch[ACTION].device):
            return self._joint_loss(batch, reduction)

    def _joint_loss(
        self, batch: dict[str, Tensor], reduction: str
    ) -> tuple[Tensor, dict[str, Any]]:
        if self.model.motion_head is None:
            loss, log = super().forward(batch, reduction=reduction)
            if self.config.motion_target == NO_TARGET:
                log["action_loss"] = log["loss"]
                self.note_losses(log)
            return loss, log
        target = self._target(batch)
        if self.training and self.in_motion_warmup:
            with torch.no_grad():
                prefix, mask = self._encode_prefix(batch)
            action_loss, log = None, self._uncomputed_action_log()
        else:
            with self.model.keeping_prefix():
                action_loss, log = super().forward(batch, reduction=reduction)
            prefix, mask = self.model.take_prefix()
            log["action_loss"] = log["loss"]
        motion_loss = self._motion_loss(target, prefix, mask, reduction)
        log.update(self.measure_balance(action_loss, motion_loss))
        loss = self.config.motion_loss_weight * motion_loss
        if action_loss is not None:
            loss = action_loss + loss
        means = torch.stack([motion_loss.detach().mean(), loss.detach().mean()])
        # Together: each reading waits for the GPU.
        log["motion_loss"], log["loss"] = means.tolist()
        self.note_losses(log, in_warmup=action_loss is None)
        return loss, log

    def _motion_loss(
        self, target: MotionTarget, prefix: Tensor, mask: Tensor, reduction: str
    ) -> Tensor:
        draws = self.config.motion_samples_per_step
        target = target.repeated(draws)
        # Drawn after the action's own noise and time, which thereby are those of stock pi0.
        noise = self.model.sample_noise(target.latent.shape, target.latent.device)
        time = self.model.sample_time(len(target.latent), target.latent.device)
        losses = motion_losses(self._motion_head, target, prefix, mask, noise, time)
        losses = mean_of_draws(losses, draws)
        return losses if reduction == "none" else losses.mean()

    def _target(self, batch: dict[str, Tensor]) -> MotionTarget:
        if MOTION_LATENT not in batch:
            raise ValueError(
                "the batch has no motion target: its preprocessor has no MotionTargetStep, or the "
                "dataset was not asked for future frames. Build the preprocessor with "
                "make_pre_post_processors(policy.config, dataset_stats=…) and the dataset with "
                "delta_timestamps from policy.config (resolve_delta_timestamps)."
            )
        return MotionTarget(latent=batch[MOTION_LATENT], valid=batch[MOTION_VALID])

    def _uncomputed_action_log(self) -> dict[str, Any]:
        action_dim = self.config.output_features[ACTION].shape[0]
        return {"loss_per_dim": [math.nan] * action_dim, "action_loss": math.nan}

    @property
    def in_motion_warmup(self) -> bool:
        """Whether only the motion head learns at present."""
        if self.config.motion_target == NO_TARGET:
            return False
        head, warmup_steps = self._motion_head, self.config.motion_warmup_steps
        # Without a warm-up the counter is not read: that would wait for the GPU.
        return warmup_steps > 0 and int(head.num_updates) < warmup_steps

    def update(self) -> None:
        """Count an optimizer step; lerobot-train calls this after each.

        Raises:
            ValueError: If FSDP shards the motion head in such a way that there can be no warm-up.
        """
        super().update()
        if self.config.motion_target != NO_TARGET:
            if self.config.motion_warmup_steps:
                check_sharding(self._motion_head)
            # In place: under FSDP the head is wrapped, and an assignment would stay on the wrapper.
            self._motion_head.num_updates.add_(1)

    def get_optim_params(self) -> Any:
        """Parameters for the optimizer: one group, or two if the head has a rate of its own.

        With adapters (--peft) only what they train; otherwise, as stock pi0, frozen ones too.

        Raises:
            ValueError: If a full-size backbone would be trained from random weights unasked.
        """
        if self.starts_random:
            self.config.refuse_random_backbone()
        everything = [p for p in self.parameters() if p.requires_grad or not self.config.use_peft]
        if self.config.motion_head_lr is None or self.config.motion_target == NO_TARGET:
            return everything
        in_head = {id(parameter) for parameter in self._motion_head.parameters()}
        head = [parameter for parameter in everything if id(parameter) in in_head]
        base = [parameter for parameter in everything if id(parameter) not in in_head]
        return [{"params": base}, {"params": head, "lr": self.config.motion_head_lr}]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        force_download: bool = False,
        resume_download: bool | None = None,  # noqa: ARG003 - part of LeRobot's signature
        proxies: dict[str, str] | None = None,  # noqa: ARG003 - part of LeRobot's signature
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        strict: bool = True,  # noqa: ARG003 - loading is always strict
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint of this policy, or warm-start from one of the base policy.

        Args:
            pretrained_name_or_path: Local directory or repository on the Hub.
            config: Configuration to use instead of the checkpoint's.
            force_download: Download again what is cached.
            resume_download: Accepted for LeRobot; downloads always resume.
            proxies: Accepted for LeRobot; set HTTPS_PROXY instead.
            token: Token for the Hub.
            cache_dir: Cache of the Hub's files.
            local_files_only: Use cached files alone.
            revision: Branch, tag or commit on the Hub.
            strict: Accepted for LeRobot; loading is always strict.
            **kwargs: Passed on to the policy (`dataset_meta`, `dataset_stats`).

        Returns:
            The policy in evaluation mode. Of a base checkpoint, the motion head is fresh.

        Raises:
            FileNotFoundError: If the checkpoint or one of its files cannot be found.
            OSError: If the weights cannot be read.
            ValueError: If it is another policy's, or a tensor is missing, unexpected or of another
                shape.
        """
        source = CheckpointSource(
            str(pretrained_name_or_path),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        adapters = adapters_for(config, source)
        with naming_adapters(adapters, source):
            types = (cls.name, cls.base_policy_type)
            policy_type = read_policy_type(source, types, whole=True)
        is_base = policy_type == cls.base_policy_type
        if config is None:
            config = cls._read_config(source, is_base=is_base)
        cls._rename_features(config, kwargs.get("dataset_meta"))
        policy = cls(config, **kwargs)
        with naming_adapters(adapters, source):
            load_weights(policy, source, is_base=is_base)
        if adapters is not None:
            expect_adapters(policy, adapters, source, is_base=is_base)
        policy.starts_random, policy.loaded_from = False, source
        if config.train_run is not None and str(config.pretrained_path) == source.path:
            config.hide_checkpoint_path()
        if config.train_run is None and adapters is None and not is_base:
            warn_of_missing_processors(source)
        policy.eval()
        return policy

    @staticmethod
    def _rename_features(config: Any, dataset_meta: Any | None) -> None:
        """Give features that make_policy took from the dataset the policy's names."""
        if config.train_run is None or dataset_meta is None:
            return
        if set(config.input_features) <= set(dataset_meta.features):
            names = config.train_run.rename_map
            config.input_features = {names.get(k, k): v for k, v in config.input_features.items()}

    @classmethod
    def _read_config(cls, source: CheckpointSource, *, is_base: bool) -> Any:
        stored = PreTrainedConfig.from_pretrained(source.path, **source.hub_options)
        if not is_base:
            return stored
        fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(stored)}
        return cls.config_class(**fields)
