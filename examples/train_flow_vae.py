"""Train a small `AutoencoderKL` on synthetic motion images, and measure it beside pooling.

Train (under an hour on one CPU core), then measure on a data set:

    python examples/train_flow_vae.py --output_dir=outputs/flow_vae
    python examples/train_flow_vae.py --output_dir=outputs/flow_vae \
        --eval_dataset_root=path/to/dataset --eval_camera=observation.images.top
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import draccus
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lerobot_motion.flow.estimator import load_flow_estimator
from lerobot_motion.flow.letterbox import content_mask, letterbox
from lerobot_motion.flow.motion_image import flow_to_motion_image, motion_image_to_flow
from lerobot_motion.flow.synthetic import MAX_MAGNITUDE, synthetic_flow
from lerobot_motion.models.latent_codec import FlowVaeCodec, LatentCodec, PoolCodec

PATCH = FlowVaeCodec.patch
LATENTS = 4
RESOLUTION = (224, 224)
# The stream's first channels: the latents, their negatives, and a constant and its negative.
CARRIED = 2 * LATENTS + 2
# Scale of the carried latents, and the constant: large beside what training adds at first.
STREAM_SCALE = 4.0
CONSTANT = 32.0
# Of the squared error, beside the absolute one.
SQUARED_WEIGHT = 10.0


@dataclass
class FlowVaeConfig:
    """Training, or (with `eval_flow` or `eval_dataset_root`) evaluation, of a flow VAE.

    Attributes:
        output_dir: Where the autoencoder is written to, or read from for evaluation.
        resume: Start from the weights in `output_dir` (with a new learning rate schedule).
        steps: Optimisation steps.
        batch_size: Crops per step.
        crop: Side of the crops, pixels; a multiple of 8.
        lr: Peak learning rate, after a warm-up and before a cosine to 0.
        width: Channels, even, at least 32.
        ema_decay: Decay of the averaged weights, which are the ones saved.
        latent_noise: Noise on the latents in training, in their standard deviations, so that
            nearby latents decode to nearby images.
        seed: Seed of weights and scenes.
        device: Device of training and evaluation.
        eval_flow: Safetensors file with a tensor `flow`, (N, 2, H, W) in pixels.
        eval_dataset_root: Local LeRobotDataset whose flow is estimated instead.
        eval_camera: Its camera, e.g. observation.images.top.
        eval_horizon: Frames between the two images of a pair.
        eval_pairs: Random pairs of frames.
        flow_weights: RAFT-large weights; None downloads torchvision's.
        record_scale: In an evaluation, write the shift and scale that standardise the latents of
            what is evaluated on into config.json, in place of those of synthetic motion.
    """

    output_dir: Path
    resume: bool = False
    steps: int = 7000
    batch_size: int = 8
    crop: int = 112
    lr: float = 3e-4
    width: int = 96
    ema_decay: float = 0.998
    latent_noise: float = 0.01
    seed: int = 0
    device: str = "cpu"
    eval_flow: Path | None = None
    eval_dataset_root: Path | None = None
    eval_camera: str | None = None
    eval_horizon: int = 30
    eval_pairs: int = 146
    flow_weights: str | None = None
    record_scale: bool = False


def to_patches(image: Tensor) -> Tensor:
    """Patches of motion images, white at 0: (B, 3, H, W) -> (B, 3 * 8 * 8, H / 8, W / 8)."""
    return F.pixel_unshuffle(image - 1.0, PATCH)


def build_autoencoder(width: int, image: Tensor) -> AutoencoderKL:
    """Build an AutoencoderKL over patches that starts as the best linear codec.

    Args:
        width: Channels, even, at least 32.
        image: Motion images to fit the linear codec to, (B, 3, H, W).

    Raises:
        ValueError: If `width` is below 32 or odd.
    """
    if width < 32 or width % 2:
        raise ValueError(f"width must be even and at least 32, got {width}.")
    autoencoder = AutoencoderKL(
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(width,),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=2,
        sample_size=RESOLUTION[0] // PATCH,
        mid_block_add_attention=False,
    )
    _start_linear(autoencoder, *fit_linear_codec(image))
    return autoencoder


def fit_linear_codec(image: Tensor) -> tuple[Tensor, Tensor]:
    """Principal components of patches, and the least-squares decoder from 3x3 latents.

    Returns:
        Encoder, (4, 192), and convolution kernel of the decoder, (192, 4, 3, 3).
    """
    patches = to_patches(image)
    flat = patches.transpose(0, 1).flatten(1).double()  # (192, N)
    vectors = torch.linalg.eigh(flat @ flat.T).eigenvectors  # of ascending variance
    encoder = vectors[:, -LATENTS:].T.float() / PATCH  # latents as large as averages
    latent = torch.einsum("kc,bchw->bkhw", encoder, patches)
    inputs = F.unfold(latent, 3, padding=1).transpose(0, 1).flatten(1).double()  # (36, N)
    gram = inputs @ inputs.T
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    decoder = torch.linalg.solve(gram + ridge, inputs @ flat.T).T
    return encoder, decoder.float().view(-1, LATENTS, 3, 3)


@torch.no_grad()
def _start_linear(autoencoder: AutoencoderKL, encoder: Tensor, decoder: Tensor) -> None:
    """Carry the latents of a linear codec through both residual streams; all else adds nothing.

    Trained from scratch, the group norms, which forget absolute levels, take most of the time to
    work around. A constant larger than all else pins their statistics instead; and
    silu(x) - silu(-x) = x takes the latents through the activation before each output.
    """
    for module in autoencoder.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            _restore_scale(module.norm1)
    identity = F.pad(torch.eye(LATENTS)[..., None, None], (1, 1, 1, 1)).to(encoder)
    _enter_stream(autoencoder.encoder.conv_in, F.pad(encoder[..., None, None], (1, 1, 1, 1)))
    # The posterior is as good as its mean: its log-variance is a constant, and is not trained.
    log_variance = torch.full((LATENTS,), -20.0)
    _leave_stream(autoencoder.encoder, identity, torch.cat([torch.zeros(LATENTS), log_variance]))
    _enter_stream(autoencoder.decoder.conv_in, identity)
    # Back from patches in which white is 0.
    _leave_stream(autoencoder.decoder, decoder, torch.ones(len(decoder)))
    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


def _enter_stream(conv: nn.Conv2d, kernel: Tensor) -> None:
    conv.weight[:CARRIED] = 0.0
    conv.weight[: CARRIED - 2] = STREAM_SCALE * torch.cat([kernel, -kernel])
    bias = conv.get_parameter("bias")
    bias[:CARRIED] = 0.0
    bias[CARRIED - 2], bias[CARRIED - 1] = CONSTANT, -CONSTANT


def _restore_scale(norm: nn.GroupNorm) -> None:
    """Undo the scale of the stream, and that which the constants give the norm's first group."""
    group = norm.num_channels // norm.num_groups
    norm.weight[: CARRIED - 2] = CONSTANT / STREAM_SCALE * math.sqrt(2.0 / group)
    norm.weight[CARRIED - 2 : CARRIED] = 0.0


def _leave_stream(part: Encoder | Decoder, kernel: Tensor, bias: Tensor) -> None:
    _restore_scale(part.conv_norm_out)
    nn.init.zeros_(part.conv_out.weight)
    part.conv_out.bias = nn.Parameter(bias)
    part.conv_out.weight[: len(kernel), : CARRIED - 2] = torch.cat([kernel, -kernel], dim=1)


def train(config: FlowVaeConfig) -> None:
    """Train on crops of synthetic motion; the averaged weights are saved as training goes."""
    torch.manual_seed(config.seed)
    images = _motion_images(config)
    if config.resume:
        autoencoder = AutoencoderKL.from_pretrained(config.output_dir).train()
    else:
        first = torch.cat([next(images) for _ in range(32)])
        autoencoder = build_autoencoder(config.width, first.cpu())
    # Channels last: twice as fast on a CPU.
    autoencoder = autoencoder.to(config.device, memory_format=torch.channels_last)
    average = copy.deepcopy(autoencoder).requires_grad_(requires_grad=False)
    optimizer = torch.optim.Adam(_parameter_groups(autoencoder, config.lr))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / 200) * _cosine(step / config.steps)
    )
    losses, start = [], time.perf_counter()
    for step, image in zip(range(1, config.steps + 1), images, strict=False):
        loss = _loss(autoencoder, image, config)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _update_average(average, autoencoder, min(config.ema_decay, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if step % 250 == 0 or step == config.steps:
            seconds = time.perf_counter() - start
            print(f"step {step}: loss {sum(losses) / len(losses):.4f}, {seconds:.0f} s", flush=True)
            losses.clear()
            save(average, config)


def _parameter_groups(autoencoder: AutoencoderKL, lr: float) -> list[dict[str, object]]:
    """The output layers, whose every step moves all latents or all pixels, learn slower."""
    parts = (autoencoder.encoder, autoencoder.decoder)
    outputs = [parameter for part in parts for parameter in part.conv_out.parameters()]
    slow = {id(parameter) for parameter in outputs}
    others = [p for p in autoencoder.parameters() if id(p) not in slow]
    return [{"params": others, "lr": lr}, {"params": outputs, "lr": 0.2 * lr}]


def _cosine(progress: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * progress)


def _motion_images(config: FlowVaeConfig) -> Iterator[Tensor]:
    generator = torch.Generator(config.device).manual_seed(config.seed)
    while True:
        flow = synthetic_flow(config.batch_size, (config.crop, config.crop), generator)
        yield flow_to_motion_image(flow, MAX_MAGNITUDE)


def _loss(autoencoder: AutoencoderKL, image: Tensor, config: FlowVaeConfig) -> Tensor:
    latent = autoencoder.encode(to_patches(image)).latent_dist.mode()
    noise = config.latent_noise * latent.detach().std() * torch.randn_like(latent)
    decoded = F.pixel_shuffle(autoencoder.decode(latent + noise).sample, PATCH)
    return F.l1_loss(decoded, image) + SQUARED_WEIGHT * F.mse_loss(decoded, image)


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1.0 - decay)


def save(autoencoder: AutoencoderKL, config: FlowVaeConfig) -> None:
    """Write the weights, with the shift and scale that standardise synthetic motion's latents."""
    generator = torch.Generator(config.device).manual_seed(config.seed + 1)
    flow = synthetic_flow(64, RESOLUTION, generator)
    record_scale(autoencoder, flow_to_motion_image(flow, MAX_MAGNITUDE))
    autoencoder.save_pretrained(config.output_dir)


@torch.no_grad()
def record_scale(autoencoder: AutoencoderKL, images: Tensor) -> None:
    """Set shift and scale so that the latents of these motion images have mean 0, variance 1."""
    parts = torch.split(to_patches(images.to(autoencoder.device)), 8)
    latent = torch.cat([autoencoder.encode(part).latent_dist.mode() for part in parts])
    autoencoder.register_to_config(
        shift_factor=latent.mean().item(), scaling_factor=1.0 / latent.std().item()
    )


def read_flow(config: FlowVaeConfig) -> Tensor:
    """Read the flow of `eval_flow`, or estimate that of random pairs of a data set.

    Returns:
        Flow in pixels, (N, 2, H, W), on the CPU; 0 in the padding of letterboxed images.

    Raises:
        ValueError: If a data set is given without its camera.
    """
    if config.eval_flow is not None:
        return load_file(config.eval_flow)["flow"]
    if config.eval_camera is None:
        raise ValueError("eval_dataset_root needs eval_camera, e.g. observation.images.top.")
    dataset = LeRobotDataset("local/eval", root=config.eval_dataset_root)
    estimator = load_flow_estimator("raft_large", config.flow_weights, config.device)
    flows = []
    for start in _pair_starts(dataset, config):
        pair = [dataset[start + k][config.eval_camera] for k in (0, config.eval_horizon)]
        first, second = (letterbox(image[None], RESOLUTION).to(config.device) for image in pair)
        flows.append(estimator(first, second).cpu() * content_mask(pair[0].shape[-2:], RESOLUTION))
    return torch.cat(flows)


def _pair_starts(dataset: LeRobotDataset, config: FlowVaeConfig) -> list[int]:
    """Random frames whose partner is in the same episode."""
    episodes = torch.as_tensor(dataset.hf_dataset["episode_index"])
    same = episodes[: -config.eval_horizon] == episodes[config.eval_horizon :]
    starts = same.nonzero().flatten()
    generator = torch.Generator().manual_seed(config.seed)
    chosen = starts[torch.randperm(len(starts), generator=generator)[: config.eval_pairs]]
    return [int(start) for start in chosen.sort().values]


@torch.no_grad()
def measure(codec: LatentCodec, flow: Tensor, device: str) -> str:
    """One line: mean end-point error, PSNR of the motion images, latents, cost of encoding one.

    The error is against the flow before it was drawn, so it includes what saturation clips. PSNR
    is that of the mean squared error over all images, whose values span 2.
    """
    errors, squares, latents = [], [], []
    for part in torch.split(flow, 8):
        target = part.to(device)
        image = flow_to_motion_image(target, MAX_MAGNITUDE)
        latents.append(codec.encode(image))
        decoded = codec.decode(latents[-1])
        squares.append((decoded - image).square().mean(dim=(1, 2, 3)))
        error = motion_image_to_flow(decoded, MAX_MAGNITUDE) - target
        errors.append(error.norm(dim=1).mean(dim=(1, 2)))
    psnr = 10.0 * torch.log10(4.0 / torch.cat(squares).mean())
    with FlopCounterMode(display=False) as counter:
        codec.encode(torch.ones(1, 3, *RESOLUTION, device=device))
    return (
        f"end-point error {torch.cat(errors).mean():.3f} px, PSNR {psnr:.2f} dB, "
        f"latent mean {torch.cat(latents).mean():.3f} std {torch.cat(latents).std():.3f}, "
        f"encoding {counter.get_total_flops() / 1e9:.2f} GFLOP"
    )


def evaluate(config: FlowVaeConfig) -> None:
    """Print the figures of pooling and of the VAE in `output_dir` side by side."""
    flow = read_flow(config)
    autoencoder = AutoencoderKL.from_pretrained(config.output_dir).to(config.device)
    if config.record_scale:
        record_scale(autoencoder, flow_to_motion_image(flow, MAX_MAGNITUDE))
        autoencoder.save_config(config.output_dir)
    print(f"{len(flow)} images, no motion: end-point error {flow.norm(dim=1).mean():.3f} px")
    codecs: dict[str, LatentCodec] = {"pool": PoolCodec(), "flow": FlowVaeCodec(autoencoder)}
    for name, codec in codecs.items():
        print(f"{name}: {measure(codec, flow, config.device)}")


@draccus.wrap()
def main(config: FlowVaeConfig) -> None:
    """Train, or evaluate where something to evaluate on is given."""
    if config.eval_flow is not None or config.eval_dataset_root is not None:
        evaluate(config)
    else:
        train(config)


if __name__ == "__main__":
    main()
