import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import CAMERA

from lerobot_motion.extraction.decoding import decode_ahead
from lerobot_motion.extraction.plan import clips_of, plan_shards
from lerobot_motion.extraction.recordings import Clip, Recordings, open_dataset


@pytest.mark.parametrize("kind", ["image", "video"])
def test_workers_give_the_same_frames_in_order(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(f"{kind}_root")
    recordings = Recordings(open_dataset("tests/tiny", str(root)), CAMERA)
    last = len(recordings.ranges) - 1
    shards = plan_shards(recordings.ranges, ((0, last),), 20)

    def clips() -> Iterator[Clip]:
        return clips_of(recordings.ranges, shards)

    by_two = list(decode_ahead(recordings, clips, num_workers=2))
    alone = list(decode_ahead(recordings, clips, num_workers=0))

    assert [clip for clip, _ in by_two] == list(clips()) == [clip for clip, _ in alone]
    for (_, frames), (_, expected) in zip(by_two, alone, strict=True):
        assert torch.equal(frames, expected)


def test_workers_do_not_inherit_open_decoders(video_root: Path) -> None:
    recordings = Recordings(open_dataset("tests/tiny", str(video_root)), CAMERA)
    clips = [Clip(0, (i,)) for i in range(40)]
    expected = torch.cat([recordings.read(clip) for clip in clips])

    for _ in range(3):
        decoded = decode_ahead(recordings, lambda: clips, num_workers=2)
        assert torch.equal(torch.cat([frames for _, frames in decoded]), expected)
        recordings.read(clips[0])


@pytest.mark.parametrize("backend", ["torchcodec", "pyav"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_frame_is_named(
    video_root: Path, tmp_path: Path, backend: str, num_workers: int
) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(video_root, root)
    video = next((root / "videos").rglob("*.mp4"))
    content = bytearray(video.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 4000] = bytes(4000)
    video.write_bytes(content)
    recordings = Recordings(open_dataset("tests/tiny", str(root)), CAMERA, video_backend=backend)
    clips = [Clip(0, tuple(range(10))), Clip(0, tuple(range(10, 40))), Clip(1, tuple(range(40)))]

    decoded = []
    with pytest.raises(
        ValueError, match=rf"frame \d+ of episode [01] of {CAMERA} cannot be decoded from \S+.mp4"
    ) as error:
        decoded.extend(
            clip for clip, _ in decode_ahead(recordings, lambda: clips, num_workers=num_workers)
        )

    assert Clip(0, tuple(range(10))) in decoded
    assert "Traceback" not in str(error.value)
    assert "leave the episode out with --dataset.episodes" in str(error.value)


def test_a_damaged_image_is_named(image_root: Path) -> None:
    class Damaged(Recordings):
        def read(self, clip: Clip) -> torch.Tensor:
            if 7 in clip.frames:
                raise OSError("broken data stream")
            return super().read(clip)

    recordings = Damaged(open_dataset("tests/tiny", str(image_root)), CAMERA)

    with pytest.raises(
        ValueError,
        match=r"frame 7 of episode 2 .* from \S+.parquet \(broken data stream\)",
    ):
        list(decode_ahead(recordings, lambda: [Clip(2, tuple(range(12)))], num_workers=0))


def test_a_worker_that_dies_is_reported(image_root: Path) -> None:
    class Deadly(Recordings):
        def read(self, clip: Clip) -> torch.Tensor:
            os._exit(9)

    recordings = Deadly(open_dataset("tests/tiny", str(image_root)), CAMERA)

    with pytest.raises(OSError, match=r"a process that decodes frames died .*--num_workers"):
        list(decode_ahead(recordings, lambda: [Clip(0, (0,))], num_workers=1))
