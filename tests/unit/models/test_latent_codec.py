import hashlib
import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from tiny import write_autoencoder
from torch import Tensor

from lerobot_motion.models.latent_codec import (
    FLOW_VAE_DIR,
    LatentSpec,
    latent_codec_sha256,
    load_latent_codec,
    read_latent_spec,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


def smooth_images(batch_size: int = 2, side: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch_size, 3, side // 32, side // 32, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bilinear")


# --- pool ---


def test_pool_averages_blocks() -> None:
    image = smooth_images()

    latent = load_latent_codec("pool").encode(image)

    block = image[1, 2, 8:16, 24:32].mean()
    assert latent.shape == (2, 3, 8, 8)
    torch.testing.assert_close(latent[1, 2, 1, 3], (block - 1.0) * 6.5)


def test_pool_gives_smooth_images_back() -> None:
    image = smooth_images()
    codec = load_latent_codec("pool")

    decoded = codec.decode(codec.encode(image))

    assert decoded.shape == image.shape
    assert (decoded - image).abs().mean() < 0.03


def test_pool_encodes_white_to_zero_and_back() -> None:
    codec = load_latent_codec("pool")
    white = torch.ones(1, 3, 32, 48)

    assert torch.equal(codec.encode(white), torch.zeros(1, 3, 4, 6))
    assert torch.equal(codec.decode(torch.zeros(1, 3, 4, 6)), white)


# --- diffusers' autoencoders ---


def test_kl_encodes_to_the_scaled_mean_of_the_posterior(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)
    image = smooth_images()
    with torch.no_grad():
        posterior = AutoencoderKL.from_pretrained(path).encode(image).latent_dist

    latent = load_latent_codec(str(path)).encode(image)

    assert posterior.std.max() > 1e-3  # so that a sample would differ
    torch.testing.assert_close(latent, posterior.mean * 0.5, rtol=0, atol=1e-5)


def test_tiny_encodes_to_its_latents(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path, "tiny")
    image = smooth_images()
    with torch.no_grad():
        expected = AutoencoderTiny.from_pretrained(path).encode(image).latents

    latent = load_latent_codec(str(path)).encode(image)

    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_decoding_undoes_the_scale(tmp_path: Path, kind: str) -> None:
    path = write_autoencoder(tmp_path, kind)
    autoencoder_class = AutoencoderKL if kind == "kl" else AutoencoderTiny
    unscaled = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = autoencoder_class.from_pretrained(path).decode(unscaled).sample.clamp(-1, 1)

    image = load_latent_codec(str(path)).decode(unscaled * (0.5 if kind == "kl" else 1.0))

    assert image.shape == (2, 3, 64, 64)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_the_shift_of_a_vae_is_applied_both_ways(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)
    image = smooth_images()
    plain = load_latent_codec(str(path)).encode(image)
    decoded = load_latent_codec(str(path)).decode(plain)
    change_config(path, shift_factor=0.25)
    load_latent_codec.cache_clear()

    codec = load_latent_codec(str(path))

    torch.testing.assert_close(codec.encode(image), plain - 0.25 * 0.5)
    torch.testing.assert_close(codec.decode(codec.encode(image)), decoded)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_an_autoencoder_is_frozen(tmp_path: Path, kind: str) -> None:
    codec = load_latent_codec(str(write_autoencoder(tmp_path, kind)))
    image = smooth_images().requires_grad_()

    latent = codec.encode(image)

    assert not codec.autoencoder.training
    assert not any(p.requires_grad for p in codec.autoencoder.parameters())
    assert not latent.requires_grad
    assert latent.dtype == torch.float32


def test_the_callers_autocast_does_not_reach_the_vae(tmp_path: Path) -> None:
    codec = load_latent_codec(str(write_autoencoder(tmp_path)))
    image = smooth_images()
    latent = codec.encode(image)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(image), latent)
        decoded = codec.decode(latent)

    assert torch.equal(decoded, codec.decode(latent))


def test_the_same_arguments_give_the_same_codec() -> None:
    assert load_latent_codec("pool") is load_latent_codec("pool")


# --- the shape of latents ---


@pytest.mark.parametrize("name", ["pool", "kl", "tiny"])
@pytest.mark.parametrize("resolution", [(64, 64), (32, 64)])
def test_the_spec_agrees_with_what_is_encoded(
    tmp_path: Path, name: str, resolution: tuple[int, int]
) -> None:
    path = name if name == "pool" else str(write_autoencoder(tmp_path, name))

    spec = read_latent_spec(path)

    codec = load_latent_codec(path)
    assert codec.spec == spec
    latent = codec.encode(torch.zeros(1, 3, *resolution))
    assert tuple(latent.shape[1:]) == spec.latent_shape(resolution)


def test_the_spec_is_read_without_weights(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)
    (path / WEIGHTS).unlink()

    assert read_latent_spec(str(path)) == LatentSpec(channels=4, downsampling=8)


@pytest.mark.parametrize("resolution", [(220, 224), (224, 220)])
def test_the_resolution_must_be_divisible(resolution: tuple[int, int]) -> None:
    message = (
        r"image_resolution must be divisible by the VAE's downsampling of 8, got "
        rf"{resolution[0]}x{resolution[1]}\."
    )
    with pytest.raises(ValueError, match=message):
        read_latent_spec("pool").latent_shape(resolution)


# --- what cannot be loaded ---


def change_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("read", [read_latent_spec, load_latent_codec])
def test_a_missing_vae_is_named(read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = r"motion_vae: no VAE could be read from the hub id or local directory 'nobody/vae'"

    with pytest.raises(OSError, match=message):
        read("nobody/vae")


@pytest.mark.parametrize("read", [read_latent_spec, load_latent_codec])
def test_a_directory_without_a_vae_is_named(read: object, tmp_path: Path) -> None:
    message = rf"motion_vae: no VAE could be read from the local directory '{tmp_path}'"

    with pytest.raises(OSError, match=message):
        read(str(tmp_path))


@pytest.mark.parametrize("read", [read_latent_spec, load_latent_codec])
@pytest.mark.parametrize("name", ["VQModel", None])
def test_another_class_is_refused(read: object, name: str | None, tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)
    change_config(path, _class_name=name)
    message = rf"is a {name!r}; expected one of \['AutoencoderKL', 'AutoencoderTiny'\]"

    with pytest.raises(ValueError, match=message):
        read(str(path))


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)
    (path / WEIGHTS).unlink()

    with pytest.raises(OSError, match=r"motion_vae: no VAE could be read from the local dir"):
        load_latent_codec(str(path))


@pytest.mark.parametrize("kind", ["kl", "tiny"])
@pytest.mark.parametrize("keep", [0, 100, -100])
def test_truncated_weights_are_an_error(tmp_path: Path, kind: str, keep: int) -> None:
    path = write_autoencoder(tmp_path, kind)
    weights = path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:keep])

    with pytest.raises(OSError, match=r"motion_vae: no VAE could be read from the local dir"):
        load_latent_codec(str(path))


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)
    state = load_file(path / WEIGHTS)
    del state["encoder.conv_in.weight"]
    save_file(state, path / WEIGHTS, metadata={"format": "pt"})

    with pytest.raises((OSError, ValueError), match=r"motion_vae.*encoder\.conv_in\.weight"):
        load_latent_codec(str(path))


def test_a_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)
    state = load_file(path / WEIGHTS)
    state["encoder.conv_in.weight"] = torch.zeros(16, 3, 3, 3)
    save_file(state, path / WEIGHTS, metadata={"format": "pt"})

    with pytest.raises((OSError, ValueError), match=r"motion_vae.*encoder\.conv_in\.weight"):
        load_latent_codec(str(path))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)
    torch.save(load_file(path / WEIGHTS), path / "diffusion_pytorch_model.bin")
    (path / WEIGHTS).unlink()

    with pytest.raises(OSError, match=r"motion_vae: no VAE could be read from the local dir"):
        load_latent_codec(str(path))


# --- hash of the weights ---


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_hash_is_that_of_the_weights_file(tmp_path: Path) -> None:
    path = write_autoencoder(tmp_path)

    assert latent_codec_sha256(str(path)) == sha256_of(path / WEIGHTS)
    assert latent_codec_sha256("flow") == sha256_of(FLOW_VAE_DIR / WEIGHTS)


def test_weights_in_the_hubs_cache_have_a_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--vae"
    write_autoencoder(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")

    expected = sha256_of(repository / "snapshots" / "abc" / WEIGHTS)
    assert latent_codec_sha256("someone/vae") == expected
    assert latent_codec_sha256("someone/other") is None


def test_what_has_no_weights_at_hand_has_no_hash(tmp_path: Path) -> None:
    assert latent_codec_sha256("pool") is None
    assert latent_codec_sha256(str(tmp_path)) is None
    assert latent_codec_sha256(str(tmp_path / "nowhere")) is None
