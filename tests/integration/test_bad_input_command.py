"""Bad input to `lerobot-train`: an error that says what to do, before any training step.

All command lines run in one process; test_train_command.py has three of their own process.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Outcome, train_all
from runs import POLICY, Run, data_flags
from small_data import write_images
from tiny import save_stock_checkpoint

# Flags beside those of a good run, the error's type and its message. {name} is a path of `paths`.
CASES: dict[str, tuple[tuple[str, ...], str, str]] = {
    # --- checkpoints ---
    "a checkpoint that is not there": (
        ("--policy.pretrained_path={nowhere}",),
        "FileNotFoundError",
        r"checkpoint \S+/nowhere: there is no such local directory, and config.json could not be",
    ),
    "a checkpoint of another policy": (
        ("--policy.pretrained_path={act}",),
        "ValueError",
        r"checkpoint \S+/act holds a policy of type 'act'; expected one of \['motion_pi0', 'pi0'\]",
    ),
    "a checkpoint of ours on the other base": (
        ("--policy.type=motion_pi05", "--policy.pretrained_path={trained}"),
        "ValueError",
        r"checkpoint \S+ holds a policy of type 'motion_pi0'; expected one of "
        r"\['motion_pi05', 'pi05'\]. Pass another checkpoint, or the --policy.type of this one",
    ),
    "a checkpoint without weights": (
        ("--policy.pretrained_path={unweighted}",),
        "FileNotFoundError",
        r"checkpoint \S+/unweighted has no model.safetensors; expected a directory written by",
    ),
    "truncated weights": (
        ("--policy.pretrained_path={truncated}",),
        "OSError",
        r"model.safetensors is not a readable safetensors file .* it may be truncated",
    ),
    "weights of another size": (
        ("--policy.pretrained_path={stock}", "--policy.max_state_dim=16"),
        "ValueError",
        r"does not fit the policy: 1 tensors of another shape \(model.state_proj.weight "
        r"\(128, 8\), expected \(128, 16\)\)",
    ),
    "a head of another size": (
        ("--policy.path={trained}", "--policy.motion_head_layers=3"),
        "ValueError",
        r"does not fit the policy: \d+ tensors missing \(model.motion_head.",
    ),
    # --- data ---
    "an unknown camera": (
        ("--policy.motion_camera=observation.images.nose",),
        "ValueError",
        r"motion_camera must be one of \['observation.images.top', 'observation.images.wrist'\] "
        r"\(names after --rename_map\), got 'observation.images.nose'",
    ),
    "several cameras and none named": (
        ("--policy.motion_camera=null",),
        "ValueError",
        r"motion_camera must be set, there are several cameras",
    ),
    "a data set without images": (
        ("--dataset.root={blind}", "--policy.motion_camera=null"),
        "ValueError",
        r"the dataset has no camera \(no image or video feature\)",
    ),
    "a horizon as long as the longest episode": (
        ("--policy.motion_horizon=20",),
        "ValueError",
        r"longest episode that is trained on \(20 frames\), got 20.* --policy.motion_horizon=10",
    ),
    "a horizon of zero": (
        ("--policy.motion_horizon=0",),
        "ValueError",
        r"motion_horizon must be at least 1, got 0",
    ),
    "streamed video": (
        ("--dataset.streaming=true",),
        "ValueError",
        r"dataset.streaming must be false to make motion targets from video, got true",
    ),
    # --- flow ---
    "an unknown estimator": (
        ("--policy.flow_estimator=magic",),
        "ValueError",
        r"flow_estimator must be one of \('raft_large', 'raft_small', 'dis'\), got 'magic'",
    ),
    "images too small for RAFT": (
        ("--policy.flow_estimator=raft_small",),
        "ValueError",
        r"raft_small needs an image_resolution of at least 128 px a side, .* got 112x112",
    ),
    "weights for DIS": (
        ("--policy.flow_weights={stock}/model.safetensors",),
        "ValueError",
        r"flow_estimator=dis has no weights, got flow_weights=",
    ),
    "missing weights of RAFT": (
        (
            "--policy.flow_estimator=raft_large",
            "--policy.flow_weights={nowhere}",
            "--policy.image_resolution=[224,224]",
        ),
        "FileNotFoundError",
        r"flow_weights: no file at \S+/nowhere; expected a safetensors file",
    ),
    "weights of RAFT that cannot be downloaded": (
        ("--policy.flow_estimator=raft_small", "--policy.image_resolution=[224,224]"),
        "OSError",
        r"torchvision's weights of raft_small could not be downloaded from https://\S+ \(.*\)\. "
        r"Pass a local file with flow_weights=<file>.safetensors, or use flow_estimator=dis",
    ),
    "truncated weights of RAFT": (
        (
            "--policy.flow_estimator=raft_large",
            "--policy.flow_weights={truncated}/model.safetensors",
            "--policy.image_resolution=[224,224]",
        ),
        "OSError",
        r"flow_weights: \S+ is not a readable safetensors file",
    ),
    "weights of another model": (
        (
            "--policy.flow_estimator=raft_large",
            "--policy.flow_weights={stock}/model.safetensors",
            "--policy.image_resolution=[224,224]",
        ),
        "ValueError",
        r"flow_weights: \S+ does not hold the weights of raft_large in torchvision's naming",
    ),
    # --- the head and its codec ---
    "a VAE that is not there": (
        ("--policy.motion_vae={nowhere}",),
        "OSError",
        r"motion_vae: no VAE could be read from the hub id or local directory '\S+/nowhere'",
    ),
    "latents that do not fit the head": (
        ("--policy.motion_latent_shape=[4,14,14]",),
        "ValueError",
        r"motion_vae: the latents of pool have shape \(3, 14, 14\), but the motion head expects "
        r"\(4, 14, 14\) \(motion_latent_shape\), at an image_resolution of 112x112",
    ),
    "another VAE than the checkpoint's": (
        ("--policy.path={trained}", "--policy.motion_vae=flow"),
        "ValueError",
        r"motion_vae: the latents of flow have shape \(4, 14, 14\), but the motion head expects "
        r"\(3, 14, 14\)",
    ),
    "a width that the heads do not divide": (
        ("--policy.motion_head_dim=66",),
        "ValueError",
        r"motion_head_dim must be a multiple of motion_head_heads, got 66 and 4",
    ),
    # --- the run ---
    "a negative weight of the loss": (
        ("--policy.motion_loss_weight=-1",),
        "ValueError",
        r"motion_loss_weight must not be negative, got -1.0",
    ),
    "a negative warm-up": (
        ("--policy.motion_warmup_steps=-1",),
        "ValueError",
        r"motion_warmup_steps must not be negative, got -1",
    ),
    "an unknown backbone": (
        ("--policy.backbone=huge",),
        "ValueError",
        r"backbone must be one of \['paligemma', 'tiny'\], got 'huge'",
    ),
    "a full-size backbone from random weights": (
        ("--policy.backbone=paligemma", "--policy.flow_estimator=dis"),
        "ValueError",
        r"no --policy.pretrained_path is given, so the full-size VLM would start from random",
    ),
    "training without the head": (
        ("--policy.load_motion_head=false",),
        "ValueError",
        r"load_motion_head=false is for serving",
    ),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, trained: Run) -> dict[str, Path]:
    """Checkpoints and a data set with one flaw each, and two good checkpoints."""
    root = tmp_path_factory.mktemp("flawed")
    paths = {name: root / name for name in ("nowhere", "act", "unweighted", "truncated", "stock")}
    save_stock_checkpoint(paths["stock"])
    for name in ("act", "unweighted", "truncated"):
        shutil.copytree(paths["stock"], paths[name])
    (paths["unweighted"] / "model.safetensors").unlink()
    with (paths["truncated"] / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    (paths["act"] / "config.json").write_text(json.dumps({"type": "act"}))
    blind = write_images(root / "blind", (), {"observation.state": 6, "action": 5})
    return {**paths, "blind": blind, "trained": trained.checkpoint(6)}


@pytest.fixture(scope="module")
def outcomes(paths: dict[str, Path], dataset: Path, home: Path) -> Callable[[str], Outcome]:
    """What became of every case."""
    command_lines = []
    for i, (flags, _, _) in enumerate(CASES.values()):
        extra = tuple(flag.format(**paths) for flag in flags)
        # --policy.path brings the type of the policy and its sizes.
        from_path = extra[0].startswith("--policy.path=")
        policy = [flag for flag in POLICY if not (from_path and flag.startswith("--policy.type"))]
        given = {flag.split("=")[0] for flag in extra}
        flags = [*policy, *data_flags(dataset, home / f"bad_{i}"), "--steps=1"]
        command_lines.append((*(flag for flag in flags if flag.split("=")[0] not in given), *extra))
    # Torchvision's weights are neither there nor to be had.
    unreachable = {"TORCH_HOME": str(home / "torch"), "https_proxy": "http://127.0.0.1:9"}
    results = train_all(*command_lines, home=home, **unreachable)
    return dict(zip(CASES, results, strict=True)).__getitem__


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_any_step(outcomes: Callable[[str], Outcome], case: str):
    _, error, message = CASES[case]
    outcome = outcomes(case)

    # LeRobot's parser exits on what a configuration raises, and drops the message: we log it.
    assert outcome.error in {error, "SystemExit"}, outcome
    assert re.search(message, f"{outcome.message}\n{outcome.log}", re.DOTALL), outcome
    assert outcome.steps == 0
