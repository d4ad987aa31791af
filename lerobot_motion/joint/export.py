"""Export: a checkpoint of ours as one of LeRobot's own policy, which loads without this package.

Nothing is built to do so: tensors, configuration and steps that LeRobot does not know are left
out. Only adapters have to be merged into the network that they were trained on.
"""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.processor import ProcessorStepRegistry
from lerobot.utils.constants import (
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
)
from lerobot.utils.import_utils import require_package
from safetensors.torch import save_file
from torch import Tensor

from lerobot_motion.checkpoints.export_card import export_card
from lerobot_motion.checkpoints.loading import (
    MOTION_HEAD_PREFIX,
    CheckpointSource,
    read_policy_type,
    read_weights,
)
from lerobot_motion.files import sync
from lerobot_motion.joint.adapters import ADAPTER_SETTINGS, ADAPTER_WEIGHTS
from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.steps import IS_PAD, MOTION_TARGET_STEP

logger = logging.getLogger(__name__)

PIPELINES = (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME)
_NUM_UPDATES = f"{MOTION_HEAD_PREFIX}num_updates"
_DEVICE_STEP = "device_processor"
_RENAME_STEP = "rename_observations_processor"
_TOKENIZER_STEP = "tokenizer_processor"

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        path: Directory of the new checkpoint.
        policy_type: Its policy type, LeRobot's own.
        num_tensors: Tensors that it holds.
        num_dropped: Tensors of the motion head that were left out.
    """

    path: Path
    policy_type: str
    num_tensors: int
    num_dropped: int


def export_checkpoint(
    source: CheckpointSource,
    output: Path,
    *,
    repo_id: str | None = None,
    tokenizer_name: str | None = None,
) -> Export:
    """Write one of our checkpoints as a plain checkpoint of its base policy.

    Args:
        source: The checkpoint; adapters are merged into the weights that they belong to.
        output: Directory to write; it must not exist.
        repo_id: Repository that the checkpoint is meant for, noted in its configuration.
        tokenizer_name: Tokenizer to name in it instead of the one that it was trained with.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If the checkpoint or one of its files cannot be found.
        FileExistsError: If `output` exists.
        OSError: If something cannot be read or written.
        ValueError: If the checkpoint is not ours, or is one that LeRobot alone cannot run.
    """
    if output.exists():
        raise FileExistsError(
            f"output: {output} exists; an export never overwrites. Name another directory."
        )
    motion_type = read_policy_type(source, _motion_types(), advice="Only these need an export.")
    base_type = str(get_policy_class(motion_type).base_policy_type)
    config = json.loads(source.file(CONFIG_NAME).read_text())
    _refuse_tiny(config)
    with _new_directory(output) as directory:  # before gigabytes are read in vain
        num_tensors, num_dropped = _write_checkpoint(
            source, config, base_type, directory, repo_id, tokenizer_name
        )
    return Export(output, base_type, num_tensors, num_dropped)


@contextmanager
def _new_directory(output: Path) -> Iterator[Path]:
    """A directory beside `output` to write to; at the end of this context it gets that name."""
    temporary = output.with_name(f".{output.name}.{uuid4().hex}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise OSError(
            f"output: cannot write to {output.parent} ({error.strerror}). Name a directory that "
            "can be written to."
        ) from error
    try:
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_checkpoint(
    source: CheckpointSource,
    config: Json,
    base_type: str,
    directory: Path,
    repo_id: str | None,
    tokenizer_name: str | None,
) -> tuple[int, int]:
    """Write all files; returns how many tensors were written, and how many left out."""
    pipelines = {name: _stock_pipeline(source, name, tokenizer_name) for name in PIPELINES}
    state = merged_weights(source) if config.get("use_peft") else read_weights(source)
    kept = {key: v for key, v in state.items() if not key.startswith(MOTION_HEAD_PREFIX)}
    texts = {
        CONFIG_NAME: _dumps(stock_config(config, base_type, repo_id)),
        "README.md": export_card(config, base_type, source, state.get(_NUM_UPDATES)),
        **{f"{name}.json": _dumps(pipeline) for name, (pipeline, _) in pipelines.items()},
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    for _, files in pipelines.values():
        for name, path in files.items():
            shutil.copyfile(path, directory / name)
    # As LeRobot saves it; without the note transformers refuses such files.
    save_file(kept, directory / SAFETENSORS_SINGLE_FILE, metadata={"format": "pt"})
    return len(kept), len(state) - len(kept)


def stock_config(config: Json, base_type: str, repo_id: str | None = None) -> Json:
    """Configuration of the base policy.

    Args:
        config: Contents of our config.json.
        base_type: LeRobot's policy type.
        repo_id: Repository of the exported checkpoint; not that of the one it came from, which a
            later training run would overwrite.

    Returns:
        The base policy's own fields, without the path that training started from.
    """
    fields = {f.name for f in dataclasses.fields(PreTrainedConfig.get_choice_class(base_type))}
    stock = {key: value for key, value in config.items() if key in fields}
    settled = {"pretrained_path": None, "use_peft": False, "repo_id": repo_id}
    return {"type": base_type, **stock, **settled}


def stock_steps(steps: list[Json]) -> list[Json]:
    """Steps of the base policy's pipeline, as its JSON file lists them.

    Args:
        steps: Steps of our pipeline.

    Returns:
        The steps but for the motion target and the device step that was put before it for its sake
        (pi0.5), with renaming of observations alone, not of their flags.
    """
    names = [step.get("registry_name") for step in steps]
    dropped = set()
    if MOTION_TARGET_STEP in names:
        position = names.index(MOTION_TARGET_STEP)
        dropped.add(position)
        if names[position - 1] == _DEVICE_STEP and _DEVICE_STEP in names[position:]:
            dropped.add(position - 1)
    kept = [dict(step) for i, step in enumerate(steps) if i not in dropped]
    for step in kept:
        if step.get("registry_name") == _RENAME_STEP:
            names_by_old = step["config"]["rename_map"]
            flagless = {k: v for k, v in names_by_old.items() if not k.endswith(IS_PAD)}
            step["config"] = {**step["config"], "rename_map": flagless}
    return kept


def _motion_types() -> list[str]:
    choices = PreTrainedConfig.get_known_choices()
    return [name for name, choice in choices.items() if issubclass(choice, JointMotionConfig)]


def _refuse_tiny(config: Json) -> None:
    if config.get("backbone") == "tiny":
        raise ValueError(
            "a checkpoint with backbone=tiny cannot be exported: LeRobot has no network of that "
            "size. The tiny backbone is for tests and tours; train with backbone=paligemma."
        )


def merged_weights(source: CheckpointSource) -> dict[str, Tensor]:
    """Merge a checkpoint's adapters into the policy that they were trained on; see `merged_policy`.

    Args:
        source: A checkpoint that was trained with `--peft.method_type=…`.

    Returns:
        The policy's tensors, on the CPU, as if all of them had been trained.
    """
    policy = merged_policy(source)
    return {key: value.contiguous() for key, value in policy.state_dict().items()}


def merged_policy(source: CheckpointSource, config: Any | None = None) -> Any:
    """Load the policy that adapters were trained on, and merge them into it.

    Args:
        source: A checkpoint that was trained with `--peft.method_type=…`.
        config: Configuration to use instead of the checkpoint's, or None for that one on the CPU.

    Returns:
        The policy, as if all of its weights had been trained.

    Raises:
        FileNotFoundError: If the adapters or the checkpoint that they belong to cannot be found.
        ImportError: If peft is not installed.
        OSError: If weights cannot be read.
        ValueError: If the adapters do not say what they belong to, or do not fit it.
    """
    require_package("peft", extra="peft")
    from peft import PeftConfig, PeftModel

    directory = source.file(ADAPTER_SETTINGS).parent
    source.file(ADAPTER_WEIGHTS)
    adapter = PeftConfig.from_pretrained(str(directory))
    if not adapter.base_model_name_or_path:
        raise ValueError(
            f"checkpoint {source.path}: {ADAPTER_SETTINGS} names no base_model_name_or_path, so "
            "it is unknown what the adapters were trained on. Write the path or hub id there."
        )
    if config is None:
        config = PreTrainedConfig.from_pretrained(str(directory))
        config.device = "cpu"
    config.pretrained_path = directory
    policy = get_policy_class(config.type).from_pretrained(
        adapter.base_model_name_or_path, config=config, revision=adapter.revision
    )
    return PeftModel.from_pretrained(policy, str(directory), config=adapter).merge_and_unload()


def _stock_pipeline(
    source: CheckpointSource, name: str, tokenizer_name: str | None
) -> tuple[Json, dict[str, Path]]:
    """A pipeline's JSON and the state files of its steps: their new names, and where they lie."""
    pipeline = json.loads(source.file(f"{name}.json").read_text())
    steps = stock_steps(pipeline["steps"])
    files = {}
    for i, step in enumerate(steps):
        _refuse_foreign(step)
        if step.get("registry_name") == _TOKENIZER_STEP:
            _settle_tokenizer(step, tokenizer_name)
        if "state_file" in step:
            old = step["state_file"]
            step["state_file"] = re.sub(r"_step_\d+", f"_step_{i}", old, count=1)
            files[step["state_file"]] = source.file(old)
    return {**pipeline, "steps": steps}, files


def _refuse_foreign(step: Json) -> None:
    name = step.get("registry_name")
    place = ProcessorStepRegistry.get(name).__module__ if name else str(step["class"])
    if not place.startswith("lerobot."):
        raise ValueError(
            f"the processor step {name or place} is not LeRobot's, so the checkpoint cannot be run "
            "by LeRobot alone. A policy to export needs tokenizer_name to be a tokenizer of the "
            'Hub (not "bytes") and no steps of other packages.'
        )


def _settle_tokenizer(step: Json, tokenizer_name: str | None) -> None:
    if tokenizer_name is not None:
        step["config"] = {**step["config"], "tokenizer_name": tokenizer_name}
    elif Path(step["config"]["tokenizer_name"]).is_dir():
        logger.warning(
            "The tokenizer is the local directory %s, which another machine may lack: "
            "--tokenizer_name=google/paligemma-3b-pt-224 names the Hub's.",
            step["config"]["tokenizer_name"],
        )


def _dumps(content: Json) -> str:
    return json.dumps(content, indent=4) + "\n"
