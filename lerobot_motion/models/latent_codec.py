"""Frozen codecs between motion images and the latents that the motion head learns."""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from einops import reduce
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import Tensor

logger = logging.getLogger(__name__)

_AUTOENCODERS = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
EMBEDDED_CODECS = ("pool",)


@dataclass(frozen=True)
class LatentSpec:
    """What a codec makes of an image: channels, and how much smaller a side gets."""

    channels: int
    downsampling: int

    def latent_shape(self, resolution: tuple[int, int]) -> tuple[int, int, int]:
        """Shape (C, h, w) of the latent of an image.

        Args:
            resolution: Height and width of the image, in pixels.

        Raises:
            ValueError: If a side is not divisible by the downsampling.
        """
        height, width = resolution
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(
                f"image_resolution must be divisible by the VAE's downsampling of "
                f"{self.downsampling}, got {height}x{width}."
            )
        return self.channels, height // self.downsampling, width // self.downsampling


class LatentCodec(ABC):
    """Encodes images in [-1, 1] to latents of about unit variance, and back."""

    spec: LatentSpec

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Encode images.

        Args:
            image: Images in [-1, 1], (B, 3, H, W).

        Returns:
            Latents, (B, C, h, w), float32.
        """

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents.

        Args:
            latent: Latents, (B, C, h, w).

        Returns:
            Images clipped to [-1, 1], (B, 3, H, W), float32.
        """


class PoolCodec(LatentCodec):
    """Averages over 8x8 blocks, decoded by bilinear upsampling: no training, no weights.

    White, where nothing moves, is the latent 0.
    """

    spec = LatentSpec(channels=3, downsampling=8)
    # Makes the variance of the latents of synthetic layered motion 1.
    scaling_factor = 2.5
    shift_factor = 1.0

    def encode(self, image: Tensor) -> Tensor:
        """Average and scale; see `LatentCodec.encode`."""
        side = self.spec.downsampling
        pooled = reduce(image.float(), "b c (h i) (w j) -> b c h w", "mean", i=side, j=side)
        return (pooled - self.shift_factor) * self.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Unscale and upsample; see `LatentCodec.decode`."""
        pooled = latent.float() / self.scaling_factor + self.shift_factor
        image = F.interpolate(
            pooled, scale_factor=self.spec.downsampling, mode="bilinear", align_corners=False
        )
        return image.clamp(-1.0, 1.0)


class AutoencoderCodec(LatentCodec):
    """A frozen diffusers autoencoder: the posterior's mean, scaled as its config says."""

    def __init__(self, autoencoder: AutoencoderKL | AutoencoderTiny) -> None:
        """Freeze the autoencoder.

        Args:
            autoencoder: A loaded `AutoencoderKL` or `AutoencoderTiny`.
        """
        self.autoencoder = autoencoder.eval().requires_grad_(requires_grad=False)
        config: dict[str, Any] = {**autoencoder.config, "_class_name": type(autoencoder).__name__}
        self.spec = _autoencoder_spec(config)
        self.scaling_factor = float(autoencoder.config.scaling_factor)
        self.shift_factor = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Encode to the posterior's mean; see `LatentCodec.encode`."""
        # SDXL's VAE overflows in fp16: the caller's autocast must not reach it.
        with torch.autocast(device_type=image.device.type, enabled=False):
            encoded = self.autoencoder.encode(image.to(self.autoencoder.dtype))
        posterior = getattr(encoded, "latent_dist", None)
        latent: Tensor = posterior.mode() if posterior is not None else encoded.latents
        return (latent.float() - self.shift_factor) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Decode scaled latents; see `LatentCodec.decode`."""
        unscaled = latent.float() / self.scaling_factor + self.shift_factor
        with torch.autocast(device_type=latent.device.type, enabled=False):
            image: Tensor = self.autoencoder.decode(unscaled.to(self.autoencoder.dtype)).sample
        return image.float().clamp(-1.0, 1.0)


def read_latent_spec(name: str) -> LatentSpec:
    """Read what a codec's latents look like, without loading its weights.

    Args:
        name: One of `EMBEDDED_CODECS`, a hub id, or a local directory in diffusers' format.

    Raises:
        OSError: If the VAE's config.json cannot be found or read.
        ValueError: If it is not an `AutoencoderKL` or `AutoencoderTiny`.
    """
    if name == "pool":
        return PoolCodec.spec
    return _autoencoder_spec(_read_autoencoder_config(name))


@lru_cache(maxsize=4)
def load_latent_codec(name: str, device: str = "cpu") -> LatentCodec:
    """Load a codec; the same arguments return the same object.

    Args:
        name: One of `EMBEDDED_CODECS`, a hub id, or a local directory in diffusers' format.
        device: Device of the weights.

    Raises:
        OSError: If the VAE cannot be found or read.
        ValueError: If it is not an `AutoencoderKL` or `AutoencoderTiny`.
    """
    if name == "pool":
        return PoolCodec()
    autoencoder_class = _AUTOENCODERS[_read_autoencoder_config(name)["_class_name"]]
    # bf16 has fp32's range and half its cost; on a CPU it is slower than fp32.
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    try:
        autoencoder = autoencoder_class.from_pretrained(
            name, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, HfHubHTTPError, SafetensorError) as error:
        raise OSError(_unreadable(name, error)) from error
    return AutoencoderCodec(autoencoder.to(device))


def _read_autoencoder_config(name: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = AutoencoderKL.load_config(name)
    except (OSError, HfHubHTTPError) as error:
        raise OSError(_unreadable(name, error)) from error
    if config.get("_class_name") not in _AUTOENCODERS:
        raise ValueError(
            f"motion_vae: {name} is a {config.get('_class_name')!r}; expected one of "
            f"{sorted(_AUTOENCODERS)}."
        )
    return config


def _autoencoder_spec(config: dict[str, Any]) -> LatentSpec:
    """Channels and downsampling: every stage of the encoder but the last halves the side."""
    tiny = config["_class_name"] == "AutoencoderTiny"
    stages = config["encoder_block_out_channels" if tiny else "block_out_channels"]
    return LatentSpec(channels=config["latent_channels"], downsampling=2 ** (len(stages) - 1))


def _unreadable(name: str, error: Exception) -> str:
    where = "local directory" if Path(name).exists() else "hub id or local directory"
    return (
        f"motion_vae: no VAE could be read from the {where} {name!r} ({error}). Pass a directory "
        "in diffusers' format (config.json and safetensors), or --policy.motion_vae=pool, which "
        "needs none."
    )
