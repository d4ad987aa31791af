"""What exact resumption leans on in LeRobot, accelerate and PyTorch (training/exact_resume.py).

Each test fails when one of them changes that: perhaps a stand-in is no longer needed.
"""

import ast
import inspect
import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import DataLoaderShard, prepare_data_loader
from lerobot.common import train_utils
from lerobot.datasets import EpisodeAwareSampler, LeRobotDataset
from lerobot.scripts import lerobot_train
from lerobot.utils.random_utils import load_rng_state, save_rng_state
from torch.utils.data import DataLoader, Dataset

from lerobot_motion.training.exact_resume import REPLACED, TRAINING_SCRIPT, enter_exact_run


@pytest.fixture(autouse=True)
def script() -> None:
    """The script as LeRobot made it, whichever run a test before these has entered."""
    enter_exact_run(None)


def script_calls() -> list[str]:
    """What the training script calls, in the order of the source."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(lerobot_train.train)))
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    nodes.sort(key=lambda node: (node.lineno, node.col_offset))
    return [ast.unparse(node.func) for node in nodes]


# --- LeRobot's training script ---


def test_the_names_that_are_replaced_are_looked_up_when_it_runs() -> None:
    names = set(inspect.unwrap(lerobot_train.train).__code__.co_names)

    assert lerobot_train.__name__ == TRAINING_SCRIPT
    assert set(REPLACED) <= names


def test_the_state_is_loaded_before_the_loader_is_iterated() -> None:
    calls = script_calls()

    assert calls.index("cfg.validate") < calls.index("load_training_state")
    assert calls.index("load_training_state") < calls.index("sampler.load_state_dict")
    assert calls.index("sampler.load_state_dict") < calls.index("accelerator.prepare")
    last_prepared = len(calls) - 1 - calls[::-1].index("accelerator.prepare")
    assert last_prepared < calls.index("cycle") < calls.index("update_policy")
    assert calls.count("cycle") == 1


def test_the_options_are_asked_for_both_loaders() -> None:
    source = inspect.getsource(inspect.unwrap(lerobot_train.train))

    assert source.count("**_dataloader_worker_kwargs(cfg)") == 2
    assert source.count("torch.utils.data.DataLoader(") == 2
    assert list(inspect.signature(lerobot_train._dataloader_worker_kwargs).parameters) == ["cfg"]
    assert "persistent_workers" in inspect.getsource(lerobot_train._dataloader_worker_kwargs)


def test_an_environments_evaluation_comes_after_the_checkpoint() -> None:
    calls = script_calls()

    assert calls.index("save_checkpoint") < calls.index("eval_policy_all")
    assert calls.count("eval_policy_all") == 1


def test_a_checkpoint_holds_the_random_state(tmp_path: Path) -> None:
    assert "load_rng_state(training_state_dir)" in inspect.getsource(
        train_utils.load_training_state
    )
    save_rng_state(tmp_path)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    drawn = draw()
    load_rng_state(tmp_path)
    assert draw() == drawn


def test_the_order_is_a_function_of_seed_and_epoch_and_can_start_inside() -> None:
    def frames(epoch: int, start: int) -> list[int]:
        sampler = EpisodeAwareSampler([0], [10], shuffle=True, seed=2)
        sampler.load_state_dict({"epoch": epoch, "start_index": start})
        assert sampler.state_dict() == {"epoch": epoch, "start_index": start}
        return list(sampler)

    state = torch.get_rng_state()
    assert frames(1, 4) == frames(1, 0)[4:]
    assert frames(1, 0) != frames(0, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_dataset_fetches_frame_by_frame() -> None:
    """Else `seed_transforms` would hide a method of its own."""
    assert not hasattr(LeRobotDataset, "__getitems__")
    assert "__reduce__" not in vars(LeRobotDataset)
    assert "__getstate__" not in vars(LeRobotDataset)


# --- accelerate and PyTorch ---


class Frames(Dataset[int]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


def prepared(num_ranks: int = 1, **options: Any) -> tuple[DataLoaderShard, EpisodeAwareSampler]:
    sampler = EpisodeAwareSampler([0], [10], shuffle=True, seed=2)
    loader = DataLoader(Frames(), 2, sampler=sampler, **options)
    shard = prepare_data_loader(
        loader, num_processes=num_ranks, process_index=0, put_on_device=False
    )
    return shard, sampler


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_accelerate_counts_epochs_from_0_and_tells_the_sampler(num_ranks: int) -> None:
    """Why a resumed run must set the loader's epoch; if this fails it need not any more."""
    loader, sampler = prepared(num_ranks)
    sampler.load_state_dict({"epoch": 3, "start_index": 4})

    frames = torch.cat(list(loader)).tolist()

    first = EpisodeAwareSampler([0], [10], shuffle=True, seed=2)
    first.load_state_dict({"epoch": 0, "start_index": 4})
    assert set(frames) <= set(first)
    assert sampler.state_dict()["epoch"] == 1


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_loaders_epoch_can_be_set_and_its_sampler_replaced(num_ranks: int) -> None:
    loader, sampler = prepared(num_ranks)
    loader.set_epoch(3)

    assert (sampler.state_dict()["epoch"], loader.iteration) == (3, 3)
    assert loader.total_batch_size == 2 * num_ranks
    assert hasattr(loader.batch_sampler, "num_processes") is (num_ranks > 1)
    loader.set_sampler([5] * 8)
    assert set(torch.cat(list(loader)).tolist()) == {5}


def drawn_by(act: Callable[[], object]) -> bool:
    """Whether something draws from the global random state."""
    state = torch.get_rng_state()
    act()
    return not torch.equal(torch.get_rng_state(), state)


def test_an_iterator_draws_once_from_the_global_state_or_the_loaders_own() -> None:
    loader, _ = prepared()
    assert drawn_by(lambda: list(loader))
    assert drawn_by(lambda: list(loader))

    own, _ = prepared(generator=torch.Generator())
    assert not drawn_by(lambda: list(own))


def test_persistent_workers_are_seeded_once() -> None:
    loader, _ = prepared(num_workers=1, persistent_workers=True, multiprocessing_context="fork")

    assert drawn_by(lambda: list(loader))
    assert not drawn_by(lambda: list(loader))


def test_a_dataset_is_asked_for_a_whole_batch_where_it_can() -> None:
    loader, _ = prepared()
    loader.dataset.__getitems__ = lambda frames: [-1 for _ in frames]

    assert set(torch.cat(list(loader)).tolist()) == {-1}
