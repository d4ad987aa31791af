"""Scaled-dot-product attention in VLM and action expert, in the place of LeRobot's eager one.

LeRobot 0.6.1 calls transformers' `eager_attention_forward` by name in the layers that VLM and
action expert share, and asks transformers for "eager" where one of the two runs alone. Both are met
here, and only here. Nothing global is replaced: the shared layers run as LeRobot's own functions
with another name for their attention, which holds when gradient checkpointing runs them again, and
a part that runs alone is told to use transformers' own sdpa.
tests/parity/test_attention_parity.py fails when LeRobot or transformers change what this leans on.
"""

import functools
import logging
import sys
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma import modeling_gemma

from lerobot_motion.models.autocast import dtype_of_products

if TYPE_CHECKING:
    from lerobot.policies.pi0.modeling_pi0 import PaliGemmaWithExpertModel as _Backbone
else:
    # At run time a plain mixin, whose next class in the MRO is LeRobot's.
    _Backbone = nn.Module

logger = logging.getLogger(__name__)

EAGER, SDPA, AUTO = "eager", "sdpa", "auto"
# Columns that a row of the mask is padded to in memory; CUDA's kernel would copy others.
_ALIGNMENT = 8
# Heads, queries and width of a head on which a device is tried, and how far off it may be.
_TRIAL_SHAPE = (8, 24, 256)
_TRIAL_TOLERANCE = {torch.float32: 1e-2}
_TRIAL_TOLERANCE_HALF = 5e-2


def sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, None]:
    """Attend by transformers' sdpa, with the arguments of its `eager_attention_forward`.

    Args:
        module: The layer's attention.
        query: (B, H, N, D).
        key: (B, G, S, D), where each of G is shared by H / G heads.
        value: (B, G, S, D).
        attention_mask: What is added to the logits, (B, 1, N, S); see `sdpa_mask`.
        scaling: Factor of the logits.
        dropout: Probability that a weight is dropped.

    Returns:
        What was attended to, (B, N, H, D), and None in the place of the weights.
    """
    attended, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask.to(query.dtype), dropout, scaling
    )
    return attended, None


def sdpa_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """LeRobot's additive mask for `sdpa_attention`, made once for all layers.

    Every query that may attend to a key keeps its row. Rows of padding, which may attend to none
    and which none attends to, are opened: LeRobot's constant in all of a row swallows the logarithm
    of the sum in float32, and a fused backward pass with it. Nothing that is used changes.

    Args:
        mask: 0 where a query may attend to a key, hugely negative elsewhere, (B, 1, N, S), float32.
        dtype: Of the queries.

    Returns:
        The mask, (B, 1, N, S), whose rows begin at multiples of eight numbers in memory.
    """
    closed_row = mask.amax(dim=-1, keepdim=True) < 0  # (B, 1, N, 1)
    opened = mask.masked_fill(closed_row, 0.0).to(dtype)
    length = mask.shape[-1]
    return F.pad(opened, (0, -length % _ALIGNMENT))[..., :length]


def rebound(function: Any, **names: Any) -> Callable[..., Any]:
    """A function that runs the same code and finds other things under some global names.

    Args:
        function: A function in Python; it stays as it is.
        **names: What it shall find, by name.
    """
    # Without the module's name, by which torch.compile would look things up in the module itself.
    found = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    copy = FunctionType(
        function.__code__,
        {**found, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__module__ = function.__module__
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def forward_with_sdpa(backbone: Any) -> Callable[..., Any]:
    """LeRobot's `PaliGemmaWithExpertModel.forward`, its shared layers with `sdpa_attention`.

    Args:
        backbone: LeRobot's class (lerobot 0.6.1).
    """
    layer = sys.modules[backbone.__module__].compute_layer_complete
    gemma = SimpleNamespace(
        apply_rotary_pos_emb=modeling_gemma.apply_rotary_pos_emb,
        eager_attention_forward=sdpa_attention,
    )
    return rebound(backbone.forward, compute_layer_complete=rebound(layer, modeling_gemma=gemma))


class ChosenAttention(_Backbone):
    """Mixed into LeRobot's `PaliGemmaWithExpertModel`: the attention that was chosen for it."""

    train_attention = EAGER
    inference_attention = EAGER
    # Made by `forward_with_sdpa` of LeRobot's class.
    forward_with_sdpa: Callable[..., Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run LeRobot's forward pass with the attention chosen; LeRobot passes all by keyword.

        Raises:
            ValueError: If the device cannot compute the attention that was asked for.
        """
        chosen = self.train_attention if self.training else self.inference_attention
        if chosen == EAGER:
            return super().forward(*args, **kwargs)
        mask: Tensor = kwargs["attention_mask"]
        layer = self.paligemma.model.language_model.layers[0]
        dtype = dtype_of_products(mask.device, layer.self_attn.q_proj.weight.dtype)
        if not _runs_sdpa(chosen, mask.device, dtype):
            return super().forward(*args, **kwargs)
        kwargs["attention_mask"] = sdpa_mask(mask, dtype)
        prefix, suffix = kwargs["inputs_embeds"]
        if prefix is not None and suffix is not None:
            return self.forward_with_sdpa(*args, **kwargs)
        alone = self.gemma_expert.model if prefix is None else self.paligemma.model.language_model
        # LeRobot sets it to eager again before each of its own passes.
        alone.config._attn_implementation = SDPA  # noqa: SLF001
        return super().forward(*args, **kwargs)


def _runs_sdpa(chosen: str, device: torch.device, dtype: torch.dtype) -> bool:
    if chosen == AUTO:
        return device.type == "cuda" and sdpa_problem(device, dtype) is None
    require_sdpa(device, dtype)
    return True


def require_sdpa(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse scaled-dot-product attention where the device cannot compute it.

    Args:
        device: Where.
        dtype: Of the queries.

    Raises:
        ValueError: If it cannot.
    """
    problem = sdpa_problem(device, dtype)
    if problem is not None:
        raise ValueError(
            f"attention sdpa cannot be used on {device} in {dtype}: {problem}. Set "
            "--policy.train_attention=eager and --policy.inference_attention=eager."
        )


# Not the cache itself: torch.compile would look through it and warn.
@torch.compiler.assume_constant_result
def sdpa_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Try `sdpa_attention` and its gradients beside eager attention, once on each device.

    Args:
        device: Where.
        dtype: Of the queries.

    Returns:
        What is wrong with it, or None.
    """
    return _tried_sdpa(device, dtype)


@functools.cache
def _tried_sdpa(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type == "meta":  # nothing is computed there, so nothing wrongly
        return None
    tolerance = _TRIAL_TOLERANCE.get(dtype, _TRIAL_TOLERANCE_HALF)
    try:
        off = _largest_difference(device, dtype)
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    else:
        if off <= tolerance:
            return None
        problem = f"it is off by {off:.2g} of the largest value, more than {tolerance:.2g}"
    logger.warning("scaled-dot-product attention fails on %s in %s: %s.", device, dtype, problem)
    return problem


def _largest_difference(device: torch.device, dtype: torch.dtype) -> float:
    """Of outputs and gradients of both attentions, relative to the largest value of each."""
    heads, length, width = _TRIAL_SHAPE
    # A generator of its own: the run's noise must not depend on this.
    generator = torch.Generator().manual_seed(0)
    module: Any = SimpleNamespace(num_key_value_groups=heads, training=False)
    found = []
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        seeds = [torch.randn(1, n, length, width, generator=generator) for n in (heads, 1, 1)]
        mask = torch.full((length, length), torch.finfo(dtype).min).triu(1)[None, None]
        for attend in (modeling_gemma.eager_attention_forward, sdpa_attention):
            query, key, value = (seed.to(device, dtype).requires_grad_() for seed in seeds)
            output, _ = attend(module, query, key, value, mask.to(device, dtype), width**-0.5)
            gradients = torch.autograd.grad(output.square().sum(), (query, key, value))
            found.append([output, *gradients])
    eager, fused = found
    return max(
        ((ours - theirs).abs().max() / theirs.abs().max()).item()
        for ours, theirs in zip(fused, eager, strict=True)
    )
