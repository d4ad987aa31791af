"""Loading of checkpoints: strictly, or with an error that says what is wrong.

LeRobot 0.6.1's `PI0Policy.from_pretrained` prints every error and returns random weights. This
module replaces that road: it reads LeRobot's own key renaming and nothing else from it.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from lerobot.utils.constants import (
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lerobot_motion.models.view_embedding import VIEW_EMBEDDING

logger = logging.getLogger(__name__)

MOTION_HEAD_PREFIX = "model.motion_head."
_LISTED_KEYS = 5


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint lies, with the options of `from_pretrained` for the Hub."""

    path: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False

    @property
    def hub_options(self) -> dict[str, Any]:
        """Arguments for `hf_hub_download`."""
        return {
            "revision": self.revision,
            "token": self.token,
            "cache_dir": self.cache_dir,
            "force_download": self.force_download,
            "local_files_only": self.local_files_only,
        }

    def file(self, name: str) -> Path:
        """Find a file of the checkpoint, downloading it if need be.

        Args:
            name: The file's name in the checkpoint.

        Returns:
            Its local path.

        Raises:
            FileNotFoundError: If the checkpoint is neither a directory with that file nor a
                repository on the Hub that has it and can be reached.
        """
        if Path(self.path).is_dir():
            local = Path(self.path) / name
            if not local.is_file():
                raise FileNotFoundError(
                    f"checkpoint {self.path} has no {name}; expected a directory written by "
                    "LeRobot (…/checkpoints/<step>/pretrained_model)."
                )
            return local
        try:
            return Path(hf_hub_download(self.path, name, **self.hub_options))
        # The Hub's errors are OSErrors; a path that is no repository id is a ValueError; and a Hub
        # that cannot be reached is a RuntimeError before huggingface_hub 1.27.
        except (OSError, ValueError, RuntimeError) as error:
            raise FileNotFoundError(
                f"checkpoint {self.path}: there is no such local directory, and {name} could not "
                f"be had from the Hub at revision {self.revision or 'main'} "
                f"({type(error).__name__}: {error})."
            ) from error


def read_policy_type(
    source: CheckpointSource,
    expected: Iterable[str],
    advice: str = "Pass another checkpoint, or the --policy.type of this one.",
    *,
    whole: bool = False,
) -> str:
    """Read which policy a checkpoint holds.

    Args:
        source: The checkpoint.
        expected: Policy types that can be used.
        advice: What to do about a checkpoint of another type.
        whole: Refuse a checkpoint that holds adapters (LoRA) without what they adapt.

    Returns:
        The checkpoint's policy type.

    Raises:
        FileNotFoundError: If it has no config.json.
        ValueError: If config.json is not a policy's, the policy is of another type, or it is not
            whole and has to be.
    """
    path = source.file(CONFIG_NAME)
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"checkpoint {source.path}: {path} is not valid JSON ({error})."
        ) from error
    policy_type = config.get("type") if isinstance(config, dict) else None
    if policy_type not in set(expected):
        raise ValueError(
            f"checkpoint {source.path} holds a policy of type {policy_type!r}; expected one of "
            f"{sorted(expected)}. {advice}"
        )
    if whole and config.get("use_peft"):
        raise ValueError(
            f"checkpoint {source.path} holds adapters, no whole policy. Name it by --policy.path "
            "(and --peft.method_type=LORA to train on), not by --policy.pretrained_path; as a base "
            "for new adapters, merge it first: lerobot-motion-export."
        )
    return str(policy_type)


def read_weights(
    source: CheckpointSource, name: str = SAFETENSORS_SINGLE_FILE
) -> dict[str, Tensor]:
    """Read a checkpoint's tensors, as they are stored.

    Args:
        source: The checkpoint.
        name: The weights file.

    Returns:
        The tensors by their names, on the CPU.

    Raises:
        FileNotFoundError: If there is no weights file.
        OSError: If the weights file cannot be read.
    """
    path = source.file(name)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"checkpoint {source.path}: {path} is not a readable safetensors file ({error}); it "
            "may be truncated. Fetch or save it again."
        ) from error
    return tensors


def warn_of_missing_processors(source: CheckpointSource) -> None:
    """Say that a checkpoint lacks a processor, without which its policy cannot be served.

    LeRobot 0.6.1 takes such a checkpoint for one of an old format, and advises to migrate it.

    Args:
        source: The checkpoint.
    """
    for name in (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME):
        try:
            source.file(f"{name}.json")
        except FileNotFoundError:
            logger.warning(
                "Checkpoint %s has no %s.json, so LeRobot's commands cannot run it. Was its upload "
                "broken off, or its policy saved without processors? Upload or save it again.",
                source.path,
                name,
            )


def load_weights(policy: nn.Module, source: CheckpointSource, *, is_base: bool) -> None:
    """Load a checkpoint's weights strictly.

    Args:
        policy: One of our policies; LeRobot's own renaming of old keys is applied.
        source: The checkpoint.
        is_base: Whether it is one of the base policy, which has no motion head: then, and only
            then, the motion head keeps its fresh weights.

    Raises:
        FileNotFoundError: If there is no weights file.
        OSError: If the weights file cannot be read.
        ValueError: If a tensor is missing, unexpected or of another shape.
    """
    state = _rename(policy, read_weights(source))
    own = policy.state_dict()
    if not any(key.startswith(MOTION_HEAD_PREFIX) for key in own):
        state = {k: v for k, v in state.items() if not k.startswith(MOTION_HEAD_PREFIX)}
    _check_views(own, state, source.path)
    _check(own, state, source.path, is_base=is_base)
    policy.load_state_dict(state, strict=False)
    logger.info("Loaded %d tensors from %s", len(state), source.path)


def _rename(policy: Any, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply LeRobot's renaming of old keys, and its rule that every key is under `model.`."""
    # The renaming logs a warning for a key it then leaves as it is (patch_embedding).
    logging.getLogger().addFilter(_drop_renaming_noise)
    try:
        fixed: dict[str, Tensor] = policy._fix_pytorch_state_dict_keys(  # noqa: SLF001
            stored, policy.config
        )
    finally:
        logging.getLogger().removeFilter(_drop_renaming_noise)
    return {k if k.startswith("model.") else f"model.{k}": v for k, v in fixed.items()}


def _drop_renaming_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Vision embedding key might need handling")


def _check_views(own: dict[str, Tensor], state: dict[str, Tensor], path: str) -> None:
    expected, found = _num_views(own), _num_views(state)
    if None not in (expected, found) and expected != found:
        raise ValueError(
            f"checkpoint {path} does not fit the policy: the number of views that its motion head "
            f"predicts is {found}, and motion_camera names {expected}. Name as many cameras as it "
            "was trained with (an empty one for a camera that is gone: "
            "--policy.empty_cameras=1), or train a new motion head, from a checkpoint without one."
        )


def _num_views(state: Mapping[str, Tensor]) -> int | None:
    """How many views the motion head of these tensors predicts; None without one."""
    head = [key for key in state if key.startswith(MOTION_HEAD_PREFIX)]
    if not head:
        return None
    embeddings = [state[key] for key in head if key.endswith(VIEW_EMBEDDING)]
    return len(embeddings[0]) if embeddings else 1


def _check(own: dict[str, Tensor], state: dict[str, Tensor], path: str, *, is_base: bool) -> None:
    missing = sorted(own.keys() - state.keys())
    if is_base:
        missing = [key for key in missing if not key.startswith(MOTION_HEAD_PREFIX)]
    problems = [
        _listed("missing", missing),
        _listed("unexpected", sorted(state.keys() - own.keys())),
        _listed(
            "of another shape",
            [
                f"{key} {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
                for key in sorted(own.keys() & state.keys())
                if state[key].shape != own[key].shape
            ],
        ),
    ]
    if any(problems):
        raise ValueError(
            f"checkpoint {path} does not fit the policy: {'; '.join(filter(None, problems))}. "
            + _advice(missing)
        )


def _listed(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
    return f"{len(keys)} tensors {what} ({'; '.join(keys[:_LISTED_KEYS])}{more})"


def _advice(missing: list[str]) -> str:
    if any(key.startswith(MOTION_HEAD_PREFIX) for key in missing):
        return (
            "It was saved without its motion head (load_motion_head=false or motion_target=none). "
            "Serve it with --policy.load_motion_head=false, train on without motion with "
            "--policy.motion_target=none, or start from the checkpoint that it came from."
        )
    return (
        "Check the path, --policy.backbone, --policy.paligemma_variant and the sizes of the motion "
        "head (motion_head_layers, motion_head_heads, motion_head_dim, motion_vae)."
    )
