"""Finding the latent stores that belong to a policy and a dataset, and refusing any other."""

import logging
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot_motion.dataset_identity import DatasetIdentity, dataset_identity
from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.joint.settling import AUTO_LATENTS
from lerobot_motion.latent_store import BESIDE_DATASET, LatentStore, find_stores, open_latent_store
from lerobot_motion.models.latent_codec import latent_codec_sha256
from lerobot_motion.training.ranks import is_first_of_its_machine
from lerobot_motion.training.resume_checks import check_resumed_store
from lerobot_motion.training.train_run import TrainRun

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDatasetMetadata

logger = logging.getLogger(__name__)


# In these the stores of several cameras may differ: the rest decides what their latents are.
_OF_ONE_CAMERA = ("dataset", "camera", "episodes", "shard_frames")


def settle_latent_stores(
    config: JointMotionConfig, dataset_meta: "LeRobotDatasetMetadata", run: TrainRun
) -> None:
    """Find the stores that `motion_latents` asks for, and check them against policy and dataset.

    Args:
        config: The policy's configuration, with cameras and latent shape settled.
        dataset_meta: Metadata of the training dataset.
        run: The run that trains the policy.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If a store belongs to another dataset or other settings, is incomplete or
            damaged, lacks episodes, or is not made as those of other cameras, or the run moves
            pixels by random transforms.
    """
    if run.geometric_transforms:
        raise ValueError(
            "image transforms that move pixels cannot be used with a latent store, whose motion "
            f"would not follow them: {', '.join(run.geometric_transforms)}. Set their weight to 0 "
            "(--dataset.image_transforms.tfs), or compute motion on the fly "
            "(--policy.motion_latents=null). Colour transforms are fine."
        )
    names = {run.rename_map.get(key, key): key for key in dataset_meta.camera_keys}
    cameras = [names[camera] for camera in config.seen_cameras]
    identities = [dataset_identity(dataset_meta, camera) for camera in cameras]
    root = Path(dataset_meta.root)
    if config.motion_latents == AUTO_LATENTS:
        stores = [
            _store_beside(config, root, identity, camera)
            for identity, camera in zip(identities, cameras, strict=True)
        ]
    else:
        stores = _named_stores(config, cameras)
        for store, identity, camera in zip(stores, identities, cameras, strict=True):
            _check_settings(config, store, identity, camera)
    _check_alike(stores)
    for store in stores:
        _check_episodes(store, run, dataset_meta.total_episodes)
        if is_first_of_its_machine():
            logger.info("Checking the %d shards of %s", len(store.shards), store.path)
            store.check_integrity()
        if run.resume:
            check_resumed_store(config, store.path, store.settings.flow_estimator)
    paths = [str(store.path) for store in stores]
    config.settle_latent_stores(paths, stores[0].settings.flow_estimator)


def _named_stores(config: JointMotionConfig, cameras: list[str]) -> list[LatentStore]:
    """The stores that are named, in the order of the cameras."""
    named = config.motion_latents
    stores = [open_latent_store(path) for path in (named if isinstance(named, list) else [named])]
    if len(stores) == len(cameras) == 1:
        return stores
    of_camera = {store.settings.camera: store for store in stores}
    if len(stores) != len(cameras) or set(of_camera) != set(cameras):
        found = ", ".join(f"{store.path} of {store.settings.camera}" for store in stores)
        raise ValueError(
            f"motion_latents must name a latent store for each of the cameras {cameras} (the "
            f"dataset's own names), got {found}. Make what is missing: lerobot-motion-precompute "
            f"--camera={','.join(cameras)}."
        )
    return [of_camera[camera] for camera in cameras]


def _check_settings(
    config: JointMotionConfig, store: LatentStore, identity: DatasetIdentity, camera: str
) -> None:
    problems = _mismatches(config, store, identity, camera)
    if problems:
        raise ValueError(
            f"latent store {store.path} does not suit this run: {'; '.join(problems)}. Change "
            "the policy's settings, or make a store with lerobot-motion-precompute."
        )


def _check_alike(stores: list[LatentStore]) -> None:
    """The views of one head want targets of one kind."""
    first, *others = stores
    expected = asdict(first.settings)
    for store in others:
        problems = [
            f"{name} is {expected[name]} in {first.path} and {value} in {store.path}"
            for name, value in asdict(store.settings).items()
            if name not in _OF_ONE_CAMERA and value != expected[name]
        ]
        if problems:
            raise ValueError(
                f"the latent stores of {first.settings.camera} and {store.settings.camera} were "
                f"not made alike: {'; '.join(problems)}. Make them with one command: "
                "lerobot-motion-precompute "
                f"--camera={first.settings.camera},{store.settings.camera}."
            )


def _store_beside(
    config: JointMotionConfig, root: Path, identity: DatasetIdentity, camera: str
) -> LatentStore:
    """The one store under the dataset's root that suits the policy."""
    suitable, others = [], []
    for path in find_stores(root):
        store = open_latent_store(str(path))
        problems = _mismatches(config, store, identity, camera)
        if problems:
            others.append(f"{path.name}: {'; '.join(problems)}")
        else:
            suitable.append(store)
    if len(suitable) == 1:
        return suitable[0]
    if suitable:
        raise ValueError(
            f"motion_latents=auto: {len(suitable)} latent stores beside the dataset suit this run: "
            f"{[str(store.path) for store in suitable]}. Name one with --policy.motion_latents."
        )
    found = f"; there are {' | '.join(others)}" if others else ""
    raise FileNotFoundError(
        f"motion_latents=auto: no latent store under {root / BESIDE_DATASET} suits this run{found}."
        f" Make one: {_command(config, root, identity, camera)}"
    )


def _command(config: JointMotionConfig, root: Path, identity: DatasetIdentity, camera: str) -> str:
    """The command that makes the store that a run looks for."""
    height, width = config.image_resolution
    flags = {
        "dataset.repo_id": identity.repo_id,
        "dataset.root": root,
        "camera": camera,
        "horizon": config.motion_horizon,
        "image_resolution": f"[{height},{width}]",
        "vae": config.motion_vae,
    }
    if config.estimates_flow:
        flags["flow_estimator"] = config.flow_estimator
        flags["flow_max_magnitude"] = f"{config.flow_max_magnitude:g}"
        if config.flow_weights is not None:
            flags["flow_weights"] = config.flow_weights
    else:
        flags["motion_target"] = config.motion_target
    return shlex.join(
        ["lerobot-motion-precompute", *(f"--{name}={value}" for name, value in flags.items())]
    )


def _mismatches(
    config: JointMotionConfig, store: LatentStore, identity: DatasetIdentity, camera: str
) -> list[str]:
    """What the store and the run disagree about, each with both sides."""
    settings = store.settings
    if not settings.dataset.matches(identity):
        return [
            f"it was made from {settings.dataset}, the dataset is {identity} (recordings deleted, "
            "added or merged since?)"
        ]
    pairs = {
        "motion_target": (settings.motion_target, config.motion_target),
        "camera": (settings.camera, camera),
        "motion_horizon": (settings.horizon, config.motion_horizon),
        "image_resolution": (settings.image_resolution, tuple(config.image_resolution)),
        "flow_max_magnitude": (settings.flow_max_magnitude, config.flow_max_magnitude),
        "motion_vae": (settings.vae, config.motion_vae),
        "motion_latent_shape": (settings.latent_shape, tuple(config.motion_latent_shape or ())),
    }
    if settings.flow_max_magnitude is None or not config.estimates_flow:
        del pairs["flow_max_magnitude"]
    if _same_weights(settings.vae_sha256, str(config.motion_vae)):
        del pairs["motion_vae"]
    elif settings.vae == config.motion_vae and _other_weights(settings.vae_sha256, settings.vae):
        pairs["weights of motion_vae"] = (settings.vae_sha256, latent_codec_sha256(settings.vae))
    return [
        f"{name} is {stored} in the store and {wanted} in the policy"
        for name, (stored, wanted) in pairs.items()
        if stored != wanted
    ]


def _same_weights(stored: str | None, vae: str) -> bool:
    """Whether a VAE is the store's, under whatever path."""
    return stored is not None and stored == latent_codec_sha256(vae)


def _other_weights(stored: str | None, vae: str) -> bool:
    """Whether a VAE of the store's name is at hand and has other weights."""
    own = latent_codec_sha256(vae)
    return stored is not None and own is not None and stored != own


def _check_episodes(store: LatentStore, run: TrainRun, num_episodes: int) -> None:
    wanted = set(run.episodes if run.episodes is not None else range(num_episodes))
    missing = sorted(wanted - store.episodes())
    if missing:
        raise ValueError(
            f"latent store {store.path} has the episodes "
            f"{[list(run) for run in store.settings.episodes]}, and lacks {len(missing)} of those "
            f"that the run trains on: {missing[:5]}{' and so on' if len(missing) > 5 else ''}. "
            "Make a store of the whole dataset, or pass --dataset.episodes."
        )
