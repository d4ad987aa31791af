"""Warm starts under other names, through `lerobot-train` itself."""

import json
from pathlib import Path

import pytest
import torch
from commands import Outcome, train_all
from runs import CPU, POLICY, RATES, TOP, WRIST, Run, data_flags, read_config, read_steps
from safetensors.torch import load_file
from small_data import write_images

# The data set's top is the policy's wrist: no name says by itself whose it is.
RENAMED = {
    "observation.images.side": TOP,
    TOP: WRIST,
    "observation.joints": "observation.state",
}
RENAME_MAP = f"--rename_map={json.dumps(RENAMED)}"


@pytest.fixture(scope="module")
def renamed_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose cameras and state have other names than the policy's."""
    *cameras, joints = RENAMED
    return write_images(
        tmp_path_factory.mktemp("renamed") / "data", tuple(cameras), {joints: 6, "action": 5}
    )


@pytest.fixture(scope="module")
def runs(
    home: Path, renamed_dataset: Path, stock_checkpoint: Path, trained: Run
) -> dict[str, tuple[Run, Outcome]]:
    """Runs from one of our checkpoints (in both ways) and a vanilla one; a resume of the first."""
    ours, vanilla, by_type = home / "from_ours", home / "from_vanilla", home / "by_type"
    transforms = "--dataset.image_transforms.enable=true"
    outcomes = train_all(
        (
            f"--policy.path={trained.checkpoint(6)}",
            *(*CPU, *RATES, RENAME_MAP, transforms, "--steps=1"),
            *data_flags(renamed_dataset, ours),
        ),
        (
            *(*POLICY, RENAME_MAP, transforms, "--steps=1", "--policy.motion_warmup_steps=9"),
            f"--policy.pretrained_path={stock_checkpoint}",
            *data_flags(renamed_dataset, vanilla),
        ),
        (
            f"--config_path={Run(ours, '').checkpoint(1) / 'train_config.json'}",
            "--resume=true",
            "--steps=2",
        ),
        (
            *(*POLICY, RENAME_MAP, "--steps=1"),
            f"--policy.pretrained_path={trained.checkpoint(6)}",
            *data_flags(renamed_dataset, by_type),
        ),
        home=home,
    )
    directories = {"ours": ours, "vanilla": vanilla, "resumed": ours, "by type": by_type}
    return {
        name: (Run(directory, outcome.log), outcome)
        for (name, directory), outcome in zip(directories.items(), outcomes, strict=True)
    }


@pytest.mark.parametrize("start", ["ours", "vanilla", "resumed", "by type"])
def test_trains_and_saves_the_rename_map(runs: dict[str, tuple[Run, Outcome]], start: str):
    run, outcome = runs[start]

    assert (outcome.error, outcome.message, outcome.steps) == (None, None, 1)
    checkpoint = run.checkpoint(2 if start == "resumed" else 1)
    steps = read_steps(checkpoint)
    assert RENAMED.items() <= steps["rename_observations_processor"]["rename_map"].items()
    assert steps["motion_target_processor"]["camera"] == TOP
    assert set(read_config(checkpoint)["input_features"]) == {TOP, WRIST, "observation.state"}


@pytest.mark.parametrize("start", ["ours", "vanilla", "resumed", "by type"])
def test_normalizes_a_renamed_state_by_its_own_statistics(
    runs: dict[str, tuple[Run, Outcome]], renamed_dataset: Path, start: str
):
    run, _ = runs[start]
    stats = json.loads((renamed_dataset / "meta" / "stats.json").read_text())
    checkpoint = run.checkpoint(2 if start == "resumed" else 1)
    (path,) = checkpoint.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    saved = load_file(path)

    for name, key in (("observation.state", "observation.joints"), ("action", "action")):
        expected = torch.tensor(stats[key]["mean"])
        assert expected.min() > 5  # Not what a state without statistics would be left at.
        torch.testing.assert_close(saved[f"{name}.mean"], expected)


def test_warm_start_from_ours_continues_its_counter(runs: dict[str, tuple[Run, Outcome]]):
    assert runs["ours"][0].weights(1)["model.motion_head.num_updates"] == 7


def test_warm_start_keeps_the_path_that_was_given(
    runs: dict[str, tuple[Run, Outcome]], stock_checkpoint: Path, trained: Run
):
    starts = {"ours": trained.checkpoint(6), "vanilla": stock_checkpoint}
    for name, path in starts.items():
        assert read_config(runs[name][0].checkpoint(1))["pretrained_path"] == str(path)


def test_warm_up_longer_than_the_run_is_warned_of(runs: dict[str, tuple[Run, Outcome]]):
    assert (
        "motion_warmup_steps=9 is not shorter than the run (steps=1): only the motion head will "
        "learn, and no action."
    ) in runs["vanilla"][1].log
