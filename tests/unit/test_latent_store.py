import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets import LeRobotDatasetMetadata
from safetensors.torch import save_file
from stores import HORIZON, LATENT_SHAPE, store_settings, write_store
from tiny import write_dataset

from lerobot_motion.latent_store import (
    LatentStore,
    StoreSettings,
    file_sha256,
    find_stores,
    tensors_sha256,
)

Meta = LeRobotDatasetMetadata


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Meta:
    """Metadata of four episodes of ten frames."""
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, num_episodes=4, num_frames=10, size=(24, 32))
    return Meta("tests/tiny", root=root)


@pytest.fixture
def path(meta: Meta, tmp_path: Path) -> Path:
    """A store of all episodes, a shard each; latents hold the index of their frame."""
    return write_store(tmp_path / "store", meta)


def change_manifest(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


# --- reading ---


def test_latents_are_found_by_their_index(path: Path) -> None:
    index = torch.tensor([0, 9, 35, 12, 12, 30])

    latent, valid = LatentStore(path).read(index)

    assert latent.shape == (6, *LATENT_SHAPE)
    assert latent.dtype == torch.float32
    assert valid.tolist() == [True, False, True, True, True, True]
    assert torch.equal(latent[:, 0, 0, 0], index * valid)
    assert torch.equal(latent.amin(dim=(1, 2, 3)), latent.amax(dim=(1, 2, 3)))


@pytest.mark.parametrize("index", [-1, 9, 20, 29, 40])
def test_a_frame_outside_the_store_is_an_error(meta: Meta, tmp_path: Path, index: int) -> None:
    store = LatentStore(write_store(tmp_path / "part", meta, episodes=((1, 1), (3, 3))))
    assert store.episodes() == {1, 3}
    assert store.read(torch.tensor([10, 30]))[1].all()

    with pytest.raises(
        ValueError, match=rf"no frame with index {index}; it covers the episodes \[\[1, 1\], \[3, 3"
    ):
        store.read(torch.tensor([index]))


def test_shards_are_mapped_when_first_read(path: Path) -> None:
    (path / "shards" / "000002.safetensors").unlink()
    store = LatentStore(path)

    assert store.read(torch.tensor([0, 39]))[0].shape[0] == 2
    with pytest.raises(ValueError, match=r"000002.safetensors cannot be read .* missing or trunc"):
        store.read(torch.tensor([20]))


@pytest.mark.parametrize("keep", [0, 4, 60, 1000])
def test_a_truncated_shard_is_refused(path: Path, keep: int) -> None:
    shard = path / "shards" / "000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])

    with pytest.raises(ValueError, match=r"000001.safetensors cannot be read"):
        LatentStore(path).read(torch.tensor([10]))


@pytest.mark.parametrize(
    ("latent", "valid"),
    [
        (torch.zeros(9, *LATENT_SHAPE).half(), torch.ones(9).bool()),
        (torch.zeros(10, 4, 14, 14).half(), torch.ones(10).bool()),
        (torch.zeros(10, *LATENT_SHAPE), torch.ones(10).bool()),
        (torch.zeros(10, *LATENT_SHAPE).half(), torch.ones(8).bool()),
    ],
)
def test_a_shard_of_something_else_is_refused(
    path: Path, latent: torch.Tensor, valid: torch.Tensor
) -> None:
    save_file({"latent": latent, "valid": valid}, path / "shards" / "000000.safetensors")

    with pytest.raises(ValueError, match=r"must hold latents \(10, 3, 14, 14\) in float16, got"):
        LatentStore(path).read(torch.tensor([0]))


# --- opening ---


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no latent store at \S+: expected a directory"):
        LatentStore(tmp_path)


def test_an_incomplete_store_is_an_error(path: Path) -> None:
    (path / "manifest.json").rename(path / "settings.json")

    with pytest.raises(ValueError, match="is not complete: it has no manifest.json yet"):
        LatentStore(path)


def test_a_newer_format_is_an_error(path: Path) -> None:
    change_manifest(path, format_version=2)

    with pytest.raises(
        ValueError, match="has format version 2, this release reads version 1. Update lerobot_pol"
    ):
        LatentStore(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "manifest.json is not valid JSON"),
        ("\ufffd\x00", "manifest.json is not valid JSON"),
        ('{"format_version": 1}', "manifest.json is damaged"),
        ('{"format_version": 1, "settings": {"dataset": {}}}', "manifest.json is damaged"),
    ],
)
def test_a_damaged_manifest_is_an_error(path: Path, content: str, message: str) -> None:
    (path / "manifest.json").write_text(content)

    with pytest.raises(ValueError, match=message):
        LatentStore(path)


def test_a_manifest_with_unknown_fields_of_shards_is_an_error(path: Path) -> None:
    change_manifest(path, shards=[{"file": "x", "colour": "blue"}])

    with pytest.raises(ValueError, match=r"manifest.json is damaged .*colour"):
        LatentStore(path)


# --- integrity ---


def test_a_sound_store_is_sound(path: Path) -> None:
    store = LatentStore(path)

    store.check_integrity()

    assert store.size_bytes == sum(p.stat().st_size for p in (path / "shards").iterdir())


def test_a_flipped_bit_is_found(path: Path) -> None:
    shard = path / "shards" / "000003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)

    with pytest.raises(ValueError, match="000003.safetensors does not match its checksum. Delete"):
        LatentStore(path).check_integrity()


def test_all_damaged_shards_are_named(path: Path) -> None:
    (path / "shards" / "000000.safetensors").unlink()
    (path / "shards" / "000002.safetensors").write_bytes(b"")

    with pytest.raises(
        ValueError, match=r"000000.safetensors is missing; shards/000002.safetensors does not"
    ):
        LatentStore(path).check_integrity()


# --- settings ---


def test_settings_survive_the_manifest(meta: Meta, path: Path) -> None:
    assert LatentStore(path).settings == store_settings(meta)


def test_every_setting_changes_the_fingerprint(meta: Meta) -> None:
    settings = store_settings(meta)
    changes = {
        "dataset": replace(settings.dataset, fingerprint="0"),
        "episodes": ((0, 0),),
        "image_resolution": (56, 56),
        "latent_shape": (1, 2, 3),
    }
    changed = [replace(settings, **{name: changes.get(name, "other")}) for name in asdict(settings)]

    assert len({s.fingerprint for s in (settings, *changed)}) == len(changed) + 1
    assert [len(settings.differences(other)) for other in changed] == [1] * len(changed)


def test_differences_name_both_sides(meta: Meta) -> None:
    settings = store_settings(meta)

    assert settings.differences(settings) == []
    assert settings.differences(replace(settings, horizon=9)) == [f"horizon: {HORIZON}, not 9"]


def test_a_missing_setting_is_an_error(meta: Meta) -> None:
    values = asdict(store_settings(meta))
    del values["hue"]

    with pytest.raises(KeyError, match="hue"):
        StoreSettings.from_json(values)


# --- helpers ---


def test_complete_stores_beside_a_dataset_are_found(meta: Meta, tmp_path: Path) -> None:
    beside = tmp_path / "meta" / "motion"
    write_store(beside / "b", meta)
    write_store(beside / "a", meta)
    (beside / "begun").mkdir()
    (beside / "begun" / "settings.json").touch()

    assert find_stores(tmp_path) == [beside / "a", beside / "b"]
    assert find_stores(tmp_path / "elsewhere") == []


def test_hashes_tell_tensors_apart(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(3)}
    digest = tensors_sha256(tensors.items())

    assert tensors_sha256(reversed(list(tensors.items()))) == digest
    for name, other in (("a", torch.zeros(3, 2)), ("b", 2 * torch.ones(3)), ("c", torch.ones(3))):
        assert tensors_sha256({**tensors, name: other}.items()) != digest
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x").startswith("ba7816bf")
