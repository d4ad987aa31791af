"""Benchmarks of speed: what they run, what they refuse, and that both sides do the same work."""

from pathlib import Path
from typing import Any

import compiled_head
import inference
import policy_steps
import pytest
import scaling
import torch
import training
from compiled_head import CompiledHeadArguments
from inference import STOCK, InferenceArguments
from policy_steps import AS_STOCK, Trainee, training_bytes, variant_of
from regime_steps import build, make_batch
from scaling import BATCH, CAMERAS, HORIZON, LAYERS, VIEWS, ScalingArguments, point
from training import OPTIONS, TrainingArguments

from lerobot_motion.models.motion_head import MotionHead

CPU = torch.device("cpu")
TINY = ("tiny", "float32")


# --- sizes that do not fit ---


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (inference, InferenceArguments),
        (training, TrainingArguments),
        (scaling, ScalingArguments),
    ],
)
def test_a_full_size_run_is_refused_before_anything_is_allocated(
    module: Any, arguments: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    # The sizes of the real thing are added up in tests/unit/test_regimes.py.
    monkeypatch.setattr(policy_steps, "free_memory", lambda _: 8_000_000_000)
    for name in ("training_bytes", "weight_bytes"):
        monkeypatch.setattr(module, name, lambda _: 5_000_000_000, raising=False)
    monkeypatch.setattr(module, "bytes_beside", lambda *_: 10_000_000_000, raising=False)
    for name in ("Trainee", "build", "prepare_data"):
        monkeypatch.setattr(module, name, never, raising=False)

    with pytest.raises(
        ValueError, match=r"--size=full needs \d{11} bytes .* of main memory, 8000000000 bytes"
    ):
        module.benchmark(arguments(size="full", device="cpu"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_bytes_of_a_run_are_those_that_a_step_leaves() -> None:
    variant = variant_of("motion_pi0", *TINY, **AS_STOCK)
    trainee = Trainee(variant, CPU)
    trainee.policy.forward(make_batch(trainee.policy, 1, CPU))[0].backward()
    trainee.optimizer.step()

    policy = trainee.policy
    tensors = [*policy.parameters(), *policy.buffers()]
    tensors += [p.grad for p in policy.parameters() if p.grad is not None]
    tensors += [t for state in trainee.optimizer.state.values() for t in state.values()]
    assert training_bytes(variant) == sum(tensor.nbytes for tensor in tensors)


def test_options_change_none_of_the_bytes() -> None:
    """They are found where there are no numbers, with fused attention too."""
    args = ScalingArguments(
        batch_size=4, dtype="float32", gradient_checkpointing=False, options=True
    )
    options = point(args, BATCH, 4).ours

    assert ("train_attention", "sdpa") in options.settings
    assert training_bytes(options) == training_bytes(variant_of("motion_pi0", *TINY, **AS_STOCK))


# --- a step, taken apart ---


def test_a_step_trains_and_every_part_of_it_is_timed() -> None:
    trainee = Trainee(variant_of("motion_pi0", *TINY), CPU)
    before = [p.clone() for p in trainee.policy.model.motion_head.parameters()]

    seconds = trainee.step(make_batch(trainee.policy, 2, CPU))

    assert list(seconds) == ["forward", "backward", "optimizer"]
    assert min(seconds.values()) > 0
    after = trainee.policy.model.motion_head.parameters()
    assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))
    assert all(p.grad is None for p in trainee.policy.parameters())
    assert int(trainee.policy.model.motion_head.num_updates) == 1


def test_sdpa_keeps_less_for_the_backward_pass() -> None:
    kept = {}
    for attention in ("eager", "sdpa"):
        trainee = Trainee(variant_of("motion_pi0", *TINY, train_attention=attention), CPU)
        kept[attention] = trainee.kept_bytes(make_batch(trainee.policy, 2, CPU))
    assert 0 < kept["sdpa"] < kept["eager"]


def test_every_option_is_one_of_the_policys() -> None:
    for options in OPTIONS.values():
        policy = build(variant_of("motion_pi0", *TINY, **options), torch.device("meta"))
        for name, value in options.items():
            assert getattr(policy.config, name) == value


# --- what grows ---


def test_one_thing_grows_at_a_time() -> None:
    args = ScalingArguments(batch_size=4, dtype="float32", gradient_checkpointing=False)
    plain = point(args, BATCH, 4)

    assert point(args, BATCH, 8).batch_size == 8
    assert point(args, CAMERAS, 3).stock.num_cameras == 3
    assert dict(point(args, HORIZON, 16).stock.settings)["chunk_size"] == 16
    layers = point(args, LAYERS, 6)
    assert dict(layers.ours.settings)["motion_head_layers"] == 6
    assert (layers.stock, layers.batch_size) == (plain.stock, plain.batch_size)
    with pytest.raises(ValueError, match=r"values must be of .*'head layers'.*, got 'colours'"):
        point(args, "colours", 1)


@pytest.mark.parametrize("num_cameras", [1, 2, 3])
def test_policies_see_as_many_cameras_as_they_are_told(num_cameras: int) -> None:
    policy = build(variant_of("pi0", *TINY, num_cameras=num_cameras), CPU)
    batch = make_batch(policy, 1, CPU)
    assert sum("images" in key for key in batch) == num_cameras
    policy.forward(batch)


def test_views_are_of_the_cameras_that_both_policies_see() -> None:
    args = ScalingArguments(batch_size=1, size="tiny", dtype="float32")
    args.gradient_checkpointing = False
    each = point(args, VIEWS, 2)
    policy = build(each.ours, CPU)

    assert each.stock.num_cameras == each.ours.num_cameras == 3
    assert len(policy.config.motion_cameras) == 2
    policy.forward(make_batch(policy, 1, CPU))[0].backward()


# --- driving ---


def test_policies_drive_alike_and_are_counted() -> None:
    args = InferenceArguments(device="cpu", rounds=1, warmup=0)

    found = inference.benchmark(args, Path())

    (table,) = found.tables
    stock, ours, without_head, sdpa, unpadded, both = table.rows
    assert stock[0] == STOCK
    assert stock[-1] == ours[-1] == without_head[-1] == "0"
    assert all(0 < float(row[-1]) < 1e-5 for row in (sdpa, unpadded, both))
    assert stock[3] == ours[3] == without_head[3]
    assert int(sdpa[3]) < int(stock[3]) <= int(unpadded[3])
    assert stock[5] == without_head[5] != ours[5]
    assert [row[4] for row in table.rows] == ["–"] * 6


def test_less_than_no_absent_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match=r"absent_cameras must not be negative, got -1\."):
        inference.benchmark(InferenceArguments(device="cpu", absent_cameras=-1), Path())


# --- the compiled head ---


def test_one_head_of_two_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(MotionHead, "compile", lambda head: compiled.append(head))
    sizes = {"batch_size": 1, "layers": 1, "heads": 2, "dim": 32}

    found = compiled_head.benchmark(
        CompiledHeadArguments(device="cpu", rounds=2, warmup=0, **sizes), Path()
    )

    assert len(compiled) == 1
    (table,) = found.tables
    assert [row[0] for row in table.rows] == ["eager", "compiled"]
    assert found.settings["dim"] == 32
    assert all(len(rates) == 2 for rates in found.raw["passes_per_s"].values())
    assert "Compiling and the first pass took" in found.notes[0]


def test_heads_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_steps, "free_memory", lambda _: 8_000_000)
    args = CompiledHeadArguments(device="cpu", batch_size=1, layers=1, heads=2, dim=512)

    with pytest.raises(ValueError, match=r"needs \d+ bytes .* of main memory, 8000000 bytes"):
        compiled_head.benchmark(args, Path())


def test_both_heads_do_the_same_work() -> None:
    args = CompiledHeadArguments(batch_size=2, layers=1, heads=2, dim=32)
    heads = [compiled_head.Head(args, CPU) for _ in range(2)]

    for ours, theirs in zip(heads[0].inputs, heads[1].inputs, strict=True):
        assert torch.equal(ours, theirs)
    weights = [head.head.state_dict() for head in heads]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    heads[0].round(0)
    assert heads[0].inputs[2].grad is not None
