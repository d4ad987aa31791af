from pathlib import Path
from typing import Any

import pytest
from imagining import save_checkpoint
from tiny import save_stock_checkpoint

from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.extraction.recordings import open_dataset
from lerobot_motion.viz.checkpoints import held_out_episodes, read_motion_config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"motion_target": "none"}, "for it was trained with motion_target=none"),
        ({"load_motion_head": False}, "was loaded without it (load_motion_head=false)"),
    ],
)
def test_says_how_a_checkpoint_came_to_have_no_head(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "headless", **settings)

    with pytest.raises(ValueError, match="has no motion head") as error:
        read_motion_config(CheckpointSource(str(tmp_path / "headless")), "cpu")
    assert message in str(error.value)


def test_says_that_an_exported_checkpoint_has_no_head(tmp_path: Path) -> None:
    save_stock_checkpoint(tmp_path / "stock")

    with pytest.raises(ValueError, match=r"type 'pi0'; expected.*lerobot-motion-export, which"):
        read_motion_config(CheckpointSource(str(tmp_path / "stock")), "cpu")


def test_says_that_weights_are_damaged(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")

    with pytest.raises(OSError, match="is not a readable safetensors file"):
        read_motion_config(CheckpointSource(str(tmp_path / "broken")), "cpu")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"repo_id": "tests/tiny", "eval_split": 0.5}, [1]),
        ({"repo_id": "tests/tiny", "eval_split": 0.1, "episodes": None}, [1]),
        ({"repo_id": "tests/tiny", "eval_split": 0.9, "episodes": [0]}, [0]),
    ],
)
def test_finds_the_held_out_episodes(
    settings: dict[str, Any], expected: list[int], moving: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "trained", dataset_settings=settings)
    meta = open_dataset("tests/tiny", str(moving))

    assert held_out_episodes(CheckpointSource(str(tmp_path / "trained")), meta) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repo_id": "tests/tiny", "eval_split": 0.0}, "held out no episodes"),
        ({"repo_id": "tests/other", "eval_split": 0.5}, "was trained on tests/other, not on"),
    ],
)
def test_says_why_nothing_is_held_out(
    settings: dict[str, Any], message: str, moving: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "trained", dataset_settings=settings)
    meta = open_dataset("tests/tiny", str(moving))

    with pytest.raises(ValueError, match=message):
        held_out_episodes(CheckpointSource(str(tmp_path / "trained")), meta)


def test_a_checkpoint_without_a_run_holds_nothing_out(checkpoint: Path, moving: Path) -> None:
    meta = open_dataset("tests/tiny", str(moving))

    with pytest.raises(FileNotFoundError, match="has no train_config.json"):
        held_out_episodes(CheckpointSource(str(checkpoint)), meta)
