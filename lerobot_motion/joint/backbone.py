"""LeRobot's pi0 network with its VLM output kept, and a tiny version of it for CPUs.

LeRobot 0.6.1 computes the VLM's output in every forward pass and discards it, and builds its
network from names of its own module. Both are met here, and only here: subclasses that keep the
output, put in the place of those names while a policy is built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from torch import Tensor, nn

from lerobot_motion.joint.attention import ChosenAttention, forward_with_sdpa
from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.joint.padding import without_padding
from lerobot_motion.models.motion_head import MotionHead
from lerobot_motion.steps import ByteTokenizerStep

if TYPE_CHECKING:
    from lerobot.policies.pi0.modeling_pi0 import PaliGemmaWithExpertModel as _Backbone
    from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch as _Network
else:
    # At run time plain mixins, whose next class in the MRO is LeRobot's.
    _Backbone = _Network = nn.Module


# Inductor's modes for the motion head, by LeRobot's compile_mode: a CUDA graph owns its outputs,
# and another graph's run may overwrite them, such as the prefix that the head reads.
_WITHOUT_CUDA_GRAPHS = {
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}


# What LeRobot's `PI0Pytorch.forward` calls its pass through VLM and action expert.
_ALL_LAYERS = "forward_func"
# As LeRobot calls torch.utils.checkpoint.
_CHECKPOINT_SETTINGS = {"use_reentrant": False, "preserve_rng_state": False}


class PrefixKeeping(_Backbone):
    """Mixed into LeRobot's `PaliGemmaWithExpertModel`: keeps the VLM's output when asked to."""

    keep_prefix = False
    prefix_out: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run LeRobot's forward pass and, if `keep_prefix`, keep the prefix's output (B, S, D)."""
        outputs, past_key_values = super().forward(*args, **kwargs)
        if self.keep_prefix:
            self.prefix_out = outputs[0]
        return outputs, past_key_values


class JointModel(_Network):
    """Mixed into LeRobot's `PI0Pytorch`: a motion head beside the action head."""

    def __init__(self, config: JointMotionConfig, *args: Any, **kwargs: Any) -> None:
        """Build LeRobot's network, then the motion head, so that its random weights come last.

        Args:
            config: The policy's configuration.
            *args: Passed on to LeRobot.
            **kwargs: Passed on to LeRobot.
        """
        super().__init__(config, *args, **kwargs)
        self.paligemma_with_expert.train_attention = config.train_attention
        self.paligemma_with_expert.inference_attention = config.inference_attention
        self._prefix_mask: Tensor | None = None
        self._has_seen_whole_prompts = False
        self.motion_head: MotionHead | None = None
        if config.has_motion_head:
            backbone = self.paligemma_with_expert.paligemma.model.language_model
            self.motion_head = MotionHead(
                prefix_dim=backbone.config.hidden_size, **config.motion_head_settings
            )
            # It keeps its float32 weights under dtype=bfloat16, as LeRobot's action projections do:
            # it learns from nothing, and at pi0's learning rate a step of a weight is smaller than
            # the distance of two bfloat16 numbers. Autocast does its arithmetic in bfloat16.
            if config.compile_model:
                mode = _WITHOUT_CUDA_GRAPHS.get(config.compile_mode, config.compile_mode)
                self.motion_head.compile(mode=mode)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass, those of the motion head too.

        LeRobot sets a flag that no layer of the vision tower reads, and computes a camera's whole
        tower again at once: at full size its activations are the peak of a step. Here its layers
        are then computed again one by one.
        """
        super().gradient_checkpointing_enable()
        self._vision_tower.gradient_checkpointing_enable(_CHECKPOINT_SETTINGS)
        if self.motion_head is not None:
            self.motion_head.enable_gradient_checkpointing()

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass, those of the motion head too."""
        super().gradient_checkpointing_disable()
        self._vision_tower.gradient_checkpointing_disable()
        if self.motion_head is not None:
            self.motion_head.disable_gradient_checkpointing()

    def _apply_checkpoint(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Recompute as LeRobot does, but once.

        LeRobot checkpoints every layer, and then all of them together: the backward pass computes
        them twice, for the same peak of memory. While the prefix is kept the outer checkpoint is
        left out, for torch.compile cannot trace what is kept within one.
        """
        if self.paligemma_with_expert.keep_prefix and func.__name__ == _ALL_LAYERS:
            return func(*args, **kwargs)
        return super()._apply_checkpoint(func, *args, **kwargs)

    @property
    def _vision_tower(self) -> Any:
        return self.paligemma_with_expert.paligemma.model.vision_tower

    def embed_prefix(
        self, images: list[Tensor], image_masks: list[Tensor], tokens: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embed the prefix as LeRobot does, or less of it, and remember its pad mask (B, S)."""
        inputs = (images, image_masks, tokens, token_mask)
        # A compiler, whoever called it, would compile anew for every length.
        is_traced = torch.compiler.is_compiling()
        if not is_traced and self.config.skips_padding(tokens.device, training=self.training):
            inputs = without_padding(*inputs, keep_tokens=self._is_first_of_training())
        embeddings, pad_mask, attention_mask = super().embed_prefix(*inputs)
        self._prefix_mask = pad_mask
        return embeddings, pad_mask, attention_mask

    def _is_first_of_training(self) -> bool:
        """Whether this is the first step of a run that learns all.

        It is taken with prompts of full length, so that a GPU that cannot hold the longest prompt
        of the dataset says so at once, and not when that comes up.
        """
        is_first = self.training and torch.is_grad_enabled() and not self._has_seen_whole_prompts
        self._has_seen_whole_prompts |= is_first
        return is_first

    @contextmanager
    def keeping_prefix(self) -> Iterator[None]:
        """Within this context a forward pass keeps the VLM's output for `take_prefix`."""
        self.paligemma_with_expert.keep_prefix = True
        try:
            yield
        finally:
            # Off before the backward pass: gradient checkpointing runs the forward pass again.
            self.paligemma_with_expert.keep_prefix = False

    def take_prefix(self) -> tuple[Tensor, Tensor]:
        """Hand over what the last forward pass kept, and let go of it.

        Returns:
            Prefix features after the final norm, (B, S, D), without a gradient if the VLM is
            frozen; and the mask of tokens that are not padding, (B, S).

        Raises:
            RuntimeError: If no forward pass ran within `keeping_prefix`.
        """
        prefix, mask = self.paligemma_with_expert.prefix_out, self._prefix_mask
        self.paligemma_with_expert.prefix_out = None
        if prefix is None or mask is None:
            raise RuntimeError("no prefix was kept: run the forward pass within keeping_prefix().")
        if self._vlm_is_frozen():
            # Otherwise a backward pass through the attention that VLM and action expert share would
            # compute zeros for the expert.
            prefix = prefix.detach()
        return prefix, mask

    def _vlm_is_frozen(self) -> bool:
        vlm = self.paligemma_with_expert.paligemma
        return not any(parameter.requires_grad for parameter in vlm.parameters())

    def encode_prefix(
        self, images: list[Tensor], image_masks: list[Tensor], tokens: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the VLM alone, without the action expert.

        Args:
            images: Images in [-1, 1], (B, 3, H, W) for each camera.
            image_masks: True where a sample has that camera, (B,) each.
            tokens: Language token ids, (B, T).
            token_mask: True where a token is not padding, (B, T).

        Returns:
            Prefix features after the final norm, (B, S, D), and their pad mask, (B, S).
        """
        embeddings, pad_mask, attention_mask = self.embed_prefix(
            images, image_masks, tokens, token_mask
        )
        backbone = self.paligemma_with_expert
        # As LeRobot's sample_actions: the additive 4-D mask wants eager attention.
        backbone.paligemma.model.language_model.config._attn_implementation = "eager"  # noqa: SLF001
        (prefix, _), _ = backbone.forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad_mask, attention_mask)),
            position_ids=torch.cumsum(pad_mask, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=False,
        )
        return prefix, pad_mask


@contextmanager
def building(module: ModuleType, model: type[nn.Module], *, tiny: bool) -> Iterator[None]:
    """Within this context LeRobot's policy module builds our network.

    Args:
        module: LeRobot's modeling module of the policy (lerobot 0.6.1).
        model: Our subclass of the module's `PI0Pytorch` (or `PI05Pytorch`).
        tiny: Build the tiny backbone.
    """
    expert = module.PaliGemmaWithExpertModel
    keeping = type(
        "PrefixKeepingPaliGemmaWithExpert",
        (PrefixKeeping, ChosenAttention, expert),
        {"forward_with_sdpa": forward_with_sdpa(expert)},
    )
    core = model.__mro__[model.__mro__.index(JointModel) + 1].__name__
    names = {core: model, "PaliGemmaWithExpertModel": keeping}
    with replaced(module, **names), tiny_backbone(module) if tiny else replaced(module):
        yield


@contextmanager
def replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """Within this context the module's globals of these names are replaced.

    Args:
        module: The module whose globals are looked up at call time.
        **names: New values by name; each must exist.
    """
    originals = {name: getattr(module, name) for name in names}
    try:
        for name, value in names.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in originals.items():
            setattr(module, name, value)


# LeRobot's attention is written for 8 heads; the rest is what learns in minutes on two cores.
TINY_WIDTH = 128
TINY_LAYERS = 2
TINY_HEADS = 8
TINY_IMAGE_PATCH = 28


@contextmanager
def tiny_backbone(module: ModuleType) -> Iterator[None]:
    """Within this context LeRobot's policy module builds a CPU-sized VLM and action expert.

    Same code, other sizes: width 128, 2 layers, a vocabulary of bytes, patches of 28 px.

    Args:
        module: LeRobot's modeling module of the policy (lerobot 0.6.1).
    """
    vlm_class, expert_class = (
        module.PaliGemmaForConditionalGenerationWithPiGemma,
        module.PiGemmaForCausalLM,
    )

    def tiny_gemma(variant: str) -> Any:
        return module.GemmaConfig(
            width=TINY_WIDTH,
            depth=TINY_LAYERS,
            mlp_dim=4 * TINY_WIDTH,
            num_heads=TINY_HEADS,
            num_kv_heads=1,
            head_dim=TINY_WIDTH // TINY_HEADS,
        )

    def tiny_vlm(config: Any) -> Any:
        vision = config.vision_config
        vision.hidden_size = vision.projection_dim = TINY_WIDTH
        vision.intermediate_size = 4 * TINY_WIDTH
        vision.num_hidden_layers, vision.num_attention_heads = TINY_LAYERS, TINY_HEADS
        vision.patch_size = TINY_IMAGE_PATCH
        config.projection_dim = config.hidden_size = TINY_WIDTH
        config.text_config.vocab_size = ByteTokenizerStep.vocab_size()
        return vlm_class(config=config)

    def tiny_expert(config: Any) -> Any:
        config.vocab_size = ByteTokenizerStep.vocab_size()
        return expert_class(config=config)

    with replaced(
        module,
        get_gemma_config=tiny_gemma,
        PaliGemmaForConditionalGenerationWithPiGemma=tiny_vlm,
        PiGemmaForCausalLM=tiny_expert,
    ):
        yield
