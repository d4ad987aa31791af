"""What every rank does for itself, and what one does for all."""

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lerobot_motion.training.ranks import (
    check_sharding,
    drawing_apart,
    is_first_of_its_machine,
    own_device,
    warning_once,
)

CPU = torch.device("cpu")
logger = logging.getLogger(__name__)


def draw(rank: int, num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Numbers that a rank draws within the context, and afterwards; all ranks are seeded alike."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: num_ranks)
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    torch.manual_seed(7)
    with drawing_apart(CPU):
        within = torch.randn(4)
    return within, torch.randn(4)


def test_a_single_process_draws_what_it_always_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    expected = torch.randn(4), torch.randn(4)
    torch.manual_seed(7)
    with drawing_apart(CPU):
        drawn = [torch.randn(4)]
    drawn.append(torch.randn(4))

    for numbers in (drawn, draw(0, 1, monkeypatch)):
        assert all(torch.equal(own, other) for own, other in zip(numbers, expected, strict=True))


def test_ranks_draw_apart_and_keep_their_state_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    within, after = zip(*(draw(rank, 3, monkeypatch) for rank in range(3)), strict=True)

    assert len({tuple(numbers.tolist()) for numbers in within}) == 3
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


def test_a_rank_draws_the_same_from_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = draw(1, 2, monkeypatch), draw(1, 2, monkeypatch)

    assert torch.equal(first[0], second[0])


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_motion_head_that_is_sharded_with_pi0_is_refused() -> None:
    def sharded(units: set[type[nn.Module]]) -> nn.Module:
        policy = nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2))
        return FullyShardedDataParallel(
            policy, auto_wrap_policy=ModuleWrapPolicy(units), device_id=CPU, use_orig_params=True
        )

    check_sharding(nn.Bilinear(2, 2, 2))
    check_sharding(sharded({nn.Bilinear}).module[1])
    with pytest.raises(ValueError, match=r"FSDP: .* Add MotionHead to fsdp_transformer_layer_cls"):
        check_sharding(sharded(set()).module[1])


@pytest.mark.parametrize(("local_rank", "first"), [(None, True), ("0", True), ("3", False)])
def test_the_first_process_of_a_machine(
    local_rank: str | None, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)

    assert is_first_of_its_machine() is first


@pytest.mark.parametrize(
    ("rank", "heard"),
    [(None, ["careful", "broken"]), ("0", ["careful", "broken"]), ("3", ["broken"])],
)
def test_one_rank_warns_for_all(
    rank: str | None,
    heard: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)

    with warning_once():
        logger.warning("careful")
        logger.error("broken")
    logger.warning("later")

    assert caplog.messages == [*heard, "later"]


# --- devices ---


@pytest.mark.parametrize(
    ("local_rank", "device", "expected"),
    [
        (None, "cuda", "cuda"),
        ("0", "cuda", "cuda"),
        ("1", "cuda", "cuda:1"),
        ("3", "cuda", "cuda:1"),
        ("1", "cuda:0", "cuda:0"),
        ("1", "cpu", "cpu"),
    ],
)
def test_a_rank_tries_things_on_its_own_gpu(
    local_rank: str | None, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert own_device(torch.device(device)) == torch.device(expected)
