from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from extractions import content_of, work_of
from tiny import write_dataset

from lerobot_motion.extraction import tasks
from lerobot_motion.extraction.build import build_store
from lerobot_motion.extraction.extract import Extraction
from lerobot_motion.extraction.store_directory import begin, locked
from lerobot_motion.extraction.tasks import (
    CloseStore,
    MakeShards,
    at_most_threads,
    end_with_launcher,
    shard_files,
    share_of,
)


@pytest.fixture
def begun(extraction: Extraction) -> Extraction:
    """A store of two shards, none of which is there."""
    (extraction.store / "shards").mkdir(parents=True)
    begin(extraction.store, extraction.settings)
    return extraction


def make_step(extraction: Extraction) -> MakeShards:
    return MakeShards(work_of(extraction), shard_files(extraction.shards))


@pytest.mark.parametrize(("number", "world_size"), [(0, 3), (2, 5), (7, 3), (9, 3), (1000, 7)])
def test_every_shard_belongs_to_one_task(number: int, world_size: int) -> None:
    files = [str(i) for i in range(number)]

    shares = [share_of(files, rank, world_size) for rank in range(world_size)]

    assert [file for share in shares for file in share] == files
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_tasks_make_what_one_process_makes(
    begun: Extraction, writes: list[str], tmp_path: Path
) -> None:
    whole = replace(begun, store=tmp_path / "whole")
    build_store(whole)
    writes.clear()

    make_step(begun).run(rank=1, world_size=2)
    assert writes == ["000001"]
    make_step(begun).run(rank=0, world_size=2)
    assert writes == ["000001", "000000"]
    CloseStore(work_of(begun)).run()

    assert content_of(begun.store) == content_of(whole.store)


def test_tasks_beyond_the_shards_have_nothing_to_do(
    begun: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "open_dataset", lambda *_: pytest.fail("opened the dataset"))

    make_step(begun).run(rank=0, world_size=5)


def test_a_task_that_is_run_again_makes_what_is_missing(
    begun: Extraction, writes: list[str]
) -> None:
    make_step(begun).run()
    (begun.store / "shards" / "000000.safetensors").write_bytes(b"half")
    writes.clear()

    step = make_step(begun)
    step.run()

    assert writes == ["000000"]
    assert step.stats["frames"].total == 24


def test_only_shards_that_were_missing_are_touched(begun: Extraction, writes: list[str]) -> None:
    MakeShards(work_of(begun), ["shards/000001.safetensors"]).run()

    assert writes == ["000001"]


def test_a_task_does_not_ask_for_the_lock(begun: Extraction) -> None:
    with locked(begun.store):
        make_step(begun).run()

    assert len(list((begun.store / "shards").iterdir())) == 2


def test_an_incomplete_store_is_not_closed(begun: Extraction) -> None:
    make_step(begun).run(rank=0, world_size=2)

    with pytest.raises(ValueError, match=r"1 of 2 shards are missing, .*000001.safetensors"):
        CloseStore(work_of(begun)).run()

    assert not (begun.store / "manifest.json").exists()


def test_leftovers_are_removed_at_the_end(begun: Extraction) -> None:
    make_step(begun).run()
    (begun.store / "shards" / ".000001.safetensors.01.tmp").touch()

    CloseStore(work_of(begun)).run()

    assert sorted(path.name for path in begun.store.iterdir()) == [
        "contact_sheet.png",
        "manifest.json",
        "settings.json",
        "shards",
    ]
    assert len(list((begun.store / "shards").iterdir())) == 2


# --- a machine that is not like the launcher's ---


def test_a_machine_that_does_not_see_the_store_says_so(begun: Extraction, tmp_path: Path) -> None:
    work = replace(work_of(begun), store=tmp_path / "none")

    with pytest.raises(FileNotFoundError, match="all machines see it under the same path"):
        MakeShards(work, ["shards/000000.safetensors"]).run()


def test_a_machine_with_another_dataset_is_refused(begun: Extraction, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "other", num_episodes=2, num_frames=12)
    work = replace(work_of(begun), root=str(root))

    with pytest.raises(ValueError, match=r"made from .* \(4 episodes.* is .* \(2 episodes"):
        MakeShards(work, ["shards/000000.safetensors"]).run()


@pytest.mark.parametrize("device", [None, "cuda"])
def test_tasks_that_see_several_gpus_spread_over_them(
    device: str | None, begun: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "usable_device", lambda name: name)
    monkeypatch.setattr(tasks, "check_networks", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    work = replace(work_of(begun), device=device)
    devices = [work.open(rank).compute.device for rank in (0, 3, 5)]

    assert devices == ["cuda:0", "cuda:3", "cuda:1"]


def test_a_device_that_was_named_is_kept(begun: Extraction) -> None:
    assert replace(work_of(begun), device="cpu").open(3).compute.device == "cpu"


# --- processes ---


def test_threads_are_limited_for_a_while() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with at_most_threads(2):
            assert torch.get_num_threads() == 2
            with at_most_threads(4):
                assert torch.get_num_threads() == 2
        with at_most_threads(None):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_launcher_does_not_watch_itself() -> None:
    before = threads()

    end_with_launcher()

    assert threads() == before


def threads() -> Sequence[Any]:
    import threading

    return threading.enumerate()
