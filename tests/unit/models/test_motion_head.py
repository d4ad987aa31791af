from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from lerobot_motion.models.motion_head import MotionHead

PREFIX_DIM = 24
LATENT_SHAPE = (4, 8, 8)


def make_head(seed: int = 0, **settings: object) -> MotionHead:
    torch.manual_seed(seed)
    return MotionHead(
        **{
            "latent_shape": LATENT_SHAPE,
            "prefix_dim": PREFIX_DIM,
            "num_layers": 2,
            "num_heads": 2,
            "dim": 32,
            **settings,
        }
    )


def awake(head: MotionHead) -> MotionHead:
    """With random weights where the head starts at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return head


def inputs(batch_size: int = 2, channels: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(batch_size, channels, 8, 8, generator=generator)
    time = torch.rand(batch_size, generator=generator)
    prefix = torch.randn(batch_size, 7, PREFIX_DIM, generator=generator)
    mask = torch.ones(batch_size, 7, dtype=torch.bool)
    mask[:, 5:] = False
    return x_t, time, prefix, mask


# --- initialisation ---


def test_the_first_prediction_is_exactly_zero() -> None:
    velocity = make_head()(*inputs())

    assert torch.equal(velocity, torch.zeros(2, *LATENT_SHAPE))


def test_every_block_starts_as_the_identity() -> None:
    head = make_head()
    seen = []
    for block in head.transformer.transformer_blocks:
        # Cross-attention has no gate: its output alone may change the tokens.
        block.attn2.to_out[0].weight.data.zero_()
        block.attn2.to_out[0].bias.data.zero_()
        block.register_forward_hook(lambda block, args, out: seen.append((args[0], out)))

    head(*inputs())

    assert len(seen) == 2
    assert all(torch.equal(before, after) for before, after in seen)


def test_gates_are_zero_and_nothing_else_of_the_modulation() -> None:
    head = make_head()
    rows = head.transformer.adaln_single.linear.weight.unflatten(0, (6, 32))

    zero = [bool((row == 0).all()) for row in rows]

    assert zero == [False, False, True, False, False, True]
    for block in head.transformer.transformer_blocks:
        assert [bool((row == 0).all()) for row in block.scale_shift_table] == zero


# --- what it predicts ---


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_channels_and_shape_follow_the_latent(channels: int) -> None:
    head = awake(make_head(latent_shape=(channels, 8, 8)))

    velocity = head(*inputs(channels=channels))

    assert velocity.shape == (2, channels, 8, 8)
    assert velocity.dtype == torch.float32
    assert velocity.std() > 0


def test_half_precision_weights_give_a_float32_velocity() -> None:
    velocity = awake(make_head()).to(torch.bfloat16)(*inputs())

    assert velocity.dtype == torch.float32


def test_padding_of_the_prefix_is_not_seen() -> None:
    head = awake(make_head()).eval()
    x_t, time, prefix, mask = inputs()
    others = prefix.masked_fill(~mask[..., None], 100.0)

    assert torch.equal(head(x_t, time, prefix, mask), head(x_t, time, others, mask))


def test_every_other_input_is_seen() -> None:
    head = awake(make_head()).eval()
    x_t, time, prefix, mask = inputs()
    velocity = head(x_t, time, prefix, mask)

    assert not torch.allclose(head(x_t + 1, time, prefix, mask), velocity)
    assert not torch.allclose(head(x_t, time / 2, prefix, mask), velocity)
    assert not torch.allclose(head(x_t, time, prefix.flip(1), mask), velocity)


def test_time_is_embedded_on_the_scale_of_a_thousand_steps() -> None:
    head = make_head()
    x_t, _, prefix, mask = inputs()

    with patch.object(
        head.transformer.adaln_single, "forward", wraps=head.transformer.adaln_single.forward
    ) as embed:
        head(x_t, torch.tensor([0.25, 1.0]), prefix, mask)

    torch.testing.assert_close(embed.call_args.args[0], torch.tensor([250.0, 1000.0]))


# --- training ---


def one_step(head: MotionHead, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (head(*inputs()) - 1.0).square().mean().backward()
    optimizer.step()


def test_after_one_step_the_gradient_reaches_the_prefix() -> None:
    head = make_head()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    gradients = []
    for _ in range(2):
        x_t, time, prefix, mask = inputs()
        prefix.requires_grad_()
        head(x_t, time, prefix, mask).sub(1.0).square().mean().backward()
        gradients.append(prefix.grad)
        optimizer.step()

    assert not gradients[0].any()
    assert gradients[1].any()


def test_after_two_steps_the_gradient_reaches_everything() -> None:
    """At first only the output layer learns; then, through it, the gates; then all behind them."""
    head = make_head()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    one_step(head, optimizer)
    one_step(head, optimizer)
    optimizer.zero_grad()
    x_t, time, prefix, mask = inputs()
    prefix.requires_grad_()

    (head(x_t, time, prefix, mask) - 1.0).square().mean().backward()

    without = [
        name
        for name, parameter in head.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # Softmax does not see a bias that all keys share.
    assert [name for name in without if not name.endswith("to_k.bias")] == []
    assert prefix.grad[mask].any()
    assert not prefix.grad[~mask].any()


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        head = awake(make_head())
        if checkpointing:
            head.enable_gradient_checkpointing()
        head(*inputs()).square().mean().backward()
        gradients.append([parameter.grad for parameter in head.parameters()])

    assert head.transformer.gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_counter_of_updates_is_saved_and_restored() -> None:
    head, other = make_head(), make_head(seed=1)
    head.num_updates += 7

    other.load_state_dict(head.state_dict())

    assert other.num_updates.dtype == torch.long
    assert int(other.num_updates) == 7
    assert "num_updates" not in dict(head.named_parameters())


# --- size and errors ---


def test_the_full_size_head_has_400m_parameters() -> None:
    with torch.device("meta"):
        head = MotionHead(latent_shape=(4, 28, 28), prefix_dim=2048)

    blocks = sum(p.numel() for p in head.transformer.transformer_blocks.parameters())
    total = sum(p.numel() for p in head.parameters())

    assert len(head.transformer.transformer_blocks) == 6
    assert round(blocks / 1e6, 1) == 402.9
    assert round(total / 1e6, 1) == 432.9


def test_the_width_must_be_divisible_by_the_heads() -> None:
    message = r"motion_head_dim must be a multiple of motion_head_heads, got 30 and 4\."
    with pytest.raises(ValueError, match=message):
        make_head(dim=30, num_heads=4)


@pytest.mark.parametrize("shape", [(4, 7, 7), (4, 8, 10), (4, 10, 8)])
def test_the_latent_must_be_square_and_even(shape: tuple[int, int, int]) -> None:
    message = rf"latent must be square with a side divisible by 2, got {shape[1]}x{shape[2]}\."
    with pytest.raises(ValueError, match=message):
        make_head(latent_shape=shape)


# --- several latents to a prefix, and several steps ---


def test_latents_that_share_a_prefix_are_predicted_as_if_alone() -> None:
    head = awake(make_head())
    _, _, prefix, mask = inputs()
    generator = torch.Generator().manual_seed(2)
    x_t = torch.randn(6, *LATENT_SHAPE, generator=generator)
    time = torch.rand(6, generator=generator)

    together = head(x_t, time, prefix, mask)

    for i in range(6):
        of = slice(i // 3, i // 3 + 1)
        alone = head(x_t[i : i + 1], time[i : i + 1], prefix[of], mask[of])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_prefix_that_is_remembered_is_projected_once() -> None:
    head = awake(make_head()).eval()
    x_t, time, prefix, mask = inputs()
    calls = []
    to_k = head.transformer.transformer_blocks[0].attn2.to_k
    project = nn.Linear.forward

    def counted(linear: nn.Linear, states: Tensor) -> Tensor:
        if linear is to_k:
            calls.append(tuple(states.shape))
        return project(linear, states)

    with torch.no_grad(), patch.object(nn.Linear, "forward", counted):
        expected = [head(x_t, step * time, prefix, mask) for step in (1.0, 0.5)]
        assert len(calls) == 2
        with head.remembering_prefix():
            found = [head(x_t, step * time, prefix, mask) for step in (1.0, 0.5)]
        assert len(calls) == 3
        other = head(x_t, time, prefix + 1, mask)

    assert len(calls) == 4
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(other, expected[0])


def test_a_compiled_head_remembers_nothing() -> None:
    head = make_head()
    head.compile(backend="aot_eager")

    with head.remembering_prefix():
        assert "forward" not in vars(head.transformer.transformer_blocks[0].attn2.to_k)


# --- under autocast ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_the_prefix_is_copied_once_at_most(dtype: torch.dtype) -> None:
    """Not by each projection of it to keys and values, which would keep the copies."""
    head = make_head()
    x_t, time, prefix, mask = inputs()
    seen = []
    for block in head.transformer.transformer_blocks:
        for linear in (block.attn2.to_k, block.attn2.to_v):
            linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head(x_t, time, prefix.to(dtype), mask)

    assert {features.dtype for features in seen} == {torch.bfloat16}
    assert len({features.data_ptr() for features in seen}) == 1
