from pathlib import Path

import pytest
import torch
from imagining import save_checkpoint
from tiny import ACTION_DIM, BASES, CAMERA, TINY_CONFIG, save_adapters

from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.extraction.recordings import open_dataset
from lerobot_motion.joint.backbone import tiny_backbone
from lerobot_motion.viz.checkpoints import read_motion_config
from lerobot_motion.viz.imagination import Imagination, Observations, load_imagination

OTHER = "observation.images.front"


def load(
    checkpoint: Path, data: Path, rename_map: dict[str, str] | None = None, seed: int = 0
) -> Imagination:
    source = CheckpointSource(str(checkpoint))
    config = read_motion_config(source, "cpu")
    seen = Observations(open_dataset("tests/tiny", str(data)), [1], rename_map or {})
    return load_imagination(source, config, seen, num_steps=2, seed=seed)


def test_predicts_what_the_policy_does(checkpoint: Path, moving: Path) -> None:
    imagination = load(checkpoint, moving)

    predictions = imagination.predict(1, [0, 5])

    item = imagination.dataset[5]
    assert int(item["episode_index"]) == 1
    assert int(item["frame_index"]) == 5
    policy = imagination.policy
    batch = imagination.preprocessor({key: [v] if key == "task" else v for key, v in item.items()})
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, *policy.config.motion_latent_shape, generator=generator)
    image = policy.predict_motion(batch, num_steps=2, noise=noise)
    assert torch.allclose(predictions.images[1], image, atol=1e-5)
    noise = torch.randn(1, policy.config.chunk_size, 8, generator=generator)
    chunk = imagination.postprocessor(policy.predict_action_chunk(batch, noise=noise))
    assert torch.allclose(predictions.actions[1], chunk[0], atol=1e-5)
    assert predictions.actions.shape == (2, TINY_CONFIG["chunk_size"], ACTION_DIM)


def test_neither_batches_nor_other_randomness_matter(checkpoint: Path, moving: Path) -> None:
    imagination = load(checkpoint, moving)
    together = imagination.predict(1, [0, 3])
    torch.manual_seed(5)

    alone = [imagination.predict(1, [position]) for position in (0, 3)]

    assert torch.allclose(together.images, torch.cat([a.images for a in alone]), atol=1e-5)
    assert torch.allclose(together.actions, torch.cat([a.actions for a in alone]), atol=1e-4)
    other = load(checkpoint, moving, seed=7).predict(1, [0, 3])
    assert not torch.allclose(together.images, other.images, atol=1e-3)


def test_imagines_with_pi05(moving: Path, tmp_path: Path) -> None:
    """Its prompt holds the state, and it takes none beside it."""
    policy = save_checkpoint(tmp_path / "pi05", base="pi05")

    predictions = load(tmp_path / "pi05", moving).predict(1, [0, 5])

    assert predictions.images.shape == (2, 1, 3, *policy.config.image_resolution)
    assert not torch.allclose(predictions.actions[0], predictions.actions[1], atol=1e-3)


def test_looks_through_renamed_cameras(moving: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "front", cameras=(OTHER,))
    save_checkpoint(tmp_path / "top")

    renamed = load(tmp_path / "front", moving, {CAMERA: OTHER})

    assert renamed.cameras == [CAMERA]
    expected = load(tmp_path / "top", moving).predict(1, [2])
    assert torch.allclose(renamed.predict(1, [2]).images, expected.images, atol=1e-5)


def test_names_the_camera_that_the_dataset_lacks(moving: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "front", cameras=(OTHER,))

    with pytest.raises(ValueError, match=f"lacks {OTHER}, the camera whose motion.*{CAMERA}") as e:
        load(tmp_path / "front", moving)
    assert f"--rename_map='{{{CAMERA}: {OTHER}}}'" in str(e.value)


def test_names_the_view_that_the_dataset_lacks(moving: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "two", cameras=(CAMERA, OTHER), motion_camera=[CAMERA, OTHER])

    with pytest.raises(ValueError, match=f"lacks {OTHER}, the camera whose motion"):
        load(tmp_path / "two", moving)


def test_names_what_else_the_dataset_lacks(moving: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "top")

    with pytest.raises(ValueError, match=r"lacks observation.state, which the policy reads"):
        load(tmp_path / "top", moving, {"observation.state": "observation.joints"})


def test_warns_of_views_that_stay_black(
    moving: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path / "two", cameras=(CAMERA, OTHER))

    load(tmp_path / "two", moving)

    assert f"The dataset has no {OTHER}: the policy sees black there." in caplog.text


def test_refuses_another_robots_actions(checkpoint: Path, moving: Path) -> None:
    source = CheckpointSource(str(checkpoint))
    config = read_motion_config(source, "cpu")
    meta = open_dataset("tests/tiny", str(moving))
    meta.features["action"]["shape"] = (9,)

    with pytest.raises(ValueError, match=r"actions of shape \(9,\), the policy's have \(5,\)"):
        load_imagination(source, config, Observations(meta, [0], {}), num_steps=2, seed=0)


def test_imagines_with_adapters(moving: Path, tmp_path: Path) -> None:
    adapted = save_adapters(tmp_path / "lora", "pi0", tmp_path / "base")
    assert adapted.config.use_peft

    with tiny_backbone(BASES["pi0"].modeling):
        lora, base = (load(tmp_path / name, moving).predict(1, [0]) for name in ("lora", "base"))

    # The head is still zero; the actions tell the two apart.
    assert torch.equal(lora.images, base.images)
    assert not torch.allclose(lora.actions, base.actions, atol=1e-3)
