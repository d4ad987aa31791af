"""What the package leans on in LeRobot: each test fails when LeRobot changes that.

Public behaviour is tested elsewhere; here are the names, calls and orders that no interface
promises.
"""

import ast
import dataclasses
import importlib.metadata
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lerobot.configs
import pytest
import torch
from lerobot.common import train_utils
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies import factory
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import RenameObservationsProcessorStep, batch_processor
from lerobot.processor.converters import batch_to_transition, transition_to_batch
from lerobot.rollout import context as rollout_context
from lerobot.scripts import lerobot_train
from tiny import (
    BASES,
    CAMERA,
    STATE_DIM,
    make_batch,
    make_motion_config,
    make_motion_policy,
    make_stock_policy,
    make_stock_processors,
    write_dataset,
)

from lerobot_motion.joint.configuration import JointMotionConfig


def source_tree(function: Callable[..., Any]) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def calls_in(function: Callable[..., Any]) -> list[str]:
    """Names of what a function calls, such as `cfg.validate`, in the order of the source."""
    nodes = [node for node in ast.walk(source_tree(function)) if isinstance(node, ast.Call)]
    nodes.sort(key=lambda node: (node.lineno, node.col_offset))
    return [ast.unparse(node.func) for node in nodes]


def globals_of(function: Callable[..., Any]) -> set[str]:
    """Global names that a function looks up when it runs."""
    return set(inspect.unwrap(function).__code__.co_names)


def test_the_version_is_the_one_the_package_was_made_for() -> None:
    major, minor, *_ = importlib.metadata.version("lerobot").split(".")

    assert (major, minor) == ("0", "6")


# --- the network of pi0 and pi0.5: joint/backbone.py ---


@pytest.fixture
def modeling(base: str) -> ModuleType:
    """LeRobot's module; that of pi0.5 has copies of all that is in pi0's."""
    return BASES[base].modeling


@pytest.fixture
def network(base: str, modeling: ModuleType) -> Any:
    """LeRobot's `PI0Pytorch` or `PI05Pytorch`."""
    return getattr(modeling, f"{base.upper()}Pytorch")


def test_what_is_replaced_is_looked_up_as_a_global(
    base: str, modeling: ModuleType, network: Any
) -> None:
    backbone = modeling.PaliGemmaWithExpertModel
    builders = {
        network.__name__: BASES[base].policy,
        "PaliGemmaWithExpertModel": network,
        "get_gemma_config": network,
        "PaliGemmaForConditionalGenerationWithPiGemma": backbone,
        "PiGemmaForCausalLM": backbone,
    }

    for name, builder in builders.items():
        assert hasattr(modeling, name)
        assert name in globals_of(builder.__init__)
    assert network.__module__ == backbone.__module__ == modeling.__name__


def test_the_networks_are_built_from_their_configuration_by_keyword(modeling: ModuleType) -> None:
    calls = {
        ast.unparse(node.func): [keyword.arg for keyword in node.keywords]
        for node in ast.walk(source_tree(modeling.PaliGemmaWithExpertModel.__init__))
        if isinstance(node, ast.Call)
    }

    assert calls["PaliGemmaForConditionalGenerationWithPiGemma"] == ["config"]
    assert calls["PiGemmaForCausalLM"] == ["config"]


def test_a_gemma_configuration_has_the_fields_of_the_tiny_one(modeling: ModuleType) -> None:
    parameters = list(inspect.signature(modeling.GemmaConfig).parameters)

    assert parameters == ["width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"]


def test_after_building_the_module_is_as_it_was(base: str, modeling: ModuleType) -> None:
    before = dict(vars(modeling))

    make_motion_policy(base=base)

    assert dict(vars(modeling)) == before


def test_our_network_is_in_the_place_of_lerobots(
    base: str, modeling: ModuleType, network: Any
) -> None:
    policy = make_motion_policy(base=base)

    assert isinstance(policy.model, network)
    assert type(policy.model).__name__ == f"MotionP{base[1:]}Model"
    assert isinstance(policy.model.paligemma_with_expert, modeling.PaliGemmaWithExpertModel)
    assert type(make_stock_policy(base=base).model) is network


def test_forward_calls_go_through_the_attribute_we_override(network: Any) -> None:
    """Not `self.paligemma_with_expert(...)`: and an override of `forward` sees either."""
    for method in (network.forward, network.sample_actions):
        calls = calls_in(method)
        assert "self.paligemma_with_expert.forward" in calls
        assert "self.embed_prefix" in calls


def test_the_backbone_returns_prefix_and_suffix_and_cache(base: str) -> None:
    policy = make_stock_policy(base=base).eval()
    seen = []
    backbone = policy.model.paligemma_with_expert
    forward = backbone.forward
    backbone.forward = lambda *args, **kwargs: seen.append(forward(*args, **kwargs)) or seen[-1]

    policy.forward(make_batch(policy))
    policy.predict_action_chunk(make_batch(policy), num_steps=1)

    ((prefix, suffix), cache), ((prefix_alone, none), prefix_cache), ((nothing, step), _) = seen
    num_tokens = (112 // 28) ** 2 + policy.config.tokenizer_max_length
    assert prefix.shape == prefix_alone.shape == (2, num_tokens, 128)
    # pi0 has a token for the state; pi0.5 has it in the prompt.
    num_states = {"pi0": 1, "pi05": 0}[base]
    assert suffix.shape == step.shape == (2, num_states + 4, 128)
    assert cache is none is nothing is None
    assert prefix_cache is not None


def test_the_prefix_comes_with_its_pad_mask(base: str) -> None:
    policy = make_stock_policy(base=base)
    batch = make_batch(policy)
    images, masks = policy._preprocess_images(batch)

    embeddings, pad_mask, attention_mask = policy.model.embed_prefix(
        images,
        masks,
        batch["observation.language.tokens"],
        batch["observation.language.attention_mask"],
    )

    assert embeddings.shape[:2] == pad_mask.shape == attention_mask.shape
    assert pad_mask.dtype == torch.bool
    num_tokens = policy.config.tokenizer_max_length
    assert torch.equal(pad_mask[:, -num_tokens:], batch["observation.language.attention_mask"])


def test_noise_and_time_are_drawn_by_the_policy_before_the_network_runs(
    base: str, network: Any
) -> None:
    """Ours are drawn afterwards: the action's are then those of the stock policy."""
    calls = calls_in(BASES[base].policy.forward)

    order = [
        calls.index(f"self.model.{name}") for name in ("sample_noise", "sample_time", "forward")
    ]
    assert order == sorted(order)
    assert "sample_noise" not in " ".join(calls_in(network.forward))


def test_time_runs_from_data_to_noise(network: Any) -> None:
    """LeRobot's convention, which the motion half shares: x_1 is noise, u = noise - data."""
    source = inspect.getsource(network.forward)

    assert "x_t = time_expanded * noise + (1 - time_expanded) * actions" in source
    assert "u_t = noise - actions" in source


def test_time_is_drawn_as_the_design_says(base: str) -> None:
    model = make_stock_policy(base=base).model
    config = BASES[base].policy.config_class(device="cpu")

    assert config.time_sampling_beta_alpha == 1.5
    assert config.time_sampling_beta_beta == 1.0
    assert (config.time_sampling_scale, config.time_sampling_offset) == (0.999, 0.001)
    torch.manual_seed(0)
    time = model.sample_time(20_000, "cpu")
    assert time.min() >= 0.001
    assert time.max() <= 1.0
    assert time.mean().item() == pytest.approx(0.6 * 0.999 + 0.001, abs=0.01)


def test_the_policy_has_the_methods_that_ours_call(base: str) -> None:
    policy = BASES[base].policy

    assert list(inspect.signature(policy.forward).parameters) == ["self", "batch", "reduction"]
    keys = list(inspect.signature(policy._fix_pytorch_state_dict_keys).parameters)
    assert keys == ["self", "state_dict", "model_config"]
    assert list(inspect.signature(policy._preprocess_images).parameters) == ["self", "batch"]
    assert policy.get_optim_params(make_stock_policy(base=base))
    assert callable(PreTrainedPolicy.wrap_with_peft)


def test_the_stock_policy_knows_nothing_of_our_fields(base: str) -> None:
    stock_config = BASES[base].policy.config_class(device="cpu")
    our_config = BASES[base].motion_policy.config_class(device="cpu")
    fields = {field.name for field in dataclasses.fields(stock_config)}
    ours = {field.name for field in dataclasses.fields(our_config)}
    added = {field.name for field in dataclasses.fields(JointMotionConfig)}

    assert ours == fields | added
    assert not fields & added
    for name in fields:
        assert getattr(our_config, name) == getattr(stock_config, name), name


# --- the training script: training/run.py, joint/configuration.py ---


def test_the_run_is_validated_before_anything_is_built() -> None:
    calls = calls_in(lerobot_train.train)

    order = [
        calls.index(name) for name in ("cfg.validate", "make_policy", "make_pre_post_processors")
    ]
    assert order == sorted(order)
    assert calls.index("make_train_eval_datasets") > calls.index("cfg.validate")


def test_validation_is_a_method_that_can_be_wrapped() -> None:
    assert list(inspect.signature(TrainPipelineConfig.validate).parameters) == ["self"]
    names = {field.name for field in dataclasses.fields(TrainPipelineConfig)}
    assert {"steps", "rename_map", "resume", "dataset", "policy"} <= names


def test_a_rename_map_needs_a_checkpoint() -> None:
    """So that renaming is met in `from_pretrained` alone."""
    source = inspect.getsource(inspect.unwrap(TrainPipelineConfig.validate))

    assert "self.rename_map and active_cfg.pretrained_path is None" in source


def test_the_processors_are_chosen_by_the_path_after_the_policy_is_built() -> None:
    lines = inspect.getsource(inspect.unwrap(lerobot_train.train)).splitlines()

    def line_of(text: str) -> int:
        return next(i for i, line in enumerate(lines) if text in line)

    built = line_of("policy = make_policy(")
    read = line_of("processor_pretrained_path = active_cfg.pretrained_path")
    used = line_of("pretrained_path=processor_pretrained_path")
    assert built < line_of("policy.wrap_with_peft(") < read < used
    assert "policy_cfg=cfg.policy" in "".join(lines[used - 1])


def test_the_factory_calls_ours_with_configuration_and_statistics(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_processors = BASES[base].make_motion_processors
    calls = []
    monkeypatch.setattr(
        inspect.getmodule(make_processors),
        make_processors.__name__,
        lambda config, dataset_stats=None: calls.append((config, dataset_stats)),
    )
    config = make_motion_config(base=base)

    factory.make_pre_post_processors(config, pretrained_path=None, dataset_stats={"a": 1})

    assert calls == [(config, {"a": 1})]


def test_make_policy_hands_over_the_dataset(tmp_path: Path) -> None:
    from lerobot.datasets import LeRobotDatasetMetadata

    root = write_dataset(tmp_path / "data", num_episodes=1, num_frames=8)
    meta = LeRobotDatasetMetadata("tests/tiny", root=root)
    config = make_motion_config(
        input_features={}, output_features={}, motion_camera=None, pretrained_path=None
    )

    policy = factory.make_policy(config, ds_meta=meta)

    assert policy.config is config
    assert config.motion_camera == CAMERA
    assert config.image_features[CAMERA].shape == (3, 48, 64)


def test_the_policy_is_updated_after_every_optimizer_step() -> None:
    calls = calls_in(lerobot_train.update_policy)

    def place(name: str) -> int:
        return next(i for i, call in enumerate(calls) if call.endswith(name))

    assert place("policy.forward") < place("optimizer.step") < place(").update")


def test_everything_scalar_in_the_output_is_logged() -> None:
    calls = calls_in(lerobot_train.update_policy)

    assert "train_metrics.update_metrics" in calls


def test_of_every_observation_both_frames_are_asked_for(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = write_dataset(tmp_path / "data", num_episodes=2, num_frames=6, fps=10)
    config = make_motion_config(motion_horizon=2)
    meta = LeRobotDataset("tests/tiny", root=root).meta
    timestamps = resolve_delta_timestamps(config, meta)
    dataset = LeRobotDataset("tests/tiny", root=root, delta_timestamps=timestamps)

    inside, end = dataset[1], dataset[4]

    assert timestamps[CAMERA] == timestamps["observation.state"] == [0, 0.2]
    assert inside["observation.state"].shape == (2, STATE_DIM)
    assert inside[CAMERA].shape == (2, 3, 48, 64)
    assert torch.equal(inside[CAMERA][1], dataset[3][CAMERA][0])
    for key in (CAMERA, "observation.state"):
        assert inside[f"{key}_is_pad"].tolist() == [False, False]
        assert end[f"{key}_is_pad"].tolist() == [False, True]
    # Past the end it is the last frame, not the next episode's.
    assert torch.equal(end[CAMERA][1], dataset[5][CAMERA][0])


# --- processors: motion_pi0/processor_motion_pi0.py and its sibling, steps.py ---

# Where the stock policies have tokenizer_processor, the tests have byte_tokenizer_processor.
STEPS = {
    "pi0": [
        "rename_observations_processor",
        "to_batch_processor",
        "pi0_new_line_processor",
        "byte_tokenizer_processor",
        "device_processor",
        "relative_actions_processor",
        "normalizer_processor",
    ],
    "pi05": [
        "rename_observations_processor",
        "to_batch_processor",
        "relative_actions_processor",
        "normalizer_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        "byte_tokenizer_processor",
        "device_processor",
    ],
}


def registered_names(pipeline: Any) -> list[str]:
    return [type(step)._registry_name for step in pipeline.steps]


def test_the_steps_of_the_stock_policy_are_the_ones_we_mirror(base: str) -> None:
    preprocessor, postprocessor = make_stock_processors(make_stock_policy(base=base).config)

    assert registered_names(preprocessor) == STEPS[base]
    assert registered_names(postprocessor) == [
        "unnormalizer_processor",
        "absolute_actions_processor",
        "device_processor",
    ]


def test_the_names_that_lerobots_commands_override_are_in_ours(base: str) -> None:
    config = make_motion_config(base=base)
    preprocessor, postprocessor = BASES[base].make_motion_processors(config)

    ours = set(registered_names(preprocessor))
    assert {"device_processor", "normalizer_processor", "rename_observations_processor"} <= ours
    assert "motion_target_processor" in ours
    assert "unnormalizer_processor" in registered_names(postprocessor)


def test_flags_travel_beside_the_observations() -> None:
    transition = batch_to_transition(
        {
            "observation.state": torch.zeros(2, 2, 3),
            "observation.state_is_pad": torch.zeros(2, 2, dtype=torch.bool),
            "action_is_pad": torch.zeros(2, 4, dtype=torch.bool),
            "index": torch.arange(2),
        }
    )

    assert set(transition["observation"]) == {"observation.state", "observation.state_is_pad"}
    complementary = set(transition["complementary_data"])
    assert {"action_is_pad", "observation.state_is_pad", "index"} <= complementary


def test_what_a_step_adds_to_the_complementary_data_reaches_the_batch() -> None:
    transition = batch_to_transition({"observation.state": torch.zeros(2, 3)})
    transition["complementary_data"] = {"motion_latent": 1}

    assert transition_to_batch(transition)["motion_latent"] == 1


def test_renaming_leaves_the_flags_names() -> None:
    """Why the target step must find the flags of renamed cameras itself."""
    step = RenameObservationsProcessorStep(rename_map={"a": "b"})

    assert set(step.observation({"a": 1, "a_is_pad": 2})) == {"b", "a_is_pad"}


def test_the_batch_dimension_is_added_to_single_observations_alone() -> None:
    step = batch_processor.AddBatchDimensionObservationStep()
    stacked = {"observation.state": torch.zeros(3, 2, 6), CAMERA: torch.zeros(3, 2, 3, 4, 4)}

    result = step.observation(dict(stacked))

    assert {key: value.shape for key, value in result.items()} == {
        key: value.shape for key, value in stacked.items()
    }


def test_a_policy_configuration_is_saved_by_its_fields_alone(tmp_path: Path) -> None:
    """Notes such as the run are attributes, not fields: they stay out of config.json."""
    config = make_motion_config()
    config._train_run = SimpleNamespace(secret=1)

    config.save_pretrained(tmp_path)

    loaded = lerobot.configs.PreTrainedConfig.from_pretrained(tmp_path)
    assert loaded.train_run is None


# --- adapters: joint/adapters.py ---


def test_lerobot_saves_the_configuration_of_adapters_only_in_a_run_with_peft() -> None:
    source = inspect.getsource(train_utils.save_checkpoint)

    assert "if cfg.peft is not None:" in source
    assert source.index("if cfg.peft is not None:") < source.index("policy.config.save_pretrained")


def test_adapters_reach_their_base_through_from_pretrained() -> None:
    """The base is loaded with the configuration of the adapters, whose place is its path."""
    for load in (factory.make_policy, rollout_context._load_pretrained_policy):
        source = inspect.getsource(load)
        assert source.index("base_model_name_or_path") < source.index("PeftModel.from_pretrained(")
        assert ".revision" in source
    names = ("wrap_with_peft", "_preprocess_peft_cli_overrides", "_validate_peft_config")
    assert all(callable(getattr(PreTrainedPolicy, name)) for name in names)
    source = inspect.getsource(PreTrainedPolicy.wrap_with_peft)
    assert "self.name_or_path = str(self.config.pretrained_path)" in source


# --- training and evaluation mode: joint/modes.py ---


@pytest.mark.parametrize("method", ["select_action", "predict_action_chunk"])
def test_lerobot_asks_for_evaluation_before_every_action(base: str, method: str) -> None:
    """Without this there would be nothing to save."""
    assert calls_in(getattr(BASES[base].policy, method)).count("self.eval") == 1


def test_lerobot_asks_for_training_before_every_step() -> None:
    assert calls_in(lerobot_train.update_policy).count("policy.train") == 1


def test_only_frozen_parts_are_kept_from_training_mode(modeling: ModuleType) -> None:
    own = [
        found
        for found in vars(modeling).values()
        if inspect.isclass(found) and found.__module__ == modeling.__name__
    ]
    assert [each.__name__ for each in own if "train" in vars(each)] == ["PaliGemmaWithExpertModel"]
    tree = source_tree(modeling.PaliGemmaWithExpertModel.train)
    conditions = [ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, ast.If)]
    assert conditions == ["self.freeze_vision_encoder", "self.train_expert_only"]


# --- padding of the prefix: joint/padding.py ---


def test_cameras_that_are_absent_come_last_and_masked(base: str) -> None:
    cameras = (CAMERA, "observation.images.wrist")
    policy = make_stock_policy(base=base, cameras=cameras)
    batch = make_batch(policy)
    del batch[CAMERA]

    images, masks = policy._preprocess_images(batch)

    assert [mask.any().item() for mask in masks] == [True, False]
    assert torch.equal(images[1], torch.full_like(images[0], -1))


def test_the_prefix_is_embedded_from_positional_arguments(network: Any) -> None:
    names = ["self", "images", "img_masks"]
    parameters = list(inspect.signature(network.embed_prefix).parameters)
    assert parameters[:3] == names
    assert len(parameters) == 5
    for caller in (network.forward, network.sample_actions):
        assert calls_in(caller).count("self.embed_prefix") == 1
        assert re.search(
            r"self\.embed_prefix\(\s*images, img_masks, \w+, \w+\s*\)",
            inspect.getsource(inspect.unwrap(caller)),
        )
