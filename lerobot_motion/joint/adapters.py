"""Adapters (LoRA and other methods of PEFT): what learns, and which checkpoint they belong to.

LeRobot saves adapters without the weights that they adapt, which are loaded anew from the base
checkpoint. So the base is noted in full (its absolute path or its revision on the Hub, and a
fingerprint of its weights), and adapters are put on no other.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lerobot_motion.checkpoints.loading import MOTION_HEAD_PREFIX, CheckpointSource, read_weights
from lerobot_motion.joint.configuration import JointMotionConfig

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy as _Policy
else:
    # At run time a plain mixin, whose next class in the MRO is LeRobot's policy.
    _Policy = torch.nn.Module

logger = logging.getLogger(__name__)

ADAPTER_SETTINGS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT's names start so: its model, its tuner, then the policy.
_PEFT_PREFIX = "base_model.model."
_MOTION_HEAD = "motion_head"
_LANGUAGE_TARGETS = r".*\.language_model\..*\.self_attn\.(q|v)_proj"
_PROJECTOR_TARGET = r".*\.multi_modal_projector\.linear"
_VISION_TARGETS = r".*\.vision_tower\..*\.self_attn\.(q|v)_proj"
_SAMPLED_VALUES = 64


class AdapterTraining(_Policy):
    """Mixed into a joint policy: `lerobot-train --peft.method_type=LORA` trains the VLM, too."""

    config: JointMotionConfig
    # The checkpoint that the weights were loaded from.
    loaded_from: CheckpointSource | None = None

    def wrap_with_peft(self, *args: Any, **kwargs: Any) -> Any:
        """Wrap with adapters as LeRobot does, and note which checkpoint they belong to.

        Args:
            *args: Passed on to LeRobot.
            **kwargs: Passed on to LeRobot.

        Returns:
            PEFT's model around this policy.

        Raises:
            OSError: If the base checkpoint cannot be read.
            ValueError: If there is none, or the motion head would not be trained.
        """
        config = self.config
        with config.checkpoint_path_shown():
            base = self._base_checkpoint()
            if base is not None:
                config.pretrained_path = Path(base.path)
                config.adapter_base_fingerprint = weights_fingerprint(base)
            adapted = super().wrap_with_peft(*args, **kwargs)
        for settings in adapted.peft_config.values():
            settings.revision = base.revision if base is not None else None
        return adapted

    def _base_checkpoint(self) -> CheckpointSource | None:
        """The checkpoint that adapters belong to, by a path that holds from anywhere."""
        base, path = self.loaded_from, self.config.pretrained_path
        if base is None and path is not None:
            base = CheckpointSource(str(path), revision=self.config.pretrained_revision)
        if base is not None and Path(base.path).is_dir():
            # Without symbolic links: checkpoints/last may be another one tomorrow.
            return replace(base, path=str(Path(base.path).resolve()))
        return base

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """What joint training trains, at low rank: stock pi0's targets and those of the VLM.

        Stock pi0 adapts the action expert alone. Here the motion loss is to change what the VLM
        sees, so the vision tower, its projector and the language model get adapters, too, unless
        freeze_vision_encoder or train_expert_only say otherwise.
        """
        stock = super()._get_default_peft_targets()
        patterns = [stock["target_modules"]]
        if not self.config.train_expert_only:
            patterns += [_LANGUAGE_TARGETS, _PROJECTOR_TARGET]
            if not self.config.freeze_vision_encoder:
                patterns.append(_VISION_TARGETS)
        modules = [*stock["modules_to_save"], *self._own_modules]
        return {"target_modules": f"({'|'.join(patterns)})", "modules_to_save": modules}

    @property
    def _own_modules(self) -> list[str]:
        """What is trained in full: the motion head, if there is one."""
        return [_MOTION_HEAD] if self.config.has_motion_head else []

    def _preprocess_peft_cli_overrides(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add the motion head to the user's `--peft.full_training_modules`."""
        overrides: dict[str, Any] = super()._preprocess_peft_cli_overrides(*args, **kwargs)
        modules = overrides.get("modules_to_save")
        if modules is not None and not _holds_motion_head(modules):
            logger.info("Trained in full: %s, and the motion head if there is one.", modules)
            overrides["modules_to_save"] = [*modules, *self._own_modules]
        return overrides

    def _validate_peft_config(self, peft_config: Any) -> None:
        super()._validate_peft_config(peft_config)
        modules = peft_config.modules_to_save or []
        if self.config.has_motion_head and not _holds_motion_head(modules):
            raise ValueError(
                "the motion head must be trained in full and saved with the adapters: it has to be "
                f"one of modules_to_save, got {peft_config.modules_to_save}. Add "
                f"{_MOTION_HEAD!r}."
            )


def _holds_motion_head(modules: list[str]) -> bool:
    """Whether PEFT's names of modules, which may be suffixes, include the motion head."""
    name = MOTION_HEAD_PREFIX.rstrip(".")
    return any(name == module or name.endswith(f".{module}") for module in modules)


def weights_fingerprint(source: CheckpointSource) -> str:
    """Tell a checkpoint's weights from others: by their names, types, shapes and some values.

    Args:
        source: The checkpoint; three places of every tensor are read, not the whole file.

    Returns:
        16 hexadecimal digits.

    Raises:
        FileNotFoundError: If there is no weights file.
        OSError: If the weights file cannot be read.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(read_weights(source).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.flatten()
        last = max(len(values) - _SAMPLED_VALUES, 0)
        for start in (0, last // 2, last):
            sample = values[start : start + _SAMPLED_VALUES]
            digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def adapters_for(config: Any | None, base: CheckpointSource) -> CheckpointSource | None:
    """Find the adapters for whose sake LeRobot loads a base checkpoint.

    Args:
        config: The configuration given to `from_pretrained`, if any: that of the adapters, whose
            checkpoint is its `pretrained_path`.
        base: The checkpoint that is loaded.

    Returns:
        The adapters' checkpoint, or None if the base is loaded for its own sake.
    """
    if config is None or not config.use_peft or config.pretrained_path is None:
        return None
    path = str(config.pretrained_path)
    if path == base.path:
        return None
    return replace(base, path=path, revision=config.pretrained_revision)


@contextmanager
def naming_adapters(adapters: CheckpointSource | None, base: CheckpointSource) -> Iterator[None]:
    """Within this context errors about a base checkpoint name the adapters that want it.

    Args:
        adapters: The adapters' checkpoint, or None if the base is loaded for its own sake.
        base: The base checkpoint.
    """
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if adapters is None:
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"the adapters of {adapters.path} belong to the base checkpoint {base.path}, which "
            f"cannot be used: {error} If the base was moved, write its place as "
            f"base_model_name_or_path in {adapters.path}/{ADAPTER_SETTINGS}."
        ) from error


def expect_adapters(
    policy: Any, adapters: CheckpointSource, base: CheckpointSource, *, is_base: bool
) -> None:
    """Check that adapters belong to a policy's weights, before PEFT puts them on it.

    PEFT 0.21 itself leaves what the adapters lack at random or neutral values, with a warning; the
    policy therefore also checks what PEFT loads into it.

    Args:
        policy: The policy with the base's weights.
        adapters: The adapters' checkpoint.
        base: The base checkpoint.
        is_base: Whether the base is of the base policy, which has no motion head.

    Raises:
        FileNotFoundError: If the adapters' weights cannot be found.
        OSError: If weights cannot be read.
        ValueError: If the adapters were trained on other weights, lack the motion head or have one
            of another size.
    """
    expected = policy.config.adapter_base_fingerprint
    found = weights_fingerprint(base) if expected is not None else None
    if found != expected:
        raise ValueError(
            f"the adapters of {adapters.path} were trained on other weights than those of "
            f"{base.path}: fingerprint {expected}, not {found}. Name the right base checkpoint as "
            f"base_model_name_or_path in {adapters.path}/{ADAPTER_SETTINGS}; to use this one all "
            "the same, pass --policy.adapter_base_fingerprint=null."
        )
    stored = read_weights(adapters, ADAPTER_WEIGHTS)
    _check_motion_head(policy, stored, adapters, base, is_base=is_base)
    policy.register_load_state_dict_post_hook(_WholeAdapters(policy, adapters, base))


def _check_motion_head(
    policy: Any,
    stored: dict[str, Tensor],
    adapters: CheckpointSource,
    base: CheckpointSource,
    *,
    is_base: bool,
) -> None:
    own = {k: v.shape for k, v in policy.state_dict().items() if k.startswith(MOTION_HEAD_PREFIX)}
    names = {key.removeprefix(_PEFT_PREFIX): value.shape for key, value in stored.items()}
    held = {key: shape for key, shape in names.items() if key.startswith(MOTION_HEAD_PREFIX)}
    if not own or (not held and not is_base):
        return
    if not held:
        raise ValueError(
            f"the adapters of {adapters.path} hold no motion head, and neither does their base "
            f"checkpoint {base.path}: it would be random. Serve without it, "
            "--policy.load_motion_head=false, or train adapters anew."
        )
    differing = sorted(k for k in own.keys() | held.keys() if own.get(k) != held.get(k))
    if differing:
        key = differing[0]
        raise ValueError(
            f"the motion head of the adapters of {adapters.path} does not fit the policy on "
            f"{base.path}: {len(differing)} tensors differ ({key} is {_shape(held.get(key))}, "
            f"expected {_shape(own.get(key))}). Leave motion_head_layers, motion_head_heads, "
            "motion_head_dim, motion_vae and motion_camera as the adapters were trained."
        )


def _shape(shape: torch.Size | None) -> tuple[int, ...] | str:
    return "absent" if shape is None else tuple(shape)


class _WholeAdapters:
    """Hook on a policy: the next weights that are loaded into it hold all of its adapters."""

    def __init__(self, policy: Any, adapters: CheckpointSource, base: CheckpointSource) -> None:
        self._own = set(policy.state_dict())
        self._adapters, self._base = adapters.path, base.path
        self._loaded = False

    def __call__(self, policy: Any, keys: Any) -> None:
        if self._loaded:
            return
        self._loaded = True
        has_head = any(key.startswith(MOTION_HEAD_PREFIX) for key in self._own)
        problems = {
            "missing": [k for k in keys.missing_keys if _own_name(k) not in self._own],
            "unexpected": [
                k
                for k in keys.unexpected_keys
                if has_head or not _own_name(k).startswith(MOTION_HEAD_PREFIX)
            ],
        }
        found = "; ".join(f"{len(k)} tensors {what} ({k[0]})" for what, k in problems.items() if k)
        if found:
            raise ValueError(
                f"the adapters of {self._adapters} do not fit the policy on {self._base}: {found}. "
                f"Check target_modules and r in {ADAPTER_SETTINGS}, and --policy.backbone."
            )


def _own_name(key: str) -> str:
    """Name of a tensor in the policy before PEFT wrapped its modules."""
    name = key.removeprefix(_PEFT_PREFIX)
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")
