"""What LeRobot finds by name: the policy type, its class, its processors and its steps."""

import importlib
import importlib.metadata
import inspect
from pathlib import Path
from types import ModuleType

import pytest
from draccus.wrappers.docstring import get_attribute_docstring
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.factory import get_policy_class
from lerobot.processor import ProcessorStepRegistry

import lerobot_motion


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin, imported as LeRobot does; its hook is undone after the test."""
    monkeypatch.setattr(TrainPipelineConfig, "validate", TrainPipelineConfig.validate)
    return importlib.import_module("lerobot_policy_motion")


def test_the_distribution_is_named_as_lerobot_looks_for_it() -> None:
    names = {d.metadata["Name"] for d in importlib.metadata.distributions()}

    assert "lerobot_policy_motion" in names
    assert importlib.metadata.version("lerobot_policy_motion") == lerobot_motion.__version__


def test_the_installed_plugin_is_the_sources(plugin: ModuleType) -> None:
    """An editable install copies it: `make setup` after each change of `_plugin.py`."""
    source = Path(lerobot_motion.__file__).with_name("_plugin.py")

    assert Path(plugin.__file__).read_text() == source.read_text()


@pytest.mark.parametrize("base", ["Pi0", "Pi05"])
def test_the_policy_is_found_by_its_type(base: str) -> None:
    policy_type = f"motion_{base.lower()}"
    config_class = PreTrainedConfig.get_choice_class(policy_type)
    policy_class = get_policy_class(policy_type)

    assert config_class.__name__ == f"Motion{base}Config"
    assert policy_class.__name__ == f"Motion{base}Policy"
    assert policy_class.name == config_class(device="cpu").type == policy_type
    assert policy_class.base_policy_type == base.lower()
    assert policy_class.config_class is config_class
    parameters = inspect.signature(policy_class.__init__).parameters
    assert parameters["config"].annotation is config_class


@pytest.mark.parametrize("name", ["motion_pi0", "motion_pi05"])
def test_the_processors_are_found_by_their_name(name: str) -> None:
    module = importlib.import_module(f"lerobot_motion.{name}.processor_{name}")

    parameters = inspect.signature(getattr(module, f"make_{name}_pre_post_processors")).parameters

    assert list(parameters) == ["config", "dataset_stats"]


@pytest.mark.parametrize("name", ["motion_target_processor", "byte_tokenizer_processor"])
def test_the_steps_are_registered(name: str) -> None:
    assert ProcessorStepRegistry.get(name).__module__ == "lerobot_motion.steps"


@pytest.mark.parametrize("base", ["Pi0", "Pi05"])
def test_every_field_of_ours_has_its_help(base: str) -> None:
    """As draccus looks for it, when --help is asked for."""
    from lerobot_motion.joint.configuration import JointMotionConfig

    module = f"lerobot_motion.motion_{base.lower()}.configuration_motion_{base.lower()}"
    config = getattr(importlib.import_module(module), f"Motion{base}Config")
    names = set(JointMotionConfig.__dataclass_fields__)
    helps = {name: get_attribute_docstring(config, name).comment_above for name in names}

    assert len(names) > 25
    assert [name for name, text in helps.items() if len(text) < 20] == []
