"""Optical flow estimators with one interface: a pair of image batches in, flow in pixels out."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.optical_flow import (
    RAFT,
    Raft_Large_Weights,
    Raft_Small_Weights,
    raft_large,
    raft_small,
)

logger = logging.getLogger(__name__)

# torchvision's RAFT needs feature maps of 16 cells a side, at an eighth of the image.
RAFT_MIN_SIZE = 128
RAFT_STRIDE = 8

_RAFT_MODELS: dict[str, tuple[Callable[..., RAFT], Raft_Large_Weights | Raft_Small_Weights]] = {
    "raft_large": (raft_large, Raft_Large_Weights.C_T_SKHT_V2),
    "raft_small": (raft_small, Raft_Small_Weights.C_T_V2),
}
Gray = NDArray[np.uint8]
Flow = NDArray[np.float32]

FLOW_ESTIMATORS = (*_RAFT_MODELS, "dis")
PRECISIONS = ("float32", "bfloat16")

# Tensors that an error lists by name.
_LISTED_TENSORS = 3
Shapes = Mapping[str, tuple[int, ...]]


class FlowEstimator(ABC):
    """Estimates optical flow between two batches of images."""

    @torch.no_grad()
    def __call__(self, image_1: Tensor, image_2: Tensor) -> Tensor:
        """Estimate where each pixel of `image_1` went in `image_2`.

        Args:
            image_1: Images in [0, 1], (B, 3, H, W).
            image_2: Images in [0, 1] some time later, same shape.

        Returns:
            Flow in pixels, (B, 2, H, W), float32; channel 0 points right, 1 down.

        Raises:
            ValueError: If the shapes differ, are not (B, 3, H, W), or do not suit the estimator;
                or if an image or the flow is not finite.
        """
        if image_1.shape != image_2.shape or image_1.ndim != 4 or image_1.shape[1] != 3:
            raise ValueError(
                "images must be two batches of shape (B, 3, H, W), got "
                f"{tuple(image_1.shape)} and {tuple(image_2.shape)}."
            )
        _check_finite(torch.stack([image_1, image_2]), "image")
        flow = self.estimate(image_1.float(), image_2.float())
        _check_finite(flow, "flow")
        return flow

    @abstractmethod
    def estimate(self, image_1: Tensor, image_2: Tensor) -> Tensor:
        """Estimate the flow of checked inputs; see `__call__`."""


class RaftEstimator(FlowEstimator):
    """RAFT (Teed and Deng, 2020), torchvision's implementation."""

    def __init__(self, model: RAFT, num_updates: int = 12, precision: str = "float32") -> None:
        """Wrap a loaded RAFT.

        Args:
            model: The network; it is frozen and set to evaluation mode.
            num_updates: Iterative refinements (12 in torchvision's reference evaluation).
            precision: One of `PRECISIONS`; with bfloat16 the network runs under autocast.

        Raises:
            ValueError: If the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}.")
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.num_updates = num_updates
        self.precision = precision

    def estimate(self, image_1: Tensor, image_2: Tensor) -> Tensor:
        """Estimate flow with RAFT; see `FlowEstimator.__call__`."""
        _check_raft_resolution("RAFT", (image_1.shape[-2], image_1.shape[-1]))
        # The caller's autocast would run RAFT's correlation volume in half precision unasked.
        with torch.autocast(
            image_1.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            return self._refined(image_1, image_2).float()

    def compile(self) -> None:
        """Compile the network with `torch.compile`; every size of batch is compiled anew."""
        # Seen as a whole, the upsampling of all refinements but the last is never used.
        self._refined = torch.compile(self._refined)  # type: ignore[method-assign]

    def _refined(self, image_1: Tensor, image_2: Tensor) -> Tensor:
        updates = self.model(image_1 * 2 - 1, image_2 * 2 - 1, num_flow_updates=self.num_updates)
        flow: Tensor = updates[-1]
        return flow


class DisEstimator(FlowEstimator):
    """Dense Inverse Search (Kroeger et al., 2016), OpenCV's: CPU, no weights, stillness checked.

    Where there is no texture DIS spreads the motion of its surroundings over what stands still. The
    check keeps its flow only where moving explains the second image better than standing still.
    """

    # Side of the window, in pixels, and grey levels, by which moving must explain it better.
    check_window = 21
    check_margin = 0.5

    def estimate(self, image_1: Tensor, image_2: Tensor) -> Tensor:
        """Estimate flow on the CPU, a pair to a thread; see `FlowEstimator.__call__`."""
        # OpenCV lets go of Python's lock, and a pair alone does not keep two cores busy.
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            flows = list(pool.map(self._pair, image_1.cpu(), image_2.cpu()))
        flow = torch.from_numpy(np.stack(flows))  # (B, H, W, 2)
        return flow.permute(0, 3, 1, 2).contiguous().to(image_1.device)

    def _pair(self, image_1: Tensor, image_2: Tensor) -> Flow:
        """Flow of one pair of images in [0, 1], (3, H, W) each: (H, W, 2)."""
        gray_1, gray_2 = _to_gray(image_1), _to_gray(image_2)
        # A fresh object a call: DIS keeps buffers, and OpenCV does not promise thread safety.
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        # OpenCV allocates where it is given None; its stubs do not say so.
        flow: Flow = dis.calc(gray_1, gray_2, None)  # type: ignore[call-overload]
        rows, columns = np.indices(gray_1.shape, dtype=np.float32)
        warped: Any = cv2.remap(
            gray_2,
            columns + flow[..., 0],
            rows + flow[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        moves = self._mismatch(gray_1, warped) + self.check_margin < self._mismatch(gray_1, gray_2)
        return flow * moves[..., None]

    def _mismatch(self, gray_1: Gray, gray_2: Gray) -> Flow:
        """Mean absolute difference in the window around each pixel, in grey levels, (H, W)."""
        difference = np.abs(gray_1.astype(np.float32) - gray_2.astype(np.float32))
        blurred = cv2.blur(difference, (self.check_window, self.check_window))
        return np.asarray(blurred, dtype=np.float32)


def check_estimator_name(name: str | None) -> None:
    """See that there is an estimator of a name.

    Args:
        name: What should be one of `FLOW_ESTIMATORS`.

    Raises:
        ValueError: If there is none.
    """
    if name not in FLOW_ESTIMATORS:
        raise ValueError(f"flow_estimator must be one of {FLOW_ESTIMATORS}, got {name!r}.")


def check_resolution(name: str, resolution: tuple[int, int]) -> None:
    """See that an estimator can work on images of a size.

    Args:
        name: One of `FLOW_ESTIMATORS`.
        resolution: Height and width of the images, in pixels.

    Raises:
        ValueError: If they are too small for it, or no multiple of its stride.
    """
    if name in _RAFT_MODELS:
        _check_raft_resolution(name, resolution)


def check_flow_weights(name: str, weights: str | None) -> None:
    """See that a file holds the weights of an estimator; its header alone is read.

    Args:
        name: One of `FLOW_ESTIMATORS`.
        weights: Local safetensors file, or None for the estimator's own, which are not checked.

    Raises:
        ValueError: If the weights are of another model, or the estimator has none.
        OSError: If the file is not there, truncated or of another format.
    """
    if weights is None:
        return
    if name == "dis":
        raise ValueError(
            f"flow_estimator=dis has no weights, got flow_weights={weights}. Leave flow_weights "
            "out (null), or name the estimator that they are of."
        )
    if not Path(weights).is_file():
        raise FileNotFoundError(f"flow_weights: no file at {weights}; expected a safetensors file.")
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise OSError(
            f"flow_weights: {weights} is not a readable safetensors file ({error}); it may be "
            "truncated or of another format."
        ) from error
    _check_shapes(name, shapes, weights)


def require_flow_weights(name: str, weights: str | None) -> None:
    """See that the weights of an estimator are there; torchvision's are downloaded if they are not.

    Args:
        name: One of `FLOW_ESTIMATORS`.
        weights: Local safetensors file, or None for the estimator's own.

    Raises:
        ValueError: If the weights are of another model, or the estimator has none.
        OSError: If they cannot be read or downloaded.
    """
    check_flow_weights(name, weights)
    if weights is None and name in _RAFT_MODELS:
        _pretrained_state(name, _RAFT_MODELS[name][1])


@lru_cache(maxsize=4)
def load_flow_estimator(
    name: str, weights: str | None = None, device: str = "cpu"
) -> FlowEstimator:
    """Build a flow estimator; the same arguments return the same object.

    Args:
        name: One of `FLOW_ESTIMATORS`.
        weights: Local safetensors file in torchvision's naming, or None for torchvision's own
            pretrained weights (downloaded once). `dis` has none.
        device: Device of the network.

    Raises:
        ValueError: If `name` is unknown, or the weights are of another model.
        OSError: If the weights cannot be read or downloaded.
    """
    check_estimator_name(name)
    check_flow_weights(name, weights)
    if name == "dis":
        return DisEstimator()
    build, pretrained = _RAFT_MODELS[name]
    model = build(weights=None)
    model.load_state_dict(load_file(weights) if weights else _pretrained_state(name, pretrained))
    return RaftEstimator(model.to(device))


def _pretrained_state(
    name: str, pretrained: Raft_Large_Weights | Raft_Small_Weights
) -> dict[str, Tensor]:
    try:
        # torchvision publishes .pth files: weights_only keeps torch from running what they hold.
        state: dict[str, Tensor] = pretrained.get_state_dict(
            check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"torchvision's weights of {name} could not be downloaded from {pretrained.url} "
            f"({error}). Pass a local file with flow_weights=<file>.safetensors, or use "
            "flow_estimator=dis, which needs none."
        ) from error
    return state


@lru_cache(maxsize=2)
def _raft_shapes(name: str) -> Shapes:
    """Names and shapes of a RAFT's tensors."""
    with torch.device("meta"):  # no memory, and no random number drawn
        model = _RAFT_MODELS[name][0](weights=None)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _check_shapes(name: str, found: Shapes, source: str) -> None:
    expected = _raft_shapes(name)
    differing = [
        f"{key} {found.get(key, 'missing')}, expected {shape}"
        for key, shape in expected.items()
        if found.get(key) != shape
    ]
    differing += [f"{key} unexpected" for key in sorted(found.keys() - expected.keys())]
    if not differing:
        return
    others = [other for other in _RAFT_MODELS if other != name and found == _raft_shapes(other)]
    advice = (
        f"These are weights of {others[0]}: set flow_estimator={others[0]}, or name those of {name}"
        if others
        else f"Name a file with {name}'s state_dict"
    )
    listed = "; ".join(differing[:_LISTED_TENSORS])
    if len(differing) > _LISTED_TENSORS:
        listed += f"; and {len(differing) - _LISTED_TENSORS} more"
    raise ValueError(
        f"flow_weights: {source} does not hold the weights of {name} in torchvision's naming: "
        f"{len(differing)} tensors differ ({listed}). {advice}."
    )


def _check_raft_resolution(name: str, resolution: tuple[int, int]) -> None:
    height, width = resolution
    if min(height, width) < RAFT_MIN_SIZE or height % RAFT_STRIDE or width % RAFT_STRIDE:
        raise ValueError(
            f"{name} needs an image_resolution of at least {RAFT_MIN_SIZE} px a side, in multiples "
            f"of {RAFT_STRIDE}, got {height}x{width}. Raise it, or set flow_estimator=dis."
        )


def _check_finite(values: Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise ValueError(
            f"{what} has NaN or infinite values. Check the dataset's frames for this camera."
        )


def _to_gray(image: Tensor) -> Gray:
    """One image in [0, 1], (3, H, W), to gray levels, (H, W) uint8."""
    rgb = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return np.asarray(gray, dtype=np.uint8)
