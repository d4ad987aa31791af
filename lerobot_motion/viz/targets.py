"""What happened in a dataset: frames of one camera, motion targets, and demonstrated actions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from lerobot.utils.constants import ACTION
from torch import Tensor

from lerobot_motion.extraction.recordings import Clip, Recordings
from lerobot_motion.flow.estimator import (
    check_estimator_name,
    check_flow_weights,
    check_resolution,
)
from lerobot_motion.flow.letterbox import check_image_resolution, content_mask, letterbox
from lerobot_motion.flow.motion_image import check_max_magnitude
from lerobot_motion.motion_target import TargetImage, target_image
from lerobot_motion.steps import MotionTargetStep


def check_step(step: MotionTargetStep) -> None:
    """Refuse settings that no target can be drawn with, before anything is loaded.

    Args:
        step: Draws a target of two frames.

    Raises:
        ValueError: If a setting is out of range, or contradicts another.
        OSError: If the weights of flow cannot be read.
    """
    height, width = step.image_resolution
    check_image_resolution((height, width))
    if target_image(step.motion_target).needs_flow:
        check_estimator_name(step.flow_estimator)
        check_max_magnitude(step.max_magnitude)
        check_resolution(step.flow_estimator, (height, width))
        check_flow_weights(step.flow_estimator, step.flow_weights)


@dataclass(frozen=True)
class TargetSettings:
    """How motion targets are made.

    Attributes:
        horizon: Frames from an observation to its future frame.
        step: Draws a target of two frames.
        device: Device that estimates flow.
    """

    horizon: int
    step: MotionTargetStep
    device: str

    @property
    def target(self) -> TargetImage:
        """What is drawn."""
        return target_image(self.step.motion_target)

    @property
    def scale(self) -> float | None:
        """Displacement drawn at full saturation, in pixels; None where no motion is drawn."""
        return self.step.max_magnitude if self.target.needs_flow else None


@dataclass(frozen=True)
class Moments:
    """Some frames of one episode, and what was to come.

    Attributes:
        episode: The episode.
        positions: Positions of the frames in it.
        frames: Letterboxed frames in [0, 1], (B, 3, H, W).
        valid: Whether a frame has a future, (B,).
        targets: Target images in [-1, 1], (B, 3, H, W); white without a future.
        has_past: Whether a frame has a past, (B,): the camera saw a horizon of motion before it.
        last: Target images of a horizon ago, (B, 3, H, W); white without a past.
        mask: Where images show the camera rather than padding, (H, W).
    """

    episode: int
    positions: Sequence[int]
    frames: Tensor
    valid: Tensor
    targets: Tensor
    has_past: Tensor
    last: Tensor
    mask: Tensor


class EpisodeTargets:
    """Makes the targets of one episode, in order; those of a horizon ago are not made twice."""

    def __init__(
        self, recordings: Recordings, episode: int, settings: TargetSettings, *, with_past: bool
    ) -> None:
        """Prepare; nothing is decoded yet.

        Args:
            recordings: The motion camera.
            episode: Which episode.
            settings: How targets are made.
            with_past: Whether the motion of the past horizon is wanted, too.
        """
        self.recordings, self.episode, self.settings = recordings, episode, settings
        start, stop = recordings.ranges[episode]
        self.length = stop - start
        self._with_past = with_past
        self._made: dict[int, Tensor] = {}

    def at(self, positions: Sequence[int]) -> Moments:
        """Look at frames.

        Args:
            positions: Their positions in the episode, later than all before.

        Raises:
            ValueError: If a frame cannot be used.
            OSError: If a file cannot be read.
        """
        horizon = self.settings.horizon
        valid = [position + horizon < self.length for position in positions]
        has_past = [self._with_past and position >= horizon for position in positions]
        wanted = {p for p, is_valid in zip(positions, valid, strict=True) if is_valid}
        wanted |= {p - horizon for p, past in zip(positions, has_past, strict=True) if past}
        new = sorted(wanted - self._made.keys())
        needed = sorted({*positions, *new, *(p + horizon for p in new)})
        native = self.recordings.read(Clip(self.episode, tuple(needed)))
        row = {position: i for i, position in enumerate(needed)}
        resolution = (
            self.settings.step.image_resolution[0],
            self.settings.step.image_resolution[1],
        )
        frames = letterbox(native[[row[position] for position in positions]], resolution)
        if new:
            pairs = torch.stack([native[[row[p], row[p + horizon]]] for p in new])
            images = self.settings.step.motion_images(pairs.to(self.settings.device)).cpu()
            self._made.update(zip(new, images, strict=True))
        white = torch.ones_like(frames[0])
        moments = Moments(
            episode=self.episode,
            positions=positions,
            frames=frames,
            valid=torch.tensor(valid),
            targets=torch.stack([self._made.get(position, white) for position in positions]),
            has_past=torch.tensor(has_past),
            last=torch.stack([self._made.get(p - horizon, white) for p in positions]),
            mask=content_mask((native.shape[-2], native.shape[-1]), resolution),
        )
        self._forget(positions[-1] - horizon if self._with_past else positions[-1])
        return moments

    def _forget(self, position: int) -> None:
        """Let go of targets that no later frame asks for."""
        for made in [p for p in self._made if p <= position]:
            del self._made[made]


def demonstrated_actions(recordings: Recordings, episode: int) -> Tensor | None:
    """Actions of an episode as recorded.

    Args:
        recordings: The dataset.
        episode: Which episode.

    Returns:
        Actions, (T, D), or None if the dataset has none.
    """
    if ACTION not in recordings.meta.features:
        return None
    start, stop = recordings.ranges[episode]
    path = Path(recordings.meta.root / recordings.meta.get_data_file_path(episode))
    inside = [("index", ">=", start), ("index", "<", stop)]
    rows = pq.read_table(path, columns=["index", ACTION], filters=inside)[ACTION].to_pylist()
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), -1)


def action_names(recordings: Recordings) -> list[str]:
    """What the dataset calls the numbers of an action.

    Args:
        recordings: The dataset.
    """
    feature = recordings.meta.features.get(ACTION, {})
    names = feature.get("names")
    if isinstance(names, dict):
        # {"motors": [...]}, or {"x": 0, "y": 1}.
        lists = [value for value in names.values() if isinstance(value, list)]
        names = lists[0] if lists else list(names)
    size = int(feature.get("shape", (0,))[-1])
    if not isinstance(names, list) or len(names) != size:
        return [str(i) for i in range(size)]
    return [str(name) for name in names]
