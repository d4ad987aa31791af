"""The motion head: a diffusion transformer from prefix features to the velocity of a latent.

Sections: construction, initialisation, forward. The transformer is diffusers' PixArt: latent
tokens attend to each other and, by cross-attention, to every token of the VLM's prefix. The tokens
of several views are one sequence: what one camera is about to see informs the others.
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from einops import rearrange, repeat
from torch import Tensor, nn

from lerobot_motion.models.autocast import dtype_of_products
from lerobot_motion.models.view_embedding import ViewPatchEmbed

# PixArt embeds timesteps on the scale of 1000 diffusion steps; t in [0, 1] is stretched to it.
TIMESTEP_SCALE = 1000.0
PATCH_SIZE = 2


class SharedPrefixAttention(AttnProcessor2_0):
    """Cross-attention of K latents to each prefix, whose keys and values are computed once."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Attend with the tokens of all K latents as the queries of one sequence.

        Args:
            attn: Projections of the layer.
            hidden_states: Latent tokens, (B * K, N, D).
            encoder_hidden_states: Prefix features, (B, S, D_prefix).
            *args: Passed on to diffusers.
            **kwargs: Passed on to diffusers.

        Returns:
            What was attended to, (B * K, N, D).
        """
        num_tokens = hidden_states.shape[1]
        queries = rearrange(hidden_states, "(b k) n d -> b (k n) d", b=len(encoder_hidden_states))
        attended: Tensor = super().__call__(attn, queries, encoder_hidden_states, *args, **kwargs)
        return rearrange(attended, "b (k n) d -> (b k) n d", n=num_tokens)


def _computed_once(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    known: Tensor | None = None

    def remembered(prefix: Tensor) -> Tensor:
        nonlocal known
        if known is None:
            known = function(prefix)
        return known

    return remembered


class MotionHead(nn.Module):
    """Predicts the flow-matching velocity of a motion latent (arXiv 2512.18007, 3.2)."""

    # Optimizer steps that this head has been trained for: drives the warm-up, and travels with the
    # head's weights so that a resume continues it.
    num_updates: Tensor
    # 0 for a view without a camera, else 1, (V,); None if every view has one.
    has_camera: Tensor | None

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        prefix_dim: int,
        num_layers: int = 6,
        num_heads: int = 32,
        dim: int = 2048,
        num_views: int = 1,
        absent_views: Collection[int] = (),
    ) -> None:
        """Build the head; its first prediction is exactly zero.

        Args:
            latent_shape: Channels, height and width of a latent.
            prefix_dim: Width of the VLM's prefix features.
            num_layers: Transformer blocks.
            num_heads: Attention heads.
            dim: Width of the transformer.
            num_views: Views that it predicts together.
            absent_views: Those of them that have a place in the head but no camera: the others do
                not attend to them.

        Raises:
            ValueError: If `dim` is not a multiple of `num_heads`, or the latent is not square with
                an even side.
        """
        super().__init__()
        channels, height, width = latent_shape
        if dim % num_heads:
            raise ValueError(
                f"motion_head_dim must be a multiple of motion_head_heads, got {dim} and "
                f"{num_heads}."
            )
        if height != width or height % PATCH_SIZE:
            raise ValueError(
                f"the latent must be square with a side divisible by {PATCH_SIZE}, got "
                f"{height}x{width}. Change image_resolution."
            )
        self.latent_shape = (channels, height, width)
        self.num_views = num_views
        self.absent_views = sorted(absent_views)
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=num_heads,
            attention_head_dim=dim // num_heads,
            in_channels=channels,
            out_channels=channels,
            num_layers=num_layers,
            cross_attention_dim=prefix_dim,
            sample_size=height,
            patch_size=PATCH_SIZE,
            caption_channels=None,
            use_additional_conditions=False,
        )
        if num_views > 1:
            # Nothing of it is there with one view: neither a weight nor a random number.
            self.transformer.pos_embed = ViewPatchEmbed(self.transformer.pos_embed, num_views)
        there = [float(view not in self.absent_views) for view in range(num_views)]
        has_camera = torch.tensor(there) if self.absent_views else None
        self.register_buffer("has_camera", has_camera, persistent=False)
        for block in self.transformer.transformer_blocks:
            block.attn2.set_processor(SharedPrefixAttention())
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self._zero_gates_and_output()

    def _zero_gates_and_output(self) -> None:
        """Start as the identity with zero output (adaLN-Zero, Peebles and Xie 2023, 3.2).

        PixArt leaves this to its training script. Of the six rows of modulation (shift, scale, gate
        of attention; shift, scale, gate of the MLP) rows 2 and 5 are the gates.
        """
        transformer = self.transformer
        dim = transformer.inner_dim
        with torch.no_grad():
            for row in (2, 5):
                transformer.adaln_single.linear.weight[row * dim : (row + 1) * dim].zero_()
                transformer.adaln_single.linear.bias[row * dim : (row + 1) * dim].zero_()
                for block in transformer.transformer_blocks:
                    block.scale_shift_table[row].zero_()
            transformer.proj_out.weight.zero_()
            transformer.proj_out.bias.zero_()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks' activations in the backward pass to save memory."""
        self.transformer.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        """Keep the blocks' activations for the backward pass."""
        self.transformer.disable_gradient_checkpointing()

    def blank_absent_views(self, latent: Tensor) -> Tensor:
        """Put NaN where a view has no camera: nothing was ever learned of it.

        Args:
            latent: Latents, (B, C, h, w) or (B, V, C, h, w).
        """
        if not self.absent_views:
            return latent
        index = torch.tensor(self.absent_views, device=latent.device)
        return latent.index_fill(1, index, math.nan)

    def _token_mask(self, batch_size: int) -> Tensor | None:
        """1 for the tokens that are attended to, (B, V N); None for all."""
        if self.has_camera is None:
            return None
        num_tokens = (self.latent_shape[1] // PATCH_SIZE) * (self.latent_shape[2] // PATCH_SIZE)
        return repeat(self.has_camera, "v -> b (v n)", b=batch_size, n=num_tokens)

    @contextmanager
    def remembering_prefix(self) -> Iterator[None]:
        """Within this context cross-attention computes the keys and values of the prefix once.

        For imagining, where every Euler step asks for the same prefix. A compiled head is left as
        it is: it would be compiled again for every prefix.
        """
        compiled = self._compiled_call_impl is not None
        attentions = [block.attn2 for block in self.transformer.transformer_blocks]
        projections = [linear for attn in attentions for linear in (attn.to_k, attn.to_v)]
        try:
            for linear in projections if not compiled else []:
                linear.forward = _computed_once(linear.forward)
            yield
        finally:
            for linear in projections:
                vars(linear).pop("forward", None)

    def forward(self, x_t: Tensor, time: Tensor, prefix: Tensor, prefix_mask: Tensor) -> Tensor:
        """Predict the velocity v_t of a noisy latent, or of K latents for each prefix.

        Args:
            x_t: Noisy latents, (B * K, C, h, w), of several views (B * K, V, C, h, w); those of one
                prefix lie beside each other.
            time: Flow-matching time, (B * K,); 1 is noise, 0 is data.
            prefix: Features of the VLM's prefix tokens, (B, S, D_prefix).
            prefix_mask: True where a prefix token is not padding, (B, S).

        Returns:
            Velocity, shaped as `x_t`, float32.
        """
        dtype = self.transformer.proj_out.weight.dtype
        if self.num_views > 1:
            x_t = rearrange(x_t, "b v c h w -> b c (v h) w")
        # Under autocast every projection of a float32 prefix would keep a copy of its own in the
        # lower precision for the backward pass.
        prefix = prefix.to(dtype_of_products(prefix.device, dtype))  # (B, S, D_prefix)
        velocity: Tensor = self.transformer(
            x_t.to(dtype),  # (B * K, C, V h, w)
            attention_mask=self._token_mask(len(x_t)),  # (B * K, V N)
            encoder_hidden_states=prefix,  # (B, S, D_prefix)
            encoder_attention_mask=prefix_mask,  # (B, S)
            timestep=time * TIMESTEP_SCALE,  # (B * K,)
            return_dict=False,
        )[0]  # (B * K, C, V h, w)
        if self.num_views > 1:
            velocity = rearrange(velocity, "b c (v h) w -> b v c h w", v=self.num_views)
        return velocity.float()  # (B * K, C, h, w) or (B * K, V, C, h, w)
