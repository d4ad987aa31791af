"""What is counted on tensors without numbers is what a real step does."""

from pathlib import Path
from typing import Any

import arithmetic
import pytest
import torch
from arithmetic import ArithmeticArguments, benchmark
from fake_gpu import needs_fake_gpu
from lerobot.lerobot_types import TransitionKey
from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor.converters import create_transition
from policy_steps import AS_STOCK, Trainee, training_bytes, variant_of
from regime_steps import LONG_TASK, PROMPT_TOKENS, STATE_DIM, build, make_batch
from step_counts import (
    CPU,
    CUDA,
    Counts,
    LiveBytes,
    bytes_beside,
    count_chunk,
    count_step,
    count_step_of,
    kept_by,
)
from tiny import shared_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer

BATCH_SIZE = 2


def variant(policy: str = "motion_pi0", dtype: str = "float32", **settings: Any) -> Any:
    small_head = {"motion_head_layers": 1, "motion_head_dim": 64, "motion_head_heads": 2}
    ours = AS_STOCK | small_head if policy.startswith("motion_") else {}
    return variant_of(policy, "tiny", dtype, **(ours | settings))


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        ("motion_pi0", {"gradient_checkpointing": True, "dtype": "bfloat16"}),
        ("motion_pi05", {"train_attention": "sdpa"}),
    ],
)
def test_counts_are_those_of_a_real_step(policy: str, settings: dict[str, Any]) -> None:
    each = variant(policy, **settings)
    torch.manual_seed(0)
    real = build(each, CPU)

    found = count_step(each, BATCH_SIZE)

    assert found == count_step_of(real, make_batch(real, BATCH_SIZE, CPU))
    assert found.backward > found.forward > 0
    assert found.peak >= max(found.kept, found.gradients)


@pytest.mark.parametrize("policy", ["motion_pi0", "motion_pi05"])
def test_counts_without_padding_are_those_of_a_real_step(policy: str) -> None:
    batch = {"prompt_tokens": 20, "absent_cameras": 1}
    each = variant(policy, train_skip_padding=True)
    torch.manual_seed(0)
    real = build(each, CPU)

    found = count_step(each, BATCH_SIZE, **batch)
    expected = count_step_of(real, make_batch(real, BATCH_SIZE, CPU, **batch))

    assert (found.forward, found.backward) == (expected.forward, expected.backward)
    # But for the numbers that are read.
    assert found.peak == pytest.approx(expected.peak, abs=10_000)
    padded = count_step(variant(policy), BATCH_SIZE, **batch)
    assert found.forward < 0.8 * padded.forward
    assert found.peak < padded.peak


def test_a_chunk_without_padding_is_counted() -> None:
    batch = {"prompt_tokens": 20, "absent_cameras": 1}
    padded = count_chunk(variant(), **batch)

    assert count_chunk(variant("pi0"), **batch) == padded
    assert count_chunk(variant(inference_skip_padding=True), **batch) < 0.8 * padded


def test_what_is_kept_is_what_autograd_saves() -> None:
    """The other way to find it, by hooks on what autograd saves."""
    each = variant()
    trainee = Trainee(each, CPU)

    saved = trainee.kept_bytes(make_batch(trainee.policy, BATCH_SIZE, CPU))

    assert count_step(each, BATCH_SIZE).kept == pytest.approx(saved, rel=0.05)


@needs_fake_gpu
@pytest.mark.parametrize("policy", ["pi0", "motion_pi0"])
def test_cudas_autocast_keeps_what_the_cpus_does(policy: str) -> None:
    each = variant(policy, dtype="bfloat16")

    assert kept_by(each, 1, CUDA) == pytest.approx(kept_by(each, 1, CPU), rel=0.02)


def test_fused_attention_is_counted() -> None:
    eager = count_step(variant(), 1)
    sdpa = count_step(variant(train_attention="sdpa"), 1)
    no_counter = training_bytes(variant()) - eager.constant - eager.gradients

    assert sdpa.forward == eager.forward
    # A fused backward pass computes the logits again.
    assert eager.backward < sdpa.backward < 1.1 * eager.backward
    assert sdpa.kept < eager.kept
    # Those of a regime, but for AdamW's counters of steps.
    assert 0 <= no_counter < 4_000


def test_prompts_are_as_long_as_lerobot_makes_them() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_file("tokenizers/paligemma"))
    observation = {"observation.state": torch.ones(1, STATE_DIM)}
    task = {"task": [LONG_TASK]}
    for base, step in (
        ("pi0", Pi0NewLineProcessor()),
        ("pi05", Pi05PrepareStateTokenizerProcessorStep()),
    ):
        transition = create_transition(observation=observation, complementary_data=dict(task))
        (prompt,) = step(transition)[TransitionKey.COMPLEMENTARY_DATA]["task"]

        assert len(tokenizer(prompt)["input_ids"]) == PROMPT_TOKENS[base]


# --- bytes ---


def test_policies_beside_each_other_take_their_steps_in_turn() -> None:
    stock, fused = variant("pi0"), variant(optimizer_fused=True)
    counts = [count_step(each, BATCH_SIZE) for each in (stock, fused)]
    steps = [counts[0].memory, counts[1].memory]
    expected = max(steps[0] + counts[1].constant, steps[1] + counts[0].constant)

    assert [each.fused for each in counts] == [False, True]
    assert bytes_beside(stock, [fused], BATCH_SIZE) == expected


def test_storages_count_while_something_holds_them() -> None:
    known = torch.zeros(1_000)
    with LiveBytes([known]) as live:
        doubled = known * 2
        view = known.view(10, 100), doubled[:10]
        assert live.live == 4_000
        del doubled
        assert live.live == 4_000
        del view
        assert live.live == 0
    assert live.peak == 4_000


def test_checkpointing_keeps_less_and_computes_more() -> None:
    block = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(4)])
    peaks, kept = [], []
    for checkpointed in (False, True):
        x = torch.ones(512, 64)
        with LiveBytes([*block.parameters(), x]) as live:
            for layer in block:
                x = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
            kept.append(live.live)
            x.sum().backward()
        peaks.append(live.peak)
        block.zero_grad()
    # Inputs of four layers, with and without what comes before each activation.
    assert kept == [8 * 512 * 64 * 4, 4 * 512 * 64 * 4]
    assert peaks[1] < peaks[0]


@pytest.mark.parametrize(("fused", "in_all"), [(True, 115), (False, 120)])
def test_the_most_may_be_in_the_optimizer(fused: bool, in_all: int) -> None:
    counts = Counts(forward=1, backward=2, kept=3, peak=15, gradients=10, constant=100, fused=fused)
    assert counts.memory == in_all


# --- the command ---


def test_a_table_has_the_stock_policy_first(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(forward=1, backward=2, kept=3, peak=15, gradients=10, constant=100, fused=False)
    monkeypatch.setattr(arithmetic, "count_step", lambda *_, **__: counts)
    monkeypatch.setattr(arithmetic, "count_chunk", lambda *_, **__: 7)
    monkeypatch.setattr(arithmetic, "kept_by", lambda *_: 3)

    found = benchmark(ArithmeticArguments(policy="motion_pi05"), Path())

    recomputed, kept, chunks = found.tables
    for table in (recomputed, kept):
        assert [row[0] for row in table.rows][:2] == ["pi05", "joint, as the stock policy computes"]
        assert table.rows[0][-1] == "1.000"
        assert table.markdown()
    assert [row[0] for row in chunks.rows] == ["pi05", "motion_pi05", "motion_pi05, no padding"]
    assert found.settings["prompt_tokens"] == PROMPT_TOKENS["pi05"]
    assert found.raw["steps"][0]["row"] == "pi05"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "pi0"}, r"policy must be one of \['motion_pi0', 'motion_pi05'\], got 'pi0'"),
        ({"dtype": "float16"}, r"dtype must be one of \['bfloat16', 'float32'\], got 'float16'"),
        ({"prompt_tokens": 0}, "at least 1 token .*, got 0 and 0"),
        ({"absent_cameras": -1}, "no less than 0 absent cameras, got None and -1"),
        ({"cameras": 0}, "at least 1 camera and 1 sample, got 0 and 4"),
    ],
)
def test_what_cannot_be_counted_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark(ArithmeticArguments(**settings), Path())
