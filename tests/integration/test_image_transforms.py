"""LeRobot's random image transforms move both frames of a pair alike."""

from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.transforms import ImageTransformConfig, ImageTransforms, ImageTransformsConfig
from runs import TOP

AFFINE = ImageTransformConfig(
    type="RandomAffine", kwargs={"degrees": (-20.0, 20.0), "translate": (0.2, 0.2)}
)


@pytest.mark.parametrize("index", [0, 7, 25])
def test_both_frames_get_the_same_affine(dataset: Path, index: int):
    def frames(later: float, transforms: ImageTransforms | None) -> torch.Tensor:
        data = LeRobotDataset(
            "tests/tiny",
            root=dataset,
            delta_timestamps={TOP: [0.0, later]},
            image_transforms=transforms,
        )
        torch.manual_seed(index)
        return data[index][TOP]

    config = ImageTransformsConfig(enable=True, tfs={"affine": AFFINE})
    plain = frames(0.4, None)
    moved = frames(0.4, ImageTransforms(config))
    twice = frames(0.0, ImageTransforms(config))

    assert plain.shape == moved.shape == (2, 3, 48, 64)
    assert not torch.equal(plain[0], plain[1])  # The square moves.
    assert not torch.equal(moved[0], plain[0])  # The transform does something.
    assert torch.equal(twice[0], twice[1])
    # The same seed draws the same transform: it is that of the pair.
    assert torch.equal(twice[0], moved[0])
