from pathlib import Path
from typing import Any
from urllib.error import URLError

import cv2
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import shared_file
from torch import Tensor
from torchvision.models.optical_flow import Raft_Large_Weights, raft_large, raft_small

from lerobot_motion.flow import estimator as estimator_module
from lerobot_motion.flow.estimator import (
    FlowEstimator,
    RaftEstimator,
    check_flow_weights,
    load_flow_estimator,
    require_flow_weights,
)

SIZE = 224
ESTIMATORS = ["raft_large", "raft_small", "dis"]
# A margin from the border, where what moves out of sight cannot be matched.
INNER = slice(24, -24)


def load(name: str) -> FlowEstimator:
    weights = {
        "raft_large": "weights/raft_large_sintel.safetensors",
        "raft_small": "weights/raft_small_things.safetensors",
    }
    path = str(shared_file(weights[name])) if name in weights else None
    return load_flow_estimator(name, path)


def shifted_texture(right: int, down: int, batch_size: int = 1) -> tuple[Tensor, Tensor]:
    """Two views of a smooth texture; the second's content moved by whole pixels."""
    side = SIZE + 32
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch_size, 3, side // 4, side // 4, generator=generator)
    texture = F.interpolate(noise, size=(side, side), mode="bicubic").clamp(0, 1)
    first = texture[..., 16 : 16 + SIZE, 16 : 16 + SIZE]
    second = texture[..., 16 - down : 16 - down + SIZE, 16 - right : 16 - right + SIZE]
    return first, second


def random_raft_small() -> RaftEstimator:
    torch.manual_seed(0)
    return RaftEstimator(raft_small(weights=None), num_updates=1)


# --- what is estimated ---


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("shift", [(5, 0), (-3, 4)])
def test_a_shifted_texture_is_found(name: str, shift: tuple[int, int]) -> None:
    right, down = shift

    flow = load(name)(*shifted_texture(right, down))

    truth = torch.tensor([right, down]).view(1, 2, 1, 1)
    error = (flow - truth)[..., INNER, INNER].norm(dim=1)
    assert error.mean() < (0.2 if name != "raft_small" else 0.4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_flow_is_float32_of_the_batch_size_without_gradient(name: str) -> None:
    first, second = shifted_texture(2, 0, batch_size=2)
    first.requires_grad_()

    flow = load(name)(first[..., :128, :136].double(), second[..., :128, :136].double())

    assert flow.shape == (2, 2, 128, 136)
    assert flow.dtype == torch.float32
    assert flow.device == first.device
    assert flow.is_contiguous()
    assert not flow.requires_grad


@pytest.mark.parametrize("name", ["raft_large", "dis"])
def test_each_pair_is_estimated_for_itself(name: str) -> None:
    first, second = shifted_texture(4, 2, batch_size=2)
    first, second = first[..., :128, :128], second[..., :128, :128]
    estimator = load(name)

    both = estimator(first, second)

    alone = estimator(first[1:], second[1:])
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-3)


def test_the_callers_autocast_does_not_reach_raft() -> None:
    estimator = random_raft_small()
    first, second = torch.rand(2, 1, 3, 128, 128)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow = estimator(first, second)

    assert flow.dtype == torch.float32
    assert torch.equal(flow, estimator(first, second))


def test_raft_runs_in_bfloat16_where_asked() -> None:
    estimator = load("raft_small")
    assert isinstance(estimator, RaftEstimator)
    images = shifted_texture(5, 0)

    flow = RaftEstimator(estimator.model, precision="bfloat16")(*images)

    exact = estimator(*images)
    assert flow.dtype == torch.float32
    assert not torch.equal(flow, exact)
    assert (flow - exact).norm(dim=1).mean() < 0.1


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of \('float32', 'bfloat16'\), got 'half'"):
        RaftEstimator(raft_small(weights=None), precision="half")


def test_raft_is_frozen_and_in_evaluation_mode() -> None:
    estimator = random_raft_small()

    assert not estimator.model.training
    assert not any(parameter.requires_grad for parameter in estimator.model.parameters())


def test_raft_refines_twelve_times() -> None:
    calls = []
    model = raft_small(weights=None)
    model.forward = lambda *images, num_flow_updates: [
        calls.append(num_flow_updates),
        torch.zeros(1, 2, 128, 128),
    ]

    RaftEstimator(model)(torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))

    assert calls == [12]


# --- bad images ---


@pytest.mark.parametrize("estimator", [random_raft_small, lambda: load_flow_estimator("dis")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("broken", [0, 1])
def test_a_frame_that_is_not_finite_is_refused(estimator: Any, value: float, broken: int) -> None:
    images = [torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)]
    images[broken][0, 1, 64, 64] = value

    with pytest.raises(ValueError, match=r"image has NaN or infinite values\. Check the dataset"):
        estimator()(*images)


def test_flow_that_is_not_finite_is_refused() -> None:
    class Broken(FlowEstimator):
        def estimate(self, image_1: Tensor, image_2: Tensor) -> Tensor:
            return torch.full_like(image_1[:, :2], torch.nan)

    with pytest.raises(ValueError, match="flow has NaN or infinite values"):
        Broken()(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("size", [(120, 120), (128, 120), (128, 132), (224, 225)])
def test_images_that_do_not_suit_raft_are_refused(size: tuple[int, int]) -> None:
    message = (
        rf"RAFT needs an image_resolution of at least 128 px a side, in multiples of 8, got "
        rf"{size[0]}x{size[1]}\. Raise it, or set flow_estimator=dis\."
    )

    with pytest.raises(ValueError, match=message):
        random_raft_small()(torch.rand(1, 3, *size), torch.rand(1, 3, *size))


@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 3, 128, 128), (2, 3, 128, 128)),
        ((3, 128, 128), (3, 128, 128)),
        ((1, 1, 128, 128), (1, 1, 128, 128)),
    ],
)
def test_images_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    first, second = (torch.rand(shape) for shape in shapes)

    with pytest.raises(ValueError, match=r"images must be two batches of shape \(B, 3, H, W\)"):
        load_flow_estimator("dis")(first, second)


# --- loading ---


def test_the_same_arguments_give_the_same_estimator() -> None:
    assert load_flow_estimator("dis") is load_flow_estimator("dis")


def test_an_unknown_estimator_is_refused() -> None:
    message = r"flow_estimator must be one of \('raft_large', 'raft_small', 'dis'\), got 'gmflow'"

    with pytest.raises(ValueError, match=message):
        load_flow_estimator("gmflow")


@pytest.mark.parametrize("look", [check_flow_weights, load_flow_estimator])
def test_dis_takes_no_weights(look: Any) -> None:
    with pytest.raises(ValueError, match="flow_estimator=dis has no weights, got flow_weights=w"):
        look("dis", "w.safetensors")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"

    with pytest.raises(FileNotFoundError, match=rf"flow_weights: no file at {path}"):
        load_flow_estimator("raft_small", str(path))


def test_dis_requires_nothing_and_a_file_no_download(tmp_path: Path) -> None:
    path = tmp_path / "raft_small.safetensors"
    save_file(raft_small(weights=None).state_dict(), path)

    require_flow_weights("dis", None)
    require_flow_weights("raft_small", str(path))
    with pytest.raises(FileNotFoundError, match="flow_weights: no file at"):
        require_flow_weights("raft_small", str(tmp_path))


@pytest.mark.parametrize("look", [check_flow_weights, load_flow_estimator])
def test_a_directory_is_no_weights_file(tmp_path: Path, look: Any) -> None:
    with pytest.raises(FileNotFoundError, match="flow_weights: no file at"):
        look("raft_small", str(tmp_path))


@pytest.mark.parametrize("keep", [0, 5, 2000, 100_000])
@pytest.mark.parametrize("look", [check_flow_weights, load_flow_estimator])
def test_truncated_weights_are_refused(tmp_path: Path, keep: int, look: Any) -> None:
    path = tmp_path / "raft_small.safetensors"
    save_file(raft_small(weights=None).state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(OSError, match=r"is not a readable safetensors file .* truncated"):
        look("raft_small", str(path))


@pytest.mark.parametrize("look", [check_flow_weights, load_flow_estimator])
def test_weights_of_another_model_are_refused_in_a_line(tmp_path: Path, look: Any) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a.weight": torch.zeros(2)}, path)

    with pytest.raises(ValueError, match=r"does not hold the weights of raft_large in") as caught:
        look("raft_large", str(path))

    # raft_large's 169 tensors are missing, and one is no part of it.
    assert str(caught.value).endswith(
        "in torchvision's naming: 170 tensors differ "
        "(feature_encoder.convnormrelu.0.weight missing, expected (64, 3, 7, 7); "
        "feature_encoder.convnormrelu.0.bias missing, expected (64,); "
        "feature_encoder.layer1.0.convnormrelu1.0.weight missing, expected (64, 64, 3, 3); "
        "and 167 more). Name a file with raft_large's state_dict."
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "held", "build"),
    [("raft_large", "raft_small", raft_small), ("raft_small", "raft_large", raft_large)],
)
def test_weights_of_the_other_raft_are_recognised(
    tmp_path: Path, asked: str, held: str, build: Any
) -> None:
    path = tmp_path / "raft.safetensors"
    save_file(build(weights=None).state_dict(), path)

    message = rf"does not hold the weights of {asked} .* These are weights of {held}: set flow_est"
    with pytest.raises(ValueError, match=rf"{message}imator={held}, or name those of {asked}\."):
        check_flow_weights(asked, str(path))
    check_flow_weights(held, str(path))


def test_one_tensor_of_another_shape_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "raft_small.safetensors"
    state = raft_small(weights=None).state_dict()
    name = "feature_encoder.convnormrelu.0.weight"
    save_file({**state, name: torch.zeros(32, 3, 5, 5)}, path)

    message = rf": 1 tensors differ \({name} \(32, 3, 5, 5\), expected \(32, 3, 7, 7\)\)\. Name a"
    with pytest.raises(ValueError, match=message):
        check_flow_weights("raft_small", str(path))


def test_a_look_at_weights_builds_and_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "raft_small.safetensors"
    save_file(raft_small(weights=None).state_dict(), path)
    monkeypatch.setattr(estimator_module, "load_file", lambda _: pytest.fail("tensors were read"))
    estimator_module._raft_shapes.cache_clear()
    state = torch.get_rng_state()

    check_flow_weights("raft_small", str(path))

    assert torch.equal(torch.get_rng_state(), state)


def test_local_weights_are_loaded(tmp_path: Path) -> None:
    model = raft_small(weights=None)
    path = tmp_path / "raft_small.safetensors"
    save_file(model.state_dict(), path)

    loaded = load_flow_estimator("raft_small", str(path)).model.state_dict()

    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("invalid hash value")])
@pytest.mark.parametrize("look", [require_flow_weights, load_flow_estimator])
def test_a_failing_download_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, look: Any
) -> None:
    calls: list[dict[str, Any]] = []

    def fail(self: Any, **kwargs: Any) -> dict[str, Tensor]:
        calls.append({"weights": self, **kwargs})
        raise error

    monkeypatch.setattr(Raft_Large_Weights, "get_state_dict", fail)

    message = r"weights of raft_large could not be downloaded from https://.* with flow_weights=<"
    with pytest.raises(OSError, match=message):
        look("raft_large", None)
    assert calls[0]["weights"] is Raft_Large_Weights.C_T_SKHT_V2
    assert calls[0]["weights_only"] is True
    assert calls[0]["check_hash"] is True


def test_torchvisions_own_weights_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_file("weights/raft_large_sintel.safetensors")
    reference = load_flow_estimator("raft_large", str(path)).model.state_dict()
    monkeypatch.setattr(Raft_Large_Weights, "get_state_dict", lambda self, **kwargs: reference)

    loaded = load_flow_estimator("raft_large").model.state_dict()

    assert all(torch.equal(loaded[key], value) for key, value in reference.items())


def test_dis_reads_the_luminance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels are RGB: pure red has 0.299 of the luminance, not blue's 0.114."""
    grays = []

    class Recorder:
        def calc(self, first: Any, second: Any, flow: None) -> Any:
            grays.append(first)
            return cv2.merge([first * 0.0, first * 0.0]).astype("float32")

    monkeypatch.setattr(cv2.DISOpticalFlow, "create", lambda preset: Recorder())
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0] = 1.0

    load_flow_estimator("dis")(red, red)

    assert (grays[0] == 76).all()
