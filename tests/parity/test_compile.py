"""torch.compile: the prefix that the motion head reads keeps its gradient, and the head joins in.

With a backend that traces as inductor does and leaves out minutes of code generation.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
from tiny import BASES, CAMERA, make_batch, make_motion_policy, make_stock_policy, wake_motion_head
from torch import Tensor
from torch._dynamo.utils import counters

from lerobot_motion.joint import backbone
from lerobot_motion.joint.backbone import TINY_LAYERS, replaced


@dataclass
class Compilations:
    """What was compiled while a test ran: functions and inductor's modes, in order."""

    functions: list[str] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compilations]:
    """torch.compile with a quick backend, starting with nothing compiled."""
    found = Compilations()
    compile_with = torch.compile

    def compile_quickly(function: Callable[..., Any], mode: str) -> Any:
        found.functions.append(function.__qualname__)
        found.modes.append(mode)
        return compile_with(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    torch._dynamo.reset()
    counters.clear()
    yield found
    torch._dynamo.reset()


def make_shallow(base: str, **settings: Any) -> Any:
    """Our policy with one layer of everything: a layer more is seconds of tracing more."""
    with replaced(backbone, TINY_LAYERS=1):
        return wake_motion_head(make_motion_policy(base=base, motion_head_layers=1, **settings))


def gradients(policy: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(7)
    loss, _ = policy.train().forward(batch)
    loss.backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


VIEWS = (CAMERA, "observation.images.wrist")
MORE = {
    "cameras": VIEWS,
    "motion_camera": list(VIEWS),
    "motion_samples_per_step": 2,
    "train_attention": "sdpa",
}


@pytest.mark.parametrize(
    ("base", "gradient_checkpointing", "further"),
    [
        ("pi0", False, {}),
        ("pi0", True, {}),
        ("pi05", True, {}),
        pytest.param("pi0", False, MORE, id="views, draws and sdpa"),
    ],
)
def test_compiled_gradients_are_those_of_eager_mode(
    base: str, gradient_checkpointing: bool, further: dict[str, Any], compilations: Compilations
) -> None:
    settings = {"gradient_checkpointing": gradient_checkpointing, "compile_model": True}
    policy, eager_policy = make_shallow(base, **settings, **further), make_shallow(base, **further)
    batch = make_batch(policy)
    eager = gradients(eager_policy, batch)

    found = gradients(policy, batch)

    assert [name.split(".")[-1] for name in compilations.functions] == [
        "sample_actions",
        "forward",
        "_call_impl",
    ]
    assert set(found) == set(eager)
    for name, expected in eager.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5, msg=name)
    # Two graphs, LeRobot's and the head's, are all that there is. LeRobot's breaks by itself where
    # it recomputes the vision tower; what keeps the prefix breaks nothing. PyTorch 2.7 breaks at
    # more of LeRobot's code.
    breaks = list(counters["graph_break"])
    assert not any("PrefixKeeping" in reason for reason in breaks)
    if torch.__version__ < "2.8":
        assert breaks
    elif gradient_checkpointing:
        assert all("CompileableContextVar" in reason for reason in breaks)
    else:
        assert breaks == []
        assert counters["stats"]["unique_graphs"] == 2


def test_recomputed_layers_are_computed_twice_and_not_three_times(base: str) -> None:
    """LeRobot's own checkpoint around all layers has each layer computed three times."""
    calls = Counter[str]()
    for name, make in (("stock", make_stock_policy), ("ours", make_motion_policy)):
        policy = make(base=base, gradient_checkpointing=True).train()
        module = BASES[base].modeling
        layer = module.compute_layer_complete

        def counted(*args: Any, name: str = name, layer: Any = layer, **kwargs: Any) -> Any:
            calls[name] += 1
            return layer(*args, **kwargs)

        with replaced(module, compute_layer_complete=counted):
            policy.forward(make_batch(policy))[0].backward()

    assert calls == {"stock": 3 * TINY_LAYERS, "ours": 2 * TINY_LAYERS}


# --- the head alone ---


def test_the_head_is_one_graph(compilations: Compilations) -> None:
    """In training and in imagining: nothing of it goes back to Python in between."""
    head = make_motion_policy().model.motion_head
    inputs = (torch.randn(2, 3, 14, 14), torch.rand(2), torch.randn(2, 5, 128))

    found = torch._dynamo.explain(head)(*inputs, torch.ones(2, 5, dtype=torch.bool))

    assert (found.graph_count, found.graph_break_count) == (1, 0)


def test_the_balance_of_gradients_can_be_measured(
    compilations: Compilations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functorch_config, "donated_buffer", True)
    settings = {"log_gradient_balance": True, "gradient_checkpointing": True}
    policy = make_shallow("pi0", compile_model=True, **settings)
    eager_policy = make_shallow("pi0", **settings)
    batch = make_batch(policy)
    logs = []

    for each in (policy, eager_policy):
        torch.manual_seed(7)
        loss, log = each.train().forward(batch)
        loss.backward()
        logs.append({name: value for name, value in log.items() if "gradient" in name})

    assert not functorch_config.donated_buffer
    assert len(logs[0]) == 3
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)


@pytest.mark.parametrize(
    ("mode", "head_mode"),
    [
        ("max-autotune", "max-autotune-no-cudagraphs"),
        ("reduce-overhead", "default"),
        ("default", "default"),
    ],
)
def test_the_head_has_no_cuda_graphs(mode: str, head_mode: str, compilations: Compilations) -> None:
    make_motion_policy(compile_model=True, compile_mode=mode)

    assert compilations.modes == [mode, mode, head_mode]


def test_nothing_is_compiled_unasked(compilations: Compilations) -> None:
    policy = make_motion_policy()
    without_head = make_motion_policy(compile_model=True, load_motion_head=False)

    assert policy.model.motion_head._compiled_call_impl is None
    assert without_head.model.motion_head is None
    assert compilations.functions == ["PI0Pytorch.sample_actions", "PI0Pytorch.forward"]
