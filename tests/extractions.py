"""Small extractions to test with: DIS and the pool codec at 112 x 112."""

from pathlib import Path
from typing import Any

from tiny import CAMERA

from lerobot_motion.extraction.extract import Extraction
from lerobot_motion.extraction.recordings import Recordings, choose_episodes, open_dataset
from lerobot_motion.extraction.settings import TargetOptions, store_settings
from lerobot_motion.extraction.targets import Compute
from lerobot_motion.extraction.tasks import Work

HORIZON = 5


def make_extraction(
    root: Path,
    store: Path,
    episodes: list[int] | None = None,
    compute: dict[str, Any] | None = None,
    **options: Any,
) -> Extraction:
    """A store to be made of a data set, by default in shards of two episodes of twelve frames."""
    meta = open_dataset("tests/tiny", str(root))
    recordings = Recordings(meta, CAMERA)
    settled = Compute(
        **{
            "flow_weights": None,
            "device": "cpu",
            "batch_size": 4,
            "num_workers": 0,
            **(compute or {}),
        }
    )
    target = TargetOptions(
        **{
            "horizon": HORIZON,
            "image_resolution": (112, 112),
            "flow_estimator": "dis",
            "flow_max_magnitude": 8.0,
            "vae": "pool",
            "precision": "float32",
            "shard_frames": 20,
            **options,
        }
    )
    chosen = choose_episodes(meta, episodes, target.horizon)
    return Extraction(
        store, store_settings(recordings, chosen, target, settled), recordings, settled
    )


def content_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def work_of(extraction: Extraction) -> Work:
    """What tasks have to know of a store."""
    return Work(
        store=extraction.store.absolute(),
        repo_id=extraction.recordings.meta.repo_id,
        root=str(extraction.recordings.meta.root),
        revision=None,
        tolerance_s=extraction.recordings.tolerance_s,
        video_backend=None,
        compute=extraction.compute,
        device="cpu",
    )
