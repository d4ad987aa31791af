import pickle

import pytest
import torch
from lerobot.datasets import EpisodeAwareSampler

from lerobot_motion.training.frame_order import FrameOrder, SeededFrames


def make_sampler(start_index: int = 0, epoch: int = 0) -> EpisodeAwareSampler:
    sampler = EpisodeAwareSampler([0, 6], [6, 10], shuffle=True, seed=1)
    sampler.load_state_dict({"epoch": epoch, "start_index": start_index})
    return sampler


def test_the_order_is_the_samplers() -> None:
    order, sampler = FrameOrder(make_sampler(epoch=2)), make_sampler(epoch=2)

    for _ in range(2):
        assert list(order) == list(sampler)
    assert len(order) == 10


def test_an_epoch_can_be_chosen() -> None:
    order = FrameOrder(make_sampler())
    order.set_epoch(5)

    assert list(order) == list(make_sampler(epoch=5))


def test_the_epochs_beginning_comes_first_where_it_would_be_left_out() -> None:
    whole = list(make_sampler(epoch=1))
    order = FrameOrder(make_sampler(6, epoch=1), head=2)

    assert list(order) == whole[:2] + whole[6:]
    assert list(order) == list(make_sampler(epoch=2))


def test_frames_come_with_their_epoch_if_asked() -> None:
    frames = list(make_sampler(epoch=3))

    assert list(FrameOrder(make_sampler(epoch=3), with_epoch=True)) == [(i, 3) for i in frames]


class Draws:
    """A dataset that draws, in the order in which it is read."""

    def __getitem__(self, index: int) -> float:
        return float(torch.rand(()))


def test_what_a_frame_draws_depends_on_seed_epoch_and_frame_alone() -> None:
    fetch = SeededFrames(Draws(), seed=7)
    first, second = fetch([(0, 0), (1, 0)])

    torch.rand(5)
    assert fetch([(1, 0)]) == [second]
    others = [*fetch([(0, 1), (2, 0)]), *SeededFrames(Draws(), seed=8)([(0, 0)])]
    assert len({first, second, *others}) == 5


def test_a_dataset_takes_it_along_to_spawned_workers() -> None:
    dataset = Draws()
    dataset.__getitems__ = SeededFrames(dataset, seed=7)

    copy = pickle.loads(pickle.dumps(dataset))

    assert copy.__getitems__([(1, 2)]) == dataset.__getitems__([(1, 2)])


def test_the_random_state_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the GPUs is not touched either: no call of torch.manual_seed."""
    monkeypatch.setattr(torch, "manual_seed", None)
    state = torch.get_rng_state()

    SeededFrames(Draws(), seed=7)([(0, 0)])

    assert torch.equal(torch.get_rng_state(), state)


def test_the_random_state_is_as_before_after_an_error() -> None:
    state = torch.get_rng_state()

    with pytest.raises(TypeError):
        SeededFrames(None, seed=7)([(0, 0)])

    assert torch.equal(torch.get_rng_state(), state)
