"""What a resumed run must have in common with its checkpoint: the motion head and its targets."""

import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub.constants import CONFIG_NAME
from lerobot.utils.constants import (
    OPTIMIZER_PARAM_GROUPS,
    OPTIMIZER_STATE,
    PRETRAINED_MODEL_DIR,
    RNG_STATE,
    SCHEDULER_STATE,
    TRAINING_STATE_DIR,
    TRAINING_STEP,
)

from lerobot_motion.models.latent_codec import latent_codec_sha256

logger = logging.getLogger(__name__)

# What the motion head is, and what it learns to draw. Weights of losses, learning rates and the
# places of files may change, and so may where targets come from (motion_latents).
_HEAD = ("motion_latent_shape", "motion_head_layers", "motion_head_heads", "motion_head_dim")
_TARGET = ("motion_camera", "motion_horizon", "image_resolution")
_FLOW = ("flow_estimator", "flow_max_magnitude")
# The optimizer's state, which a resume restores, holds these.
_RATES = ("optimizer_lr", "motion_head_lr")
_STATE = (TRAINING_STEP, RNG_STATE, OPTIMIZER_STATE, OPTIMIZER_PARAM_GROUPS, SCHEDULER_STATE)


def check_resumed(config: Any, checkpoint: Path) -> None:
    """Compare a resumed run with the checkpoint that it continues, before anything is built.

    Args:
        config: The policy's configuration: the checkpoint's with the flags of this run.
        checkpoint: Directory of the checkpoint, `…/checkpoints/<step>`.

    Raises:
        FileNotFoundError: If the checkpoint is incomplete.
        ValueError: If the motion head or its target would be another one.
    """
    _check_complete(checkpoint)
    path = checkpoint / PRETRAINED_MODEL_DIR / CONFIG_NAME
    try:
        saved = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"resume: {path} is no readable configuration ({error}).") from error
    problems = [
        f"{name} is {_show(saved[name])} in the checkpoint and {_show(value)} in this run"
        for name in _fixed_settings(config)
        if name in saved and _differ(name, saved[name], value := getattr(config, name))
    ]
    if problems:
        raise ValueError(
            f"resume: {'; '.join(problems)} ({checkpoint}). A resumed run goes on with the motion "
            "head and the targets of its checkpoint: leave these flags out. To change targets, "
            f"start a new run from the weights: --policy.path={path.parent} without --resume."
        )
    _check_rates(saved, config)


def check_resumed_store(config: Any, store: Path, flow_estimator: str | None) -> None:
    """Compare the flow of a latent store with that of the checkpoint that is resumed.

    Args:
        config: The policy's configuration.
        store: Directory of the store.
        flow_estimator: How the store's flow was estimated.

    Raises:
        ValueError: If it was estimated in another way.
    """
    if config.estimates_flow and flow_estimator != config.flow_estimator:
        raise ValueError(
            f"resume: flow_estimator is {config.flow_estimator} in the checkpoint and "
            f"{flow_estimator} in the latent store {store}. A resumed run goes on with the targets "
            "of its checkpoint: make a store with lerobot-motion-precompute "
            f"--flow_estimator={config.flow_estimator}, or pass --policy.motion_latents=null."
        )


def _check_complete(checkpoint: Path) -> None:
    state = checkpoint / TRAINING_STATE_DIR
    missing = [name for name in _STATE if not (state / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"resume: {state} lacks {', '.join(missing)}; a run that is killed while it saves "
            "leaves such a checkpoint behind. Resume from an earlier one, or start a new run from "
            f"the weights: --policy.path={checkpoint / PRETRAINED_MODEL_DIR} without --resume."
        )


def _fixed_settings(config: Any) -> list[str]:
    """Names of the settings that a resumed run must leave as they are."""
    if not config.has_motion_head:
        return ["motion_target"]
    flow = _FLOW if config.estimates_flow else ()
    return ["motion_target", *_TARGET, *flow, "motion_vae", *_HEAD]


def _differ(name: str, saved: Any, value: Any) -> bool:
    # null: to be settled, from the data set or the VAE, before anything is built.
    if value is None or _show(saved) == _show(value):
        return False
    if name != "motion_vae":
        return True
    # The same VAE may lie elsewhere now.
    weights = latent_codec_sha256(str(saved)), latent_codec_sha256(str(value))
    return None in weights or weights[0] != weights[1]


def _show(value: Any) -> Any:
    """A value as config.json has it."""
    return list(value) if isinstance(value, tuple) else value


def _check_rates(saved: dict[str, Any], config: Any) -> None:
    for name in _RATES:
        before, now = saved.get(name), getattr(config, name)
        if before == now:
            continue
        if name == "motion_head_lr" and None in (before, now):
            raise ValueError(
                f"resume: motion_head_lr is {before} in the checkpoint and {now} in this run. "
                "Whether the motion head has a rate of its own is part of the optimizer's state, "
                "which a resume restores: leave --policy.motion_head_lr out."
            )
        logger.warning(
            "resume: %s=%s has no effect; the optimizer's state, which a resume restores, has the "
            "rate %s.",
            name,
            now,
            before,
        )
