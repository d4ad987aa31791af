"""Processors of motion_pi05: pi0.5's, with the motion target among them."""

import torch
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    RelativeActionsProcessorStep,
    RenameObservationsProcessorStep,
    make_default_policy_processor_steps,
)

from lerobot_motion.joint.processors import (
    Pipelines,
    make_joint_pipelines,
    make_tokenizer_step,
    rename_map_with_flags,
    renamed_stats,
    resumed_pipelines,
)
from lerobot_motion.motion_pi05.configuration_motion_pi05 import MotionPi05Config


def make_motion_pi05_pre_post_processors(
    config: MotionPi05Config,
    dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None,
) -> Pipelines:
    """Build the processors of motion_pi05.

    The steps and their order are those of LeRobot 0.6.1's `make_pi05_pre_post_processors`, which
    itself cannot be called: it loads one gated tokenizer by name. The state becomes part of the
    prompt, so it is normalized before, and unstacked before that.

    Args:
        config: The policy's configuration, with camera and latent shape settled.
        dataset_stats: Statistics of the dataset's features for normalization; pi0.5 wants the
            quantiles q01 and q99.

    Returns:
        Preprocessor and postprocessor.

    Raises:
        OSError: If the tokenizer cannot be loaded.
        ValueError: If the camera or the shape of the latents is not settled.
    """
    resumed = resumed_pipelines(config)
    if resumed is not None:
        return resumed
    steps = make_default_policy_processor_steps(config, renamed_stats(config, dataset_stats))
    relative_step = RelativeActionsProcessorStep(
        enabled=config.use_relative_actions,
        exclude_joints=config.relative_exclude_joints,
        action_names=config.action_feature_names,
    )
    return make_joint_pipelines(
        config,
        input_steps=[
            RenameObservationsProcessorStep(rename_map=rename_map_with_flags(config)),
            steps.add_batch_dim,
            relative_step,
            steps.normalize,
            Pi05PrepareStateTokenizerProcessorStep(max_state_dim=config.max_state_dim),
            make_tokenizer_step(config),
            steps.to_device,
        ],
        output_steps=[
            steps.unnormalize,
            AbsoluteActionsProcessorStep(
                enabled=config.use_relative_actions, relative_step=relative_step
            ),
            steps.to_cpu,
        ],
    )
