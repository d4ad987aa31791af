import pytest
import torch
from tiny import CAMERA, make_batch, make_stock_policy

from lerobot_motion.flow.letterbox import content_mask, letterbox


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (480, 640), (112, 112), (30, 31)])
def test_the_letterbox_is_that_of_the_policy(size: tuple[int, int]) -> None:
    policy = make_stock_policy()
    batch = {**make_batch(policy), CAMERA: torch.rand(2, 3, *size)}

    (seen,), _ = policy._preprocess_images(batch)

    assert torch.equal(letterbox(batch[CAMERA], (112, 112)) * 2 - 1, seen)


def test_bytes_are_scaled_to_one() -> None:
    images = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)

    boxed = letterbox(images, (112, 112))

    assert boxed.dtype == torch.float32
    assert torch.equal(boxed, letterbox(images.float() / 255, (112, 112)))


def test_images_of_the_right_size_pass_unchanged() -> None:
    images = torch.rand(2, 3, 64, 64)

    assert torch.equal(letterbox(images, (64, 64)), images)
    assert content_mask((64, 64), (64, 64)).all()


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((48, 64), slice(14, 98), slice(0, 112)), ((64, 48), slice(0, 112), slice(14, 98))],
)
def test_the_mask_marks_the_camera(size: tuple[int, int], rows: slice, columns: slice) -> None:
    expected = torch.zeros(112, 112, dtype=torch.bool)
    expected[rows, columns] = True

    mask = content_mask(size, (112, 112))

    assert torch.equal(mask, expected)
    assert (letterbox(torch.ones(1, 3, *size), (112, 112))[0, :, ~mask] == 0).all()


@pytest.mark.parametrize("shape", [(3, 48, 64), (2, 1, 48, 64), (2, 2, 3, 48, 64)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\), got"):
        letterbox(torch.zeros(shape), (112, 112))
