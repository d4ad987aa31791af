import json
import re
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from lerobot.configs.default import DatasetConfig, PeftConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.envs.configs import AlohaEnv
from lerobot.transforms import ImageTransformsConfig
from tiny import make_motion_config

from lerobot_motion.checkpoints import model_card
from lerobot_motion.checkpoints.card_tables import (
    DatasetFacts,
    MeanLosses,
    Training,
    describe_dataset,
)
from lerobot_motion.checkpoints.model_card import make_model_card

DATASET = DatasetFacts(
    repo_id="user/cubes",
    num_episodes=50,
    num_frames=12_000,
    fps=30,
    robot_type="so101_follower",
    tasks=("Put the cube away",),
)
LOSSES = MeanLosses(100, {"loss": 0.125, "action_loss": 0.03, "motion_loss": 0.095}, False)


def make_run(policy: Any, **settings: Any) -> TrainPipelineConfig:
    dataset = settings.pop("dataset", DatasetConfig(repo_id="user/cubes"))
    run = TrainPipelineConfig(dataset=dataset, policy=policy, **{"steps": 30_000, **settings})
    run.optimizer = policy.get_optimizer_preset()
    return run


def make_card(
    *, training: dict[str, Any] | None = None, run: dict[str, Any] | None = None, **settings: Any
) -> ModelCard:
    """The card of a tiny policy's training run; settings are those of the policy."""
    policy = make_motion_config(**{"repo_id": "user/motion", **settings})
    facts = {"dataset": DATASET, "num_updates": 30_000, "losses": LOSSES, **(training or {})}
    return make_model_card(policy, Training(run=make_run(policy, **(run or {})), **facts))


def rows_of(card: ModelCard) -> dict[str, str]:
    """The rows of a card's tables of two columns."""
    return dict(re.findall(r"^\| ([^|]*) \| (.*) \|$", card.text, re.MULTILINE))


def commands_of(card: ModelCard) -> dict[str, str]:
    """Arguments of a card's commands, by the commands' names."""
    blocks = re.findall(r"```bash\n(.*?)\n```", card.text, re.DOTALL)
    lines = "\n".join(blocks).replace(" \\\n    ", " ").splitlines()
    return dict(line.split(" ", maxsplit=1) for line in lines)


# --- front matter ---


def test_the_front_matter_is_yaml_that_finds_the_policy() -> None:
    card = make_card(
        pretrained_path="lerobot/pi0_base", tags=["cubes: red", "#1"], license="cc-by-4.0"
    )

    assert yaml.safe_load(str(card).split("---\n")[1]) == {
        "license": "cc-by-4.0",
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["#1", "cubes: red", "lerobot", "motion-image-diffusion", "motion_pi0", "robotics"],
        "model_name": "motion_pi0",
        "datasets": ["user/cubes"],
        "base_model": "lerobot/pi0_base",
    }


def test_the_front_matter_names_nothing_that_is_not_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    data = make_card(
        pretrained_path=str(tmp_path / "base"), run={"dataset": DatasetConfig(repo_id="my cubes")}
    ).data

    assert data.base_model is None
    assert data.datasets is None
    assert data.license == "apache-2.0"


# --- what it is ---


def test_the_policy_is_described() -> None:
    card = make_card(
        chunk_size=30,
        motion_horizon=15,
        pretrained_path="lerobot/pi0_base",
        pretrained_revision="v2",
    )

    rows = rows_of(card)
    assert (
        rows["Started from"]
        == "[lerobot/pi0_base](https://huggingface.co/lerobot/pi0_base) at `v2`"
    )
    assert rows["Dataset"] == (
        "[user/cubes](https://huggingface.co/datasets/user/cubes): 50 episodes, 12,000 frames at "
        "30 fps"
    )
    assert rows["Tasks"] == "Put the cube away"
    assert rows["Robot"] == "`so101_follower`"
    assert rows["Cameras"] == rows["Motion camera"] == "`observation.images.top`"
    assert rows["Actions"] == "chunks of 30 frames, 1.00 s at 30 fps"
    assert rows["Motion horizon"] == "15 frames, 0.50 s at 30 fps"
    assert rows["Motion target"] == (
        "`flow_image`: optical flow by `dis` on 112×112 px, full saturation at 64 px"
    )
    assert rows["Motion VAE"] == "`pool`, latents of 3×14×14"
    assert rows["Motion head"] == "2 transformer blocks, 4 heads, width 64"
    assert rows["Targets from"] == "the dataset's frames, as training went"
    assert "motion images, as in [Robotic VLA Benefits" in card.text
    assert "arxiv.org/abs/2512.18007" in card.text


def test_random_weights_are_owned_up_to() -> None:
    assert rows_of(make_card())["Started from"] == "random weights"


def test_a_control_has_nothing_of_motion() -> None:
    card = make_card(motion_target="none", training={"num_updates": None})

    assert not any(name.startswith("Motion") for name in rows_of(card))
    assert "load_motion_head" not in card.text
    assert "predict_motion" not in card.text
    assert "a control for joint learning" in card.text
    assert "motion-image-diffusion" not in card.data.tags
    assert rows_of(card)["Optimizer steps"] == "a run of 30,000"


def test_future_images_have_no_flow() -> None:
    card = make_card(motion_target="future_image")

    assert rows_of(card)["Motion target"] == "`future_image`"
    assert "(future images, as in" in card.text


def test_adapters_are_named() -> None:
    assert rows_of(make_card(run={"peft": PeftConfig(r=8)}))["Adapters"] == "LORA, rank 8"


def test_a_full_size_policy_has_an_export_and_the_vlms_licence() -> None:
    settings = {
        "backbone": "paligemma",
        "motion_vae": "pool",
        "motion_head_dim": 64,
        "image_resolution": (224, 224),
    }

    full, tiny = make_card(**settings), make_card()

    assert commands_of(full)["lerobot-motion-export"] == (
        "--policy.path=user/motion --output=<directory>"
    )
    assert "Gemma terms of use" in full.text
    assert "lerobot-motion-export" not in tiny.text
    assert "Gemma" not in tiny.text


def test_many_tasks_are_counted() -> None:
    facts = DatasetFacts("user/cubes", 1, 1, 30, None, tuple(f"task {i}" for i in range(7)))

    rows = rows_of(make_card(training={"dataset": facts}))

    assert rows["Tasks"] == "task 0; task 1; task 2; task 3; task 4; 2 more"
    assert rows["Dataset"].endswith(": 1 episode, 1 frame at 30 fps")
    assert "Robot" not in rows


def test_an_instruction_breaks_neither_table_nor_command() -> None:
    facts = DatasetFacts("user/cubes", 1, 1, 30, None, ("the cube's\n| lid",))

    card = make_card(training={"dataset": facts})

    assert rows_of(card)["Tasks"] == "the cube's \\| lid"
    assert "--task='the cube'\"'\"'s\n| lid'" in card.text


def test_metadata_of_a_dataset_is_read() -> None:
    meta = SimpleNamespace(
        repo_id="user/cubes",
        total_episodes=50,
        total_frames=12_000,
        fps=30,
        robot_type="so101_follower",
        tasks=SimpleNamespace(index=["Put the cube away"]),
    )

    assert describe_dataset(meta) == DATASET


# --- training ---


def test_the_run_is_described() -> None:
    dataset = DatasetConfig(
        repo_id="user/cubes",
        episodes=[0, 1, 2],
        eval_split=0.25,
        image_transforms=ImageTransformsConfig(enable=True),
    )
    card = make_card(
        motion_warmup_steps=1000,
        motion_head_lr=1e-3,
        motion_loss_weight=0.5,
        optimizer_lr=5e-5,
        run={"dataset": dataset, "batch_size": 32, "seed": 7},
        training={"num_processes": 4},
    )

    rows = rows_of(card)
    assert rows["Optimizer steps"] == "30,000"
    assert rows["Warm-up"] == "1,000 steps of the motion head alone"
    assert rows["Loss"] == "action_loss + 0.5 · motion_loss"
    assert rows["Batch size"] == "32 on each of 4 processes"
    assert rows["Optimizer"] == "adamw, learning rate 5e-05; of the motion head 0.001"
    assert rows["Seed"] == "7"
    assert rows["Episodes"] == "3 of them"
    assert rows["Held out"] == "25% of each task's episodes"
    assert rows["Image transforms"] == "at random"
    assert rows["LeRobot"].startswith("0.6")
    assert "mean of the last 100 batches of process 0:" in card.text
    assert commands_of(card)["accelerate"].startswith(
        "launch --num_processes=4 $(which lerobot-train) --config_path=user/motion"
    )


@pytest.mark.parametrize(
    ("num_updates", "text"),
    [
        (30_000, "30,000"),
        (10_000, "10,000 of 30,000"),
        (45_000, "45,000 of the motion head in all: a run of 30,000, and those before it"),
    ],
)
def test_the_steps_are_those_that_were_taken(num_updates: int, text: str) -> None:
    card = make_card(training={"num_updates": num_updates})

    assert rows_of(card)["Optimizer steps"] == text
    assert rows_of(card)["Warm-up"] == "none"


def test_the_losses_are_tabulated() -> None:
    text = make_card().text

    assert (
        "Training losses, mean of the last 100 batches:\n\n"
        "| loss | action_loss | motion_loss |\n|---|---|---|\n| 0.125 | 0.03 | 0.095 |"
    ) in text


def test_in_the_warmup_there_is_no_action_loss() -> None:
    values = {"loss": 0.5, "action_loss": float("nan"), "motion_loss": 0.5}

    text = make_card(training={"losses": MeanLosses(1, values, True)}).text

    assert "mean of the last batch, in the warm-up:" in text
    assert "| 0.5 | not computed | 0.5 |" in text


def test_a_loss_that_is_not_finite_is_not_hidden() -> None:
    values = {"loss": float("nan"), "action_loss": float("nan"), "motion_loss": 0.5}

    assert (
        "| nan | nan | 0.5 |" in make_card(training={"losses": MeanLosses(9, values, False)}).text
    )


def test_no_losses_are_made_up() -> None:
    assert "trained no step, so it knows no losses" in make_card(training={"losses": None}).text


# --- use ---


def test_the_commands_are_there() -> None:
    commands = commands_of(make_card(run={"env": AlohaEnv()}))

    assert commands["lerobot-eval"] == (
        "--policy.path=user/motion --env.type=aloha --env.task=AlohaInsertion-v0 "
        "--eval.n_episodes=50"
    )
    assert commands["lerobot-rollout"] == (
        "--policy.path=user/motion --policy.load_motion_head=false --robot.type=so101_follower "
        "--robot.port=<port> --robot.cameras='<cameras>' --task='Put the cube away' --duration=60"
    )
    assert commands["lerobot-train"] == (
        "--config_path=user/motion --output_dir=<new directory> --policy.push_to_hub=false"
    )


def test_the_address_of_the_source_is_told_once_the_package_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metadata = Message()
    metadata["Project-URL"] = "Paper, https://arxiv.org/abs/2512.18007"
    monkeypatch.setattr(model_card, "metadata", lambda _name: metadata)
    assert "(`pip install .` in a copy of its repository)" in make_card().text

    metadata["Project-URL"] = "Repository, https://example.org/motion"
    assert "(`pip install git+https://example.org/motion`)" in make_card().text


def test_what_lies_on_the_machine_is_asked_for(tmp_path: Path) -> None:
    for name in ("vae", "raft.safetensors", "tokenizer", "base"):
        (tmp_path / name).mkdir()
    card = make_card(
        motion_vae=str(tmp_path / "vae"),
        motion_latent_shape=(4, 14, 14),
        flow_weights=str(tmp_path / "raft.safetensors"),
        tokenizer_name=str(tmp_path / "tokenizer"),
        pretrained_path=str(tmp_path / "base"),
        motion_latents="auto",
        run={"dataset": DatasetConfig(repo_id="user/cubes", root=str(tmp_path))},
    )

    assert str(tmp_path) not in str(card)
    assert commands_of(card)["lerobot-train"].split(" --")[3:] == [
        "policy.pretrained_path=<base>",
        "dataset.root=<folder of the dataset>",
        "policy.motion_latents=null",
        "policy.motion_vae=<vae>",
        "policy.flow_weights=<raft.safetensors>",
        "policy.tokenizer_name=<tokenizer>",
    ]
    rows = rows_of(card)
    assert rows["Targets from"] == "a latent store"
    assert rows["Started from"] == "`base` (local)"
    assert rows["Dataset"].startswith("`user/cubes` (a local folder): 50 episodes")
    assert "(weights: `raft.safetensors`)" in rows["Motion target"]
    assert rows["Motion VAE"] == "`vae`, latents of 4×14×14"
    assert "the run itself read them from a latent store" in card.text


@pytest.mark.parametrize("origin", ["lerobot/pi0_base", None])
def test_a_resumed_run_is_made_again_from_its_origin(tmp_path: Path, origin: str | None) -> None:
    settings = {"policy": {"pretrained_path": origin}, "resume": False}
    (tmp_path / "train_config.json").write_text(json.dumps(settings))

    card = make_card(
        pretrained_path=str(tmp_path), run={"resume": True, "save_checkpoint_to_hub": True}
    )

    assert commands_of(card)["lerobot-train"].split(" --")[3:] == [
        "resume=false",
        "save_checkpoint_to_hub=false",
        f"policy.pretrained_path={origin or 'null'}",
    ]


def test_a_picture_is_shown_if_there_is_one() -> None:
    assert "](motion.png)" in make_card(training={"has_picture": True}).text
    assert "motion.png" not in make_card().text


def test_a_card_without_a_run_says_what_is_known() -> None:
    card = make_model_card(make_motion_config(), Training())

    assert "# motion_pi0\n" in card.text
    assert rows_of(card)["Motion horizon"] == "4 frames"
    assert "--policy.path=<this checkpoint>" in card.text
    assert "The run that made it is not recorded." in card.text
    assert "None |" not in card.text
    assert card.data.datasets is None
