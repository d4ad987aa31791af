"""motion_pi05 through LeRobot's commands: warm start, warm-up, joint stage, evaluation."""

import json
import math
from pathlib import Path

import pytest
import torch
from commands import succeed
from lerobot.configs import FeatureType, PolicyFeature
from runs import POLICY, TOP, Run, data_flags, read_config
from safetensors.torch import load_file
from small_data import write_images
from tiny import save_stock_checkpoint

JOINTS = 14
HEAD = "model.motion_head."
# 14 joints of gym-aloha, told in the prompt.
FLAGS = (
    *POLICY,
    "--policy.type=motion_pi05",
    f"--policy.max_state_dim={JOINTS}",
    f"--policy.max_action_dim={JOINTS}",
    "--policy.tokenizer_max_length=200",
    "--policy.motion_warmup_steps=2",
    "--steps=4",
    "--save_freq=2",
)


@pytest.fixture(scope="module")
def stock_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of LeRobot's own pi0.5 for gym-aloha."""
    path = tmp_path_factory.mktemp("stock") / "pi05"
    save_stock_checkpoint(
        path,
        base="pi05",
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)),
            TOP: PolicyFeature(FeatureType.VISUAL, (3, 480, 640)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
        max_state_dim=JOINTS,
        max_action_dim=JOINTS,
        tokenizer_max_length=200,
    )
    return path


@pytest.fixture(scope="module")
def trained(home: Path, stock_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four steps from the stock checkpoint, two of them warm-up; checkpoints after 2 and 4."""
    data = write_images(
        tmp_path_factory.mktemp("aloha") / "data",
        (TOP,),
        {"observation.state": JOINTS, "action": JOINTS},
    )
    output_dir = data.parent / "run"
    result = succeed(
        "lerobot-train",
        *FLAGS,
        *data_flags(data, output_dir),
        f"--policy.pretrained_path={stock_checkpoint}",
        home=home,
    )
    return Run(output_dir, result.stderr)


def test_warm_up_and_joint_stage_follow_the_warm_start(trained: Run, stock_checkpoint: Path):
    before = load_file(stock_checkpoint / "model.safetensors")
    warm, joint = trained.weights(2), trained.weights(4)

    assert [math.isnan(loss) for loss in trained.metrics("action_loss")] == [True] * 2 + [False] * 2
    assert all(loss > 0 for loss in trained.metrics("motion_loss"))
    assert {key for key in warm if not key.startswith(HEAD)} == set(before)
    assert all(torch.equal(warm[key], before[key]) for key in before)
    unchanged = [key for key in before if torch.equal(joint[key], before[key])]
    # pi0.5 itself never uses these: the language model's output layer and the expert's embedding.
    assert all("lm_head" in key or "embed_tokens" in key for key in unchanged), unchanged


def test_its_checkpoint_is_of_its_own_type(trained: Run):
    checkpoint = trained.checkpoint(4)
    steps = json.loads((checkpoint / "policy_preprocessor.json").read_text())["steps"]
    names = [step["registry_name"] for step in steps]

    assert read_config(checkpoint)["type"] == "motion_pi05"
    assert names == [
        "rename_observations_processor",
        "to_batch_processor",
        "device_processor",
        "motion_target_processor",
        "relative_actions_processor",
        "normalizer_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        "byte_tokenizer_processor",
        "device_processor",
    ]
    (stats,) = checkpoint.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    assert {"observation.state.q01", "observation.state.q99"} <= set(load_file(stats))


def test_it_drives_the_simulated_robot(trained: Run, tmp_path: Path, home: Path):
    succeed(
        "lerobot-eval",
        f"--policy.path={trained.checkpoint(4)}",
        "--policy.device=cpu",
        "--env.type=aloha",
        "--env.task=AlohaTransferCube-v0",
        "--env.episode_length=6",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path}",
        home=home,
    )

    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 1
    assert list(tmp_path.rglob("*.mp4"))
