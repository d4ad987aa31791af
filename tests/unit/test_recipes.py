"""Every recipe in configs/policy is a configuration that lerobot-train accepts."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lerobot.configs.train import TrainPipelineConfig

from lerobot_motion.motion_pi0.configuration_motion_pi0 import MotionPi0Config
from lerobot_motion.motion_pi05.configuration_motion_pi05 import MotionPi05Config
from lerobot_motion.training.run import install_run_hook

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "policy").glob("*.yaml"))


def test_recipes_are_found():
    assert {path.stem for path in RECIPES} == {
        "aloha_finetune",
        "custom_robot_lora",
        "droid_pretrain",
        "libero_finetune",
        "libero_pi05_finetune",
        "libero_plus_finetune",
        "robotwin_finetune",
        "so101_lora",
        "tiny_aloha",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_and_validates(path, tmp_path, monkeypatch):
    install_run_hook()
    monkeypatch.setattr("sys.argv", ["lerobot-train"])
    config = TrainPipelineConfig.from_pretrained(path)
    config.output_dir = tmp_path / "run"
    config.validate()
    assert isinstance(config.policy, MotionPi05Config if "pi05" in path.stem else MotionPi0Config)
    assert config.policy.train_run.adapters == ("lora" in path.stem)
    assert config.policy.train_run.num_steps == config.steps
    windows = 2 if path.stem == "tiny_aloha" else 1
    assert config.policy.motion_horizon == windows * config.policy.chunk_size
    assert config.policy.scheduler_decay_steps == config.steps


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_command_hardware_and_expectation(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(comment)
    assert "lerobot-train" in text
    assert f"--config_path=configs/policy/{path.name}" in text
    assert "Hardware:" in text
    assert "xpect: " in text


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES[0].parent / f"{name}.yaml").read_text())


def test_targets_are_made_beforehand():
    assert {read(path.stem)["policy"]["motion_latents"] for path in RECIPES} == {"auto"}


def test_the_papers_settings():
    libero, robotwin, droid = map(read, ("libero_finetune", "robotwin_finetune", "droid_pretrain"))
    assert (libero["batch_size"], libero["steps"]) == (32, 30_000)
    assert (robotwin["batch_size"], robotwin["steps"]) == (32, 60_000)
    assert libero["policy"]["optimizer_lr"] == robotwin["policy"]["optimizer_lr"] == 5e-5
    # Eight GPUs of 16 samples: 40k steps of warm-up, then 100k joint ones.
    assert droid["batch_size"] * 8 == 128
    assert droid["policy"]["motion_warmup_steps"] == 40_000
    assert droid["steps"] == 140_000


def test_pi05s_recipe_is_pi0s_but_for_the_policy():
    pi0, pi05 = read("libero_finetune"), read("libero_pi05_finetune")

    policy = {"type": "motion_pi05", "pretrained_path": "lerobot/pi05_base"}
    assert pi05 == {**pi0, "policy": {**pi0["policy"], **policy}}


def test_the_arms_recipe_trains_adapters_at_the_papers_batch():
    recipe = read("so101_lora")

    assert recipe["batch_size"] == 32
    assert recipe["peft"]["method_type"] == "LORA"
    assert recipe["policy"]["motion_warmup_steps"] < recipe["steps"]
    # One second at the 30 frames a second that the recipe asks for.
    assert "30 frames a second" in (RECIPES[0].parent / "so101_lora.yaml").read_text()
    assert recipe["policy"]["chunk_size"] == recipe["policy"]["motion_horizon"] == 30


def test_your_robots_recipe_is_the_arms_but_for_its_cameras():
    arm, yours = read("so101_lora"), read("custom_robot_lora")
    camera = yours["policy"]["motion_camera"]
    assert camera in yours.pop("rename_map").values()
    dataset = {"repo_id": "your-name/my_robot_task"}

    assert yours == {
        **arm,
        "dataset": dataset,
        "policy": {**arm["policy"], "motion_camera": camera},
    }
