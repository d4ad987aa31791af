import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.dataset_tools import delete_episodes
from stores import HORIZON, write_store
from tiny import CAMERA, make_motion_config, write_autoencoder, write_dataset

from lerobot_motion.cli import precompute
from lerobot_motion.dataset_identity import dataset_identity
from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.joint.dataset_checks import check_dataset
from lerobot_motion.latent_store import open_latent_store
from lerobot_motion.models.latent_codec import latent_codec_sha256
from lerobot_motion.training.train_run import TrainRun

Meta = LeRobotDatasetMetadata
WITHOUT_FLOW = {
    "motion_target": "future_image",
    "flow_estimator": None,
    "flow_precision": None,
    "flow_max_magnitude": None,
    "hue": None,
}


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Meta:
    """Metadata of three episodes of ten frames."""
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, num_episodes=3, num_frames=10, size=(24, 32))
    return Meta("tests/tiny", root=root)


@pytest.fixture(autouse=True)
def _fresh_stores() -> None:
    open_latent_store.cache_clear()


def config_with(latents: str | Path, run: TrainRun | None = None, **settings: Any) -> Any:
    config = make_motion_config(
        **{"motion_latents": str(latents), "motion_horizon": HORIZON, **settings}
    )
    config.enter_run(run or TrainRun(num_steps=10))
    return config


# --- a store that suits ---


def test_a_suitable_store_is_taken(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta)
    config = config_with(store)

    check_dataset(config, meta)

    assert config.motion_target_settings["latents"] == str(store)


def test_no_future_frame_is_asked_for(tmp_path: Path) -> None:
    assert config_with(tmp_path).observation_delta_indices is None
    assert make_motion_config(motion_horizon=HORIZON).observation_delta_indices == [0, HORIZON]


def test_the_config_tells_how_the_stored_flow_was_estimated(meta: Meta, tmp_path: Path) -> None:
    config = config_with(write_store(tmp_path / "store", meta, flow_estimator="raft_large"))

    check_dataset(config, meta)

    assert config.flow_estimator == "raft_large"


def test_a_resumed_run_takes_no_store_of_another_flow(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta, flow_estimator="raft_large")
    config = config_with(store, TrainRun(num_steps=10, resume=True))

    with pytest.raises(
        ValueError,
        match=r"resume: flow_estimator is dis in the checkpoint and raft_large in the latent store",
    ):
        check_dataset(config, meta)


def test_auto_takes_the_store_beside_the_dataset(meta: Meta, tmp_path: Path) -> None:
    here = copy_dataset(meta, tmp_path)
    write_store(here.root / "meta" / "motion" / "other", here, horizon=HORIZON + 1)
    store = write_store(here.root / "meta" / "motion" / "ours", here)
    config = config_with("auto")

    check_dataset(config, here)

    assert config.motion_target_settings["latents"] == str(store)
    assert config.motion_latents == "auto"


def test_auto_must_be_settled_before_targets_are_read() -> None:
    with pytest.raises(ValueError, match="motion_latents=auto is settled when the policy is built"):
        _ = config_with("auto").motion_target_settings


def test_a_dataset_under_another_name_is_the_same(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta)
    renamed = Meta("somebody/else", root=meta.root)

    check_dataset(config_with(store), renamed)

    assert dataset_identity(renamed, CAMERA).matches(dataset_identity(meta, CAMERA))


def test_a_renamed_camera_is_the_datasets_camera(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta)
    front = "observation.images.front"
    run = TrainRun(num_steps=10, rename_map={CAMERA: front})
    config = config_with(store, run, cameras=(front,))

    check_dataset(config, meta)

    assert config.motion_camera == front


def test_a_vae_is_told_by_its_weights(meta: Meta, tmp_path: Path) -> None:
    vae = write_autoencoder(tmp_path / "vae")
    digest = latent_codec_sha256(str(vae))
    made_elsewhere = {"vae": "/elsewhere/vae", "vae_sha256": digest, "latent_shape": (4, 14, 14)}
    store = write_store(tmp_path / "store", meta, **made_elsewhere)

    check_dataset(config_with(store, motion_vae=str(vae)), meta)


def test_colour_transforms_are_fine(meta: Meta, tmp_path: Path) -> None:
    run = TrainRun(num_steps=10, image_transforms=True)

    check_dataset(config_with(write_store(tmp_path / "store", meta), run), meta)


def test_some_episodes_of_the_store_may_be_trained_on(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta, episodes=((1, 2),))

    check_dataset(config_with(store, TrainRun(num_steps=10, episodes=(2,))), meta)


def test_a_store_of_future_images_suits_a_policy_that_learns_them(
    meta: Meta, tmp_path: Path
) -> None:
    """Whatever is said of flow, which neither has to do with."""
    config = config_with(
        write_store(tmp_path / "store", meta, **WITHOUT_FLOW),
        motion_target="future_image",
        flow_max_magnitude=8.0,
    )

    check_dataset(config, meta)

    assert config.flow_estimator == "dis"
    assert config.motion_target_settings["latents"] == str(tmp_path / "store")


# --- stores that do not ---


@pytest.mark.parametrize(
    ("stored", "wanted"), [("flow_image", "future_image"), ("future_image", "flow_image")]
)
def test_a_store_of_another_target_is_refused(
    meta: Meta, tmp_path: Path, stored: str, wanted: str
) -> None:
    changes = WITHOUT_FLOW if stored == "future_image" else {}
    config = config_with(write_store(tmp_path / "s", meta, **changes), motion_target=wanted)
    message = rf"suit this run: motion_target is {stored} in the store and {wanted} in the policy\."

    with pytest.raises(ValueError, match=message):
        check_dataset(config, meta)


def test_auto_without_a_store_of_future_images_says_how_to_make_one(
    meta: Meta, tmp_path: Path
) -> None:
    here = copy_dataset(meta, tmp_path)
    write_store(here.root / "meta" / "motion" / "flow", here)
    message = r"there are flow: motion_target is flow_image in the .*--motion_target=future_image$"

    with pytest.raises(FileNotFoundError, match=message):
        check_dataset(config_with("auto", motion_target="future_image"), here)


@pytest.mark.parametrize(
    ("stored", "policy", "message"),
    [
        ({"horizon": 5}, {}, "motion_horizon is 5 in the store and 4 in the policy"),
        ({}, {"flow_max_magnitude": 8.0}, r"flow_max_magnitude is 64\.0 in the store and 8\.0 in"),
        (
            {"camera": "observation.images.wrist"},
            {},
            rf"camera is observation\.images\.wrist in the store and {re.escape(CAMERA)} in the",
        ),
        (
            {"image_resolution": (224, 224)},
            {},
            r"image_resolution is \(224, 224\) in the store and \(112, 112\) in the policy",
        ),
        ({}, {"motion_vae": "flow"}, "motion_vae is pool in the store and flow in the policy"),
    ],
)
def test_other_settings_are_refused(
    meta: Meta, tmp_path: Path, stored: dict[str, Any], policy: dict[str, Any], message: str
) -> None:
    config = config_with(write_store(tmp_path / "store", meta, **stored), **policy)

    with pytest.raises(ValueError, match=message):
        check_dataset(config, meta)


def test_other_weights_under_the_same_name_are_refused(meta: Meta, tmp_path: Path) -> None:
    vae = write_autoencoder(tmp_path / "vae")
    settings = {"vae": str(vae), "vae_sha256": "0" * 64, "latent_shape": (4, 14, 14)}
    config = config_with(write_store(tmp_path / "store", meta, **settings), motion_vae=str(vae))

    with pytest.raises(ValueError, match="weights of motion_vae is 000.* in the store and "):
        check_dataset(config, meta)


def test_an_edited_dataset_is_refused(meta: Meta, tmp_path: Path) -> None:
    """All its episodes are equally long: their number tells it from the original."""
    store = write_store(tmp_path / "store", meta)
    edited = delete_episodes(
        LeRobotDataset("tests/tiny", root=meta.root), [1], tmp_path / "edited", "tests/edited"
    ).meta
    message = r"made from tests/tiny \(3 episodes, 30 frames.*the dataset is tests/edited \(2 epis"

    with pytest.raises(ValueError, match=message):
        check_dataset(config_with(store), edited)


def test_other_recordings_of_the_same_lengths_are_refused(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta)
    root = tmp_path / "other"
    write_dataset(root, num_episodes=3, num_frames=10, size=(24, 36))

    with pytest.raises(ValueError, match="was made from tests/tiny"):
        check_dataset(config_with(store), Meta("tests/tiny", root=root))


def test_missing_episodes_are_refused(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta, episodes=((1, 2),))
    message = r"has the episodes \[\[1, 2\]\], and lacks 1 of those that the run trains on: \[0\]\."

    with pytest.raises(ValueError, match=message):
        check_dataset(config_with(store), meta)


def test_transforms_that_move_pixels_are_refused(meta: Meta, tmp_path: Path) -> None:
    run = TrainRun(
        num_steps=10, image_transforms=True, geometric_transforms=("affine (RandomAffine)",)
    )
    config = config_with(write_store(tmp_path / "store", meta), run)

    with pytest.raises(ValueError, match=r"move pixels .*latent store.*affine \(RandomAffine\)"):
        check_dataset(config, meta)


def test_no_store(meta: Meta, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no latent store at {tmp_path}/nowhere"):
        check_dataset(config_with(tmp_path / "nowhere"), meta)


def test_a_store_in_the_making_is_refused(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta)
    (store / "manifest.json").rename(store / "settings.json")

    with pytest.raises(ValueError, match="is not complete"):
        check_dataset(config_with(store), meta)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_shard_is_refused(meta: Meta, tmp_path: Path, damage: str) -> None:
    store = write_store(tmp_path / "store", meta)
    shard = store / "shards" / "000001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content[:-10] if damage == "truncated" else content)

    with pytest.raises(ValueError, match=r"is damaged: shards/000001\.safetensors"):
        check_dataset(config_with(store), meta)


def test_checksums_are_read_once_a_machine(
    meta: Meta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(tmp_path / "store", meta)
    (store / "shards" / "000001.safetensors").unlink()

    monkeypatch.setenv("LOCAL_RANK", "1")
    check_dataset(config_with(store), meta)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="is damaged"):
        check_dataset(config_with(store), meta)


def test_a_newer_format_is_refused(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta)
    path = store / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))

    with pytest.raises(ValueError, match="has format version 2, this release reads version 1"):
        check_dataset(config_with(store), meta)


def test_auto_without_a_store_says_how_to_make_one(meta: Meta, tmp_path: Path) -> None:
    """And the command that it names makes one that suits."""
    here = copy_dataset(meta, tmp_path / "a folder")
    with pytest.raises(FileNotFoundError, match="no latent store under .* suits this") as caught:
        check_dataset(config_with("auto"), here)
    command, *flags = shlex.split(str(caught.value).split("Make one: ")[1])
    assert command == "lerobot-motion-precompute"

    assert precompute.main([*flags, "--num_workers=0"]) == 0

    config = config_with("auto")
    check_dataset(config, here)
    (store,) = (here.root / "meta" / "motion").iterdir()
    assert config.motion_target_settings["latents"] == str(store)


def test_auto_tells_why_a_store_does_not_suit(meta: Meta, tmp_path: Path) -> None:
    here = copy_dataset(meta, tmp_path)
    write_store(here.root / "meta" / "motion" / "five", here, horizon=5)

    with pytest.raises(FileNotFoundError, match="there are five: motion_horizon is 5 in the store"):
        check_dataset(config_with("auto"), here)


def test_auto_does_not_choose_among_several(meta: Meta, tmp_path: Path) -> None:
    here = copy_dataset(meta, tmp_path)
    for name in ("a", "b"):
        write_store(here.root / "meta" / "motion" / name, here)

    with pytest.raises(ValueError, match=r"2 latent stores beside the dataset suit this run"):
        check_dataset(config_with("auto"), here)


def test_streamed_video_is_fine_with_a_store(meta: Meta, tmp_path: Path) -> None:
    run = TrainRun(num_steps=10, streaming=True)
    config: JointMotionConfig = config_with(write_store(tmp_path / "store", meta), run)

    check_dataset(config, meta)

    assert config.observation_delta_indices is None


def copy_dataset(meta: Meta, tmp_path: Path) -> Meta:
    return Meta("tests/tiny", root=shutil.copytree(meta.root, tmp_path / "dataset"))


# --- a store for each of several cameras ---

WRIST = "observation.images.wrist"
TWO_VIEWS = {"cameras": (CAMERA, WRIST), "motion_camera": [CAMERA, WRIST]}


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> Meta:
    """Metadata of two episodes of ten frames with two cameras."""
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, cameras=(CAMERA, WRIST), num_frames=10, size=(24, 32))
    return Meta("tests/tiny", root=root)


def write_views(folder: Path, meta: Meta, **changes: Any) -> list[Path]:
    """A store of each camera; `changes` are those of the second."""
    of_wrist = {"dataset": dataset_identity(meta, WRIST), "camera": WRIST, **changes}
    return [
        write_store(folder / "of_top", meta),
        write_store(folder / "of_wrist", meta, **of_wrist),
    ]


def test_auto_finds_a_store_for_each_camera(two_cameras: Meta, tmp_path: Path) -> None:
    here = copy_dataset(two_cameras, tmp_path)
    stores = write_views(here.root / "meta" / "motion", here)
    config = config_with("auto", **TWO_VIEWS)

    check_dataset(config, here)

    assert config.motion_target_settings["latents"] == [str(store) for store in stores]
    assert config.motion_latents == "auto"


@pytest.mark.parametrize("form", [",".join, list])
def test_stores_may_be_named_in_any_order(form: Any, two_cameras: Meta, tmp_path: Path) -> None:
    stores = [str(store) for store in write_views(tmp_path, two_cameras)]
    config = make_motion_config(
        **TWO_VIEWS, motion_horizon=HORIZON, motion_latents=form(stores[::-1])
    )
    with pytest.raises(ValueError, match="is settled when the policy is built for a dataset"):
        _ = config.motion_target_settings

    check_dataset(config, two_cameras)

    assert config.motion_target_settings["latents"] == stores


def test_an_empty_camera_has_no_store(meta: Meta, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", meta)
    empty = "observation.images.empty_camera_0"
    config = config_with(store, motion_camera=[empty, CAMERA], empty_cameras=1)

    check_dataset(config, meta)

    assert config.motion_target_settings["latents"] == [None, str(store)]


@pytest.mark.parametrize("named", [[0], [0, 0], [0, 1, 1]])
def test_a_store_is_missing_or_too_many(
    named: list[int], two_cameras: Meta, tmp_path: Path
) -> None:
    stores = write_views(tmp_path, two_cameras)
    paths = [shutil.copytree(stores[i], tmp_path / f"copy{n}") for n, i in enumerate(named)]
    config = config_with(",".join(map(str, paths)), **TWO_VIEWS)

    with pytest.raises(ValueError, match="motion_latents must name a latent store for each") as e:
        check_dataset(config, two_cameras)

    assert f"the cameras {[CAMERA, WRIST]} (the dataset's own names)" in str(e.value)
    assert f"{paths[0]} of {CAMERA}" in str(e.value)
    assert f"lerobot-motion-precompute --camera={CAMERA},{WRIST}" in str(e.value)


def test_auto_says_which_camera_has_no_store(two_cameras: Meta, tmp_path: Path) -> None:
    here = copy_dataset(two_cameras, tmp_path)
    write_store(here.root / "meta" / "motion" / "of_top", here)

    with pytest.raises(FileNotFoundError, match=f"no latent store .* --camera={WRIST} "):
        check_dataset(config_with("auto", **TWO_VIEWS), here)


def test_every_store_is_checked(two_cameras: Meta, tmp_path: Path) -> None:
    stores = write_views(tmp_path, two_cameras, horizon=5)
    config = config_with(",".join(map(str, stores)), **TWO_VIEWS)

    with pytest.raises(
        ValueError,
        match=rf"{stores[1]} does not suit .*motion_horizon is 5 in the store and 4 in the policy",
    ):
        check_dataset(config, two_cameras)


def test_the_stores_of_several_cameras_must_be_made_alike(
    two_cameras: Meta, tmp_path: Path
) -> None:
    stores = write_views(tmp_path, two_cameras, flow_estimator="raft_small")
    config = config_with(",".join(map(str, stores)), **TWO_VIEWS)

    with pytest.raises(
        ValueError,
        match=f"{CAMERA} and {WRIST} were not made alike: flow_estimator is dis in {stores[0]} "
        f"and raft_small in {stores[1]}",
    ):
        check_dataset(config, two_cameras)


def test_a_damaged_store_of_any_camera_is_refused(two_cameras: Meta, tmp_path: Path) -> None:
    stores = write_views(tmp_path, two_cameras)
    (stores[1] / "shards" / "000001.safetensors").unlink()

    with pytest.raises(ValueError, match=f"{stores[1]} is damaged"):
        check_dataset(config_with(",".join(map(str, stores)), **TWO_VIEWS), two_cameras)
