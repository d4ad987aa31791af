"""The training script's loop in miniature: accelerate's loader, LeRobot's sampler, some noise."""

import functools
import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from lerobot.common.train_utils import save_training_state
from lerobot.datasets import EpisodeAwareSampler, compute_sampler_state
from lerobot.utils.utils import cycle
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lerobot_motion.training import exact_resume
from lerobot_motion.training.exact_resume import REPLACED, ExactRun, enter_exact_run

NUM_FRAMES, BATCH_SIZE, STEPS = 23, 4, 9
IN_PROCESS = {"num_workers": 0, "persistent_workers": False, "prefetch_factor": None}
PER_EPOCH = {"num_workers": 1, "persistent_workers": False, "prefetch_factor": 2}
PERSISTENT = {**PER_EPOCH, "persistent_workers": True}

Step = tuple[list[float], list[float]]


class Frames(Dataset[torch.Tensor]):
    """Frames that are their own index, transformed at random if asked."""

    def __init__(self, *, random: bool) -> None:
        self.random = random

    def __len__(self) -> int:
        return NUM_FRAMES

    def __getitem__(self, index: int) -> torch.Tensor:
        return index + torch.rand(()) if self.random else torch.tensor(float(index))


def make_run(
    *, transforms: bool = False, checkpoint: Path | None = None, eval_steps: int = 0
) -> ExactRun:
    config = SimpleNamespace(
        dataset=SimpleNamespace(image_transforms=SimpleNamespace(enable=transforms)),
        resume=checkpoint is not None,
        checkpoint_path=checkpoint,
        eval_steps=eval_steps,
    )
    originals = {
        "cycle": cycle,
        "_dataloader_worker_kwargs": lambda options: dict(options),
        "eval_policy_all": lambda: torch.rand(3).tolist(),
    }
    return ExactRun(config, originals)


def make_loader(
    run: ExactRun, dataset: Frames, options: dict[str, Any], step: int, rank: int, num_ranks: int
) -> Any:
    """The training script's loader of one rank, which goes on after a step."""
    sampler = EpisodeAwareSampler([0], [NUM_FRAMES], shuffle=True, seed=3)
    if step:
        sampler.load_state_dict(compute_sampler_state(step, NUM_FRAMES, BATCH_SIZE, num_ranks))
    loader = DataLoader(
        dataset, BATCH_SIZE, sampler=sampler, **run.worker_options(options), **forking(options)
    )
    return prepare_data_loader(
        loader, num_processes=num_ranks, process_index=rank, put_on_device=False
    )


def forking(options: dict[str, Any]) -> dict[str, Any]:
    return {"multiprocessing_context": "fork"} if options["num_workers"] else {}


def train(
    options: dict[str, Any],
    checkpoints: Path,
    *,
    start: int = 0,
    transforms: bool = False,
    rank: int = 0,
    num_ranks: int = 1,
    eval_steps: int = 0,
) -> list[Step]:
    """Run the loop: at each step a batch and some noise, and a checkpoint after it."""
    checkpoint = checkpoints / str(start) if start else None
    run = make_run(transforms=transforms, checkpoint=checkpoint, eval_steps=eval_steps)
    # As a new process would have it, whatever it has drawn for the weights.
    torch.manual_seed(start)
    if checkpoint is not None:
        torch.rand(17)
    loader = make_loader(run, Frames(random=transforms), options, start, rank, num_ranks)
    held_out = DataLoader(
        Frames(random=False), BATCH_SIZE, **run.worker_options(options), **forking(options)
    )
    steps: list[Step] = []
    batches = run.cycle(loader)
    for step in range(start + 1, STEPS + 1):
        batch = next(batches)
        steps.append((batch.tolist(), torch.rand(2).tolist()))
        if eval_steps and step % eval_steps == 0:
            assert len([torch.rand(1) for _ in held_out]) == 6
        if not start:
            save_training_state(checkpoints / str(step), step)
        run.evaluate_in_environments()
    return steps


@pytest.mark.parametrize(
    ("options", "transforms", "num_ranks"),
    [
        (IN_PROCESS, False, 1),
        (IN_PROCESS, False, 2),
        (IN_PROCESS, True, 1),
        (IN_PROCESS, True, 2),
        (PER_EPOCH, False, 1),
        (PER_EPOCH, True, 1),
        (PERSISTENT, True, 1),
        (PERSISTENT, False, 2),
    ],
)
def test_the_rest_is_that_of_the_unbroken_run(
    tmp_path: Path, options: dict[str, Any], transforms: bool, num_ranks: int
) -> None:
    kwargs = {"transforms": transforms, "num_ranks": num_ranks, "rank": num_ranks - 1}
    per_epoch = 6 // num_ranks
    whole = train(options, tmp_path, **kwargs)

    # Inside the first epoch, between two, and inside the second.
    for start in (1, per_epoch, per_epoch + 1):
        assert train(options, tmp_path, start=start, **kwargs) == whole[start:], start


@pytest.mark.parametrize(
    ("options", "start"),
    [(IN_PROCESS, 2), (IN_PROCESS, 6), (PER_EPOCH, 4), (PERSISTENT, 2), (PERSISTENT, 4)],
)
def test_evaluations_draw_as_in_the_unbroken_run(
    tmp_path: Path, options: dict[str, Any], start: int
) -> None:
    """Persistent workers are seeded at the first evaluation, here after step 3."""
    whole = train(options, tmp_path, eval_steps=3)

    assert train(options, tmp_path, eval_steps=3, start=start) == whole[start:]


def test_an_unbroken_run_draws_what_lerobot_draws(tmp_path: Path) -> None:
    ours = train(PERSISTENT, tmp_path)

    torch.manual_seed(0)
    loader = make_loader(make_run(), Frames(random=False), PERSISTENT, 0, 0, 1)
    batches = cycle(loader)
    stock = [(next(batches).tolist(), torch.rand(2).tolist()) for _ in range(STEPS)]

    assert ours == stock


def test_every_epoch_transforms_anew(tmp_path: Path) -> None:
    steps = train(PERSISTENT, tmp_path, transforms=True)

    frames = list(itertools.chain.from_iterable(batch for batch, _ in steps))
    assert sorted(map(int, frames[:NUM_FRAMES])) == list(range(NUM_FRAMES))
    assert len({frame % 1 for frame in frames}) == len(frames) > NUM_FRAMES


@pytest.mark.parametrize("other", [{"batch_size": 3}, {"num_ranks": 1}])
def test_a_run_on_other_ranks_or_batches_goes_on_all_the_same(
    tmp_path: Path, other: dict[str, int]
) -> None:
    """Not exactly: LeRobot warns of that itself."""
    checkpoint = tmp_path / "5"
    save_training_state(checkpoint, 5)
    run = make_run(checkpoint=checkpoint)
    sampler = EpisodeAwareSampler([0], [NUM_FRAMES], shuffle=True, seed=3)
    sampler.load_state_dict(compute_sampler_state(5, NUM_FRAMES, BATCH_SIZE, 1))
    loader = DataLoader(Frames(random=False), other.get("batch_size", 4), sampler=sampler)
    prepared = prepare_data_loader(
        loader, num_processes=other.get("num_ranks", 2), process_index=0, put_on_device=False
    )
    batches = run.cycle(prepared)

    assert [len(next(batches)) for _ in range(3)]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


def test_of_a_stream_is_said_that_it_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_training_state(tmp_path / "5", 5)
    loader = prepare_data_loader(DataLoader(Stream(), 2), put_on_device=False)

    with caplog.at_level(logging.WARNING):
        batch = next(make_run(checkpoint=tmp_path / "5").cycle(loader))

    assert batch.tolist() == [0, 1]
    assert "dataset.streaming: a resumed run reads the stream from its beginning" in caplog.text


def test_an_environment_draws_from_a_state_of_its_own() -> None:
    run = make_run()
    torch.manual_seed(0)
    expected = torch.rand(3).tolist()

    torch.manual_seed(0)
    drawn = run.evaluate_in_environments()

    assert drawn == expected == torch.rand(3).tolist()


# --- the training script ---


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in the training script's place, with functions of its own."""
    module = ModuleType(exact_resume.TRAINING_SCRIPT)
    module.__spec__ = SimpleNamespace(name=module.__name__)
    for name in REPLACED:
        setattr(module, name, functools.partial(dict, name=name))
    monkeypatch.setitem(sys.modules, exact_resume.TRAINING_SCRIPT, module)
    monkeypatch.setattr(exact_resume, "_originals", {})
    return module


def run_config() -> Any:
    return SimpleNamespace(
        dataset=SimpleNamespace(image_transforms=SimpleNamespace(enable=False)), resume=False
    )


def test_another_policys_run_finds_the_script_as_lerobot_made_it(script: ModuleType) -> None:
    stock = {name: getattr(script, name) for name in REPLACED}

    enter_exact_run(None)
    assert {name: getattr(script, name) for name in REPLACED} == stock
    for _ in range(2):
        enter_exact_run(run_config())
        assert all(getattr(script, name) != stock[name] for name in REPLACED)
    enter_exact_run(None)

    assert {name: getattr(script, name) for name in REPLACED} == stock


def test_the_script_is_found_as_main_too(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m lerobot.scripts.lerobot_train`, as `accelerate launch -m` does."""
    main = ModuleType("__main__")
    main.__spec__ = script.__spec__
    for name in REPLACED:
        setattr(main, name, len)
    monkeypatch.setitem(sys.modules, "__main__", main)

    enter_exact_run(run_config())

    assert isinstance(main.cycle.__self__, ExactRun)
    assert isinstance(script.cycle.__self__, ExactRun)
    enter_exact_run(None)
    assert main.cycle is len


def test_a_script_of_another_version_is_left_alone(
    script: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    del script._dataloader_worker_kwargs
    cycle = script.cycle

    with caplog.at_level(logging.WARNING):
        enter_exact_run(run_config())

    assert script.cycle is cycle
    assert "another training script than 0.6.1 (no _dataloader_worker_kwargs)" in caplog.text
