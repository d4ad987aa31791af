"""`lerobot-train` from a latent store: the same losses as on the fly, and stores it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from commands import succeed, train_all
from runs import POLICY, TOP, TRAINED_RUN, Run, data_flags, read_config, read_steps

PRECOMPUTE = (
    f"--camera={TOP}",
    "--horizon=4",
    "--image_resolution=[112,112]",
    "--flow_estimator=dis",
    "--vae=pool",
    "--num_workers=0",
)


@pytest.fixture(scope="module")
def stored_dataset(home: Path, dataset: Path) -> Path:
    """A copy of the data set with a latent store beside it."""
    root = shutil.copytree(dataset, home / "data_with_store")
    flags = ("--dataset.repo_id=tests/tiny", f"--dataset.root={root}", *PRECOMPUTE)
    succeed("lerobot-motion-precompute", *flags, home=home)
    return root


@pytest.fixture(scope="module")
def from_store(home: Path, stored_dataset: Path, stock_checkpoint: Path) -> Run:
    """The run of the fixture `trained`, but for where its targets come from."""
    output_dir = home / "trained_from_store"
    result = succeed(
        "lerobot-train",
        *POLICY,
        *data_flags(stored_dataset, output_dir),
        *TRAINED_RUN,
        f"--policy.pretrained_path={stock_checkpoint}",
        "--policy.motion_latents=auto",
        home=home,
    )
    return Run(output_dir, result.stderr)


def test_the_losses_are_those_of_targets_made_on_the_fly(from_store: Run, trained: Run) -> None:
    """Within the half precision of the stored latents."""
    for name in ("loss", "action_loss", "motion_loss"):
        assert from_store.metrics(name) == pytest.approx(
            trained.metrics(name), abs=5e-3, nan_ok=True
        )
    assert from_store.eval_losses == pytest.approx(trained.eval_losses, abs=5e-3)


def test_the_checkpoint_says_where_its_targets_came_from(
    from_store: Run, stored_dataset: Path
) -> None:
    (store,) = (stored_dataset / "meta" / "motion").iterdir()

    config = read_config(from_store.checkpoint(6))

    assert config["motion_latents"] == "auto"
    assert config["flow_estimator"] == "dis"
    assert read_steps(from_store.checkpoint(6))["motion_target_processor"]["latents"] == str(store)


def test_a_resumed_run_reads_the_store_again(from_store: Run, home: Path, tmp_path: Path) -> None:
    output_dir = shutil.copytree(from_store.output_dir, tmp_path / "run", symlinks=True)
    checkpoint = output_dir / "checkpoints" / "000004"
    shutil.rmtree(output_dir / "checkpoints" / "000006")
    (output_dir / "checkpoints" / "last").unlink()
    (output_dir / "checkpoints" / "last").symlink_to("000004")

    result = succeed(
        "lerobot-train",
        f"--config_path={checkpoint}/pretrained_model/train_config.json",
        "--resume=true",
        f"--output_dir={output_dir}",
        home=home,
    )

    assert Run(output_dir, result.stderr).metrics("motion_loss")[-1] > 0
    assert (output_dir / "checkpoints" / "000006").is_dir()


def test_stores_that_do_not_suit_are_refused_before_a_step(
    stored_dataset: Path, stock_checkpoint: Path, home: Path, tmp_path: Path
) -> None:
    (store,) = (stored_dataset / "meta" / "motion").iterdir()
    damaged = shutil.copytree(store, tmp_path / "damaged")
    (shard,) = (damaged / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    newer = shutil.copytree(store, tmp_path / "newer")
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "format_version": 9}))
    cases = {
        (f"--policy.motion_latents={store}", "--policy.motion_horizon=5"): (
            "motion_horizon is 4 in the store and 5 in the policy"
        ),
        (f"--policy.motion_latents={damaged}",): f"is damaged: shards/{shard.name}",
        (f"--policy.motion_latents={newer}",): "has format version 9",
        (f"--policy.motion_latents={tmp_path}/nowhere",): "no latent store at",
        (f"--policy.motion_latents={store}", "--dataset.image_transforms.enable=true"): (
            "affine (RandomAffine)"
        ),
    }
    lines = [
        (
            *POLICY,
            *data_flags(stored_dataset, tmp_path / str(number)),
            f"--policy.pretrained_path={stock_checkpoint}",
            "--steps=1",
            *flags,
        )
        for number, flags in enumerate(cases)
    ]

    outcomes = train_all(*lines, home=home)

    for outcome, message in zip(outcomes, cases.values(), strict=True):
        assert outcome.steps == 0
        assert message in str(outcome.message)
