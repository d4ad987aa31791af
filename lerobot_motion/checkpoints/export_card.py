"""The model card of an exported checkpoint: what it is, and which checkpoint it was made from."""

from typing import Any

from huggingface_hub import ModelCardData
from torch import Tensor

from lerobot_motion.checkpoints.card_tables import quoted
from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.checkpoints.model_card import DEFAULT_LICENSE
from lerobot_motion.checkpoints.origin import checkpoint_label, is_hub_id
from lerobot_motion.motion_target import NO_TARGET, target_image

_CARD = """---
{front_matter}
---

# {title}

A plain LeRobot `{policy_type}` checkpoint, exported by `lerobot-motion-export` from {source}.
It was trained{steps} as `{motion_type}` {training}
"""
_JOINT_TRAINING = """(joint learning of
actions and {images}, [arXiv 2512.18007](https://arxiv.org/abs/2512.18007); horizon of
{motion_horizon} frames on {cameras}). The motion head, which acting does not use, is left
out."""
_PLAIN_TRAINING = """with
`motion_target=none`, which is to say as LeRobot itself trains it, as a control for joint learning
of actions and motion images ([arXiv 2512.18007](https://arxiv.org/abs/2512.18007))."""


def export_card(
    config: dict[str, Any], base_type: str, source: CheckpointSource, num_updates: Tensor | None
) -> str:
    """Write the card of an exported checkpoint.

    Args:
        config: Contents of our config.json.
        base_type: LeRobot's policy type.
        source: The checkpoint that is exported.
        num_updates: Optimizer steps of its motion head, or None if it has none.
    """
    title, training = base_type, _PLAIN_TRAINING
    if config["motion_target"] != NO_TARGET:
        images = f"{target_image(config['motion_target']).title}s"
        title = f"{base_type}, trained jointly with {images}"
        camera = config["motion_camera"]
        cameras = quoted([camera] if isinstance(camera, str) else camera)
        training = _JOINT_TRAINING.format(images=images, cameras=cameras, **config)
    return _CARD.format(
        front_matter=_front_matter(config, base_type, source),
        title=title,
        policy_type=base_type,
        source=_source_text(source),
        steps="" if num_updates is None else f" for {int(num_updates):,} optimizer steps",
        motion_type=config["type"],
        training=training,
    )


def _front_matter(config: dict[str, Any], base_type: str, source: CheckpointSource) -> str:
    tags = {"lerobot", "robotics", base_type, "motion-image-diffusion", *(config.get("tags") or [])}
    data = ModelCardData(
        license=config.get("license") or DEFAULT_LICENSE,
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=sorted(tags),
        base_model=source.path if is_hub_id(source.path) else None,
    )
    return str(data.to_yaml())


def _source_text(source: CheckpointSource) -> str:
    label = checkpoint_label(source.path)
    if not is_hub_id(source.path):
        return f"`{label}` (local)"
    return f"`{label}` at revision `{source.revision or 'main'}`"
