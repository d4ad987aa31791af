"""Pytest plugin for LeRobot's own tests: where they name a policy, they get a tiny one of ours.

That is motion_pi05 where they name pi05, and motion_pi0 everywhere else. Used as
`python -m pytest -p as_motion` in a checkout of LeRobot; see test_lerobot_suite.py.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import lerobot.policies.factory
import pytest
import tests.utils
import torch

from lerobot_motion.motion_pi0.modeling_motion_pi0 import MotionPi0Policy
from lerobot_motion.motion_pi0.processor_motion_pi0 import make_motion_pi0_pre_post_processors
from lerobot_motion.motion_pi05.modeling_motion_pi05 import MotionPi05Policy
from lerobot_motion.motion_pi05.processor_motion_pi05 import make_motion_pi05_pre_post_processors

# Settings that a test does not give.
DEFAULTS: dict[str, Any] = {
    "backbone": "tiny",
    "device": "cpu",
    "motion_camera": "observation.images.base_0_rgb",
    "motion_latent_shape": (3, 28, 28),
}


def get_class(policy_type: str) -> type[Any]:
    """Return our policy, whichever is asked for."""
    return MotionPi05Policy if "pi05" in policy_type else MotionPi0Policy


def make_config(policy_type: str = "pi0", **settings: Any) -> Any:
    """Build our tiny configuration, whichever policy is asked for."""
    return get_class(policy_type).config_class(**{**DEFAULTS, **settings})


def make_processors(config: Any, dataset_stats: Any = None) -> tuple[Any, Any]:
    """Build our processors; training batches get a second frame, as lerobot-train gives them."""
    make = {
        "motion_pi0": make_motion_pi0_pre_post_processors,
        "motion_pi05": make_motion_pi05_pre_post_processors,
    }[config.type]
    preprocessor, postprocessor = make(config, dataset_stats)
    return (lambda batch: preprocessor(with_later_frame(batch))), postprocessor


def with_later_frame(batch: dict[str, Any]) -> dict[str, Any]:
    """Stack every observation of a training batch with itself: (B, ...) to (B, 2, ...)."""
    if "action" not in batch:
        return batch
    stacked = {
        key: torch.stack([value, value], dim=1)
        for key, value in batch.items()
        if key.startswith("observation.")
    }
    flags = {f"{key}_is_pad": torch.zeros(value.shape[:2]) > 0 for key, value in stacked.items()}
    return {**batch, **stacked, **flags}


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Leave a test as it is: ours needs neither a GPU nor a token."""
    return function


tests.utils.require_cuda = tests.utils.require_hf_token = undecorated
lerobot.policies.factory.make_policy_config = make_config
lerobot.policies.factory.get_policy_class = get_class
for base in ("pi0", "pi05"):
    names = {
        f"{base.upper()}Config": functools.partial(make_config, base),
        f"{base.upper()}Policy": get_class(base),
        f"make_{base}_pre_post_processors": make_processors,
    }
    for module in ("", f".configuration_{base}", f".processor_{base}"):
        place = importlib.import_module(f"lerobot.policies.{base}{module}")
        for name in names.keys() & vars(place).keys():
            setattr(place, name, names[name])


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let the tests of all policies run for ours alone."""
    if hasattr(metafunc.module, "AVAILABLE_POLICIES"):
        metafunc.module.AVAILABLE_POLICIES[:] = ["motion_pi0", "motion_pi05"]


@pytest.fixture(autouse=True)
def gated_tokenizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the comparison with openpi's processors a local copy of PaliGemma's tokenizer."""
    if request.module.__name__.endswith(("test_pi0_processor", "test_pi05_processor")):
        path = os.environ["PALIGEMMA_TOKENIZER"]
        monkeypatch.setitem(DEFAULTS, "tokenizer_name", path)
        monkeypatch.setattr("tests.policies.pi0_pi05.utils.openpi_parity.TOKENIZER_NAME", path)
