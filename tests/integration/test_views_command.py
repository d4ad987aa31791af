"""Two cameras through `lerobot-train`, on the fly and from stores, and the pictures afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import Outcome, train_all
from PIL import Image
from runs import CAMERAS, CPU, RATES, SIZES, TOP, WRIST, Run, data_flags, read_config, read_steps
from tiny import make_batch

from lerobot_motion.cli import precompute, viz
from lerobot_motion.motion_pi0.modeling_motion_pi0 import MotionPi0Policy

VIEWS = (
    "--policy.type=motion_pi0",
    "--policy.backbone=tiny",
    f"--policy.motion_camera=[{WRIST},{TOP}]",
    *SIZES,
    *RATES,
    *CPU,
    "--policy.motion_warmup_steps=2",
    "--policy.train_from_scratch=true",
    "--steps=4",
    "--save_freq=2",
)
ABSENT = ("--policy.empty_cameras=1", "--policy.motion_latents=auto")
HEAD = "model.motion_head."
EMBEDDING = f"{HEAD}transformer.pos_embed.view_embed"


@pytest.fixture(scope="module")
def stored_dataset(home: Path, dataset: Path) -> Path:
    """A copy of the data set with a latent store of each camera beside it."""
    root = shutil.copytree(dataset, home / "data_with_two_stores")
    flags = ("--horizon=4", "--image_resolution=[112,112]", "--flow_estimator=dis", "--vae=pool")
    where = ("--dataset.repo_id=tests/tiny", f"--dataset.root={root}", "--num_workers=0")
    assert precompute.main([*where, f"--camera={','.join(CAMERAS)}", *flags]) == 0
    return root


@pytest.fixture(scope="module")
def outcomes(home: Path, stored_dataset: Path) -> dict[str, tuple[Run, Outcome]]:
    """A run of two views, the same from stores and resumed, and one that other views resume.

    And two runs of a policy that has a camera more, with its padding and without.
    """
    here = home / "views"
    resume = f"--config_path={here}/made/checkpoints/000002/pretrained_model/train_config.json"
    lines = {
        "made": VIEWS,
        "read": (*VIEWS, "--policy.motion_latents=auto"),
        "padded": (*VIEWS, *ABSENT),
        "unpadded": (*VIEWS, *ABSENT, "--policy.train_skip_padding=true"),
        "resumed": (resume, "--resume=true", f"--output_dir={here}/resumed"),
        "other": (resume, "--resume=true", f"--policy.motion_camera={TOP}"),
    }
    command_lines = [
        line if "--resume=true" in line else (*line, *data_flags(stored_dataset, here / name))
        for name, line in lines.items()
    ]
    results = train_all(*command_lines, home=home)
    return {
        name: (Run(here / name, result.log), result)
        for name, result in zip(lines, results, strict=True)
    }


@pytest.mark.parametrize(
    ("name", "steps"), [("made", 4), ("read", 4), ("padded", 4), ("unpadded", 4), ("resumed", 2)]
)
def test_every_run_ends_well(
    outcomes: dict[str, tuple[Run, Outcome]], name: str, steps: int
) -> None:
    outcome = outcomes[name][1]

    assert (outcome.error, outcome.message, outcome.steps) == (None, None, steps)


def test_stored_views_are_those_made_on_the_fly(
    outcomes: dict[str, tuple[Run, Outcome]],
) -> None:
    """Within the half precision of the stored latents."""
    (made, of_made), (read, of_read) = outcomes["made"], outcomes["read"]

    assert of_read.losses == pytest.approx(of_made.losses, abs=5e-3)
    assert read_config(made.checkpoint(4))["motion_camera"] == [WRIST, TOP]
    steps = [read_steps(run.checkpoint(4))["motion_target_processor"] for run in (made, read)]
    assert [step["camera"] for step in steps] == [[WRIST, TOP]] * 2
    assert steps[0]["latents"] is None
    assert len(set(steps[1]["latents"])) == 2


def test_padding_that_is_left_out_changes_no_loss(
    outcomes: dict[str, tuple[Run, Outcome]],
) -> None:
    """Nor does the camera that is absent."""
    found = [outcomes[name][1].losses for name in ("read", "padded", "unpadded")]

    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], abs=2e-3)
    assert found[2] == pytest.approx(found[1], abs=2e-3)
    config = read_config(outcomes["unpadded"][0].checkpoint(4))
    assert (config["train_skip_padding"], config["inference_skip_padding"]) == (True, False)


def test_every_view_learns_and_a_resume_goes_on(
    outcomes: dict[str, tuple[Run, Outcome]],
) -> None:
    made, resumed = outcomes["made"][0], outcomes["resumed"][0]
    before, after = made.weights(2)[EMBEDDING], made.weights(4)[EMBEDDING]

    assert before.shape == (2, 64)
    assert (after != before).any(dim=1).all()
    expected, found = made.weights(4), resumed.weights(4)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_other_views_do_not_resume_it(outcomes: dict[str, tuple[Run, Outcome]]) -> None:
    outcome = outcomes["other"][1]

    assert outcome.steps == 0
    expected = f"motion_camera is {[WRIST, TOP]} in the checkpoint and {TOP} in this run"
    assert expected in str(outcome.message)


def test_the_checkpoint_imagines_both_views(
    outcomes: dict[str, tuple[Run, Outcome]], stored_dataset: Path, tmp_path: Path
) -> None:
    checkpoint = outcomes["read"][0].checkpoint(4)
    policy = MotionPi0Policy.from_pretrained(checkpoint)

    images = policy.predict_motion(make_batch(policy, motion=False), num_steps=2)

    assert images.shape == (2, 2, 3, 112, 112)
    assert images.isfinite().all()
    flags = (f"--policy.path={checkpoint}", "--device=cpu", "--stride=8", "--metrics=true")
    data = ("--dataset.repo_id=tests/tiny", f"--dataset.root={stored_dataset}")
    chosen = ("--dataset.episodes=[1]", "--num_rows=1", f"--output={tmp_path / 'views'}")
    assert viz.main([*flags, *data, *chosen]) == 0
    metrics = json.loads((tmp_path / "views" / "metrics.json").read_text())
    assert {WRIST, TOP} < set(metrics)
    with Image.open(tmp_path / "views" / "contact_sheet.png") as sheet:
        assert sheet.height > 2 * 288
