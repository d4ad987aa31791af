"""Frames decoded ahead of their use, by worker processes, in order."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

import av
from lerobot.datasets.video_utils import _default_decoder_cache
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lerobot_motion.extraction.recordings import Clip, Recordings

logger = logging.getLogger(__name__)

# What torchcodec, PyAV, Pillow, pyarrow and LeRobot raise on damaged data.
_DECODING_ERRORS = (av.FFmpegError, RuntimeError, ValueError, OSError, IndexError, SyntaxError)

# Frames, or None and what is wrong with them: a DataLoader would bury an exception's message.
_Decoded = tuple[Tensor | None, str]


def decode_ahead(
    recordings: Recordings,
    clips: Callable[[], Iterable[Clip]],
    num_workers: int,
    *,
    pin_memory: bool = False,
) -> Iterator[tuple[Clip, Tensor]]:
    """Decode clips in worker processes while the caller does other things.

    Args:
        recordings: Where the frames come from.
        clips: Gives the clips anew in every worker, so that no list of them has to be kept.
        num_workers: Worker processes; with 0 the caller decodes.
        pin_memory: Put frames into page-locked memory, from which they go to a GPU unawaited.

    Yields:
        Each clip, in order, and its frames, (N, 3, H, W), uint8.

    Raises:
        ValueError: If frames cannot be decoded; the episode and the first such frame are named.
        OSError: If a worker died.
    """
    recordings.open()
    if num_workers:
        # Workers would inherit this process's open decoders and share their place in the file.
        _default_decoder_cache.clear()
    loader = DataLoader(
        _Clips(recordings, clips),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
    results = iter(loader)
    for clip in clips():
        frames, problem = _next(results)
        if frames is None:
            raise ValueError(problem)
        yield clip, frames


def _next(results: Iterator[_Decoded]) -> _Decoded:
    try:
        return next(results)
    except RuntimeError as error:
        raise OSError(
            f"a process that decodes frames died ({' '.join(str(error).split())}). Memory or "
            "shared memory (/dev/shm) may have run out: try a smaller --num_workers, or 0."
        ) from error


class _Clips(IterableDataset[_Decoded]):
    """Each worker decodes every n-th clip; a DataLoader takes from the workers in turn."""

    def __init__(self, recordings: Recordings, clips: Callable[[], Iterable[Clip]]) -> None:
        self.recordings = recordings
        self.clips = clips

    def __iter__(self) -> Iterator[_Decoded]:
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for clip in itertools.islice(self.clips(), start, None, step):
            yield _decode(self.recordings, clip)


def _decode(recordings: Recordings, clip: Clip) -> _Decoded:
    """The frames of a clip, or what is wrong with them."""
    try:
        return recordings.read(clip), ""
    except _DECODING_ERRORS as error:
        frame, reason = _first_bad_frame(recordings, clip) or (clip.frames[0], error)
        return None, (
            f"dataset {recordings.meta.repo_id}: frame {frame} of episode {clip.episode} of "
            f"{recordings.camera} cannot be decoded from {recordings.source(clip.episode)} "
            f"({_brief(reason)}). The file may be damaged: fetch the dataset again, or leave the "
            "episode out with --dataset.episodes."
        )


def _first_bad_frame(recordings: Recordings, clip: Clip) -> tuple[int, Exception] | None:
    for frame in clip.frames:
        try:
            recordings.read(Clip(clip.episode, (frame,)))
        except _DECODING_ERRORS as error:
            return frame, error
    return None


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
