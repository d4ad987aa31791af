"""Every recipe in configs/policy is a configuration that lerobot-train accepts."""

from pathlib import Path

import pytest
import yaml
from lerobot.configs.train import TrainPipelineConfig

from lerobot_motion.joint.run import install_run_hook
from lerobot_motion.motion_pi0.configuration_motion_pi0 import MotionPi0Config

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "policy").glob("*.yaml"))


def test_recipes_are_found():
    assert {path.stem for path in RECIPES} == {
        "droid_pretrain",
        "libero_finetune",
        "robotwin_finetune",
        "tiny_aloha",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_and_validates(path, tmp_path, monkeypatch):
    install_run_hook()
    monkeypatch.setattr("sys.argv", ["lerobot-train"])
    config = TrainPipelineConfig.from_pretrained(path)
    config.output_dir = tmp_path / "run"
    config.validate()
    assert isinstance(config.policy, MotionPi0Config)
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


def test_the_papers_settings():
    libero, robotwin, droid = (
        yaml.safe_load((RECIPES[0].parent / f"{name}.yaml").read_text())
        for name in ("libero_finetune", "robotwin_finetune", "droid_pretrain")
    )
    assert (libero["batch_size"], libero["steps"]) == (32, 30_000)
    assert (robotwin["batch_size"], robotwin["steps"]) == (32, 60_000)
    assert libero["policy"]["optimizer_lr"] == robotwin["policy"]["optimizer_lr"] == 5e-5
    # Eight GPUs of 16 samples: 40k steps of warm-up, then 100k joint ones.
    assert droid["batch_size"] * 8 == 128
    assert droid["policy"]["motion_warmup_steps"] == 40_000
    assert droid["steps"] == 140_000
