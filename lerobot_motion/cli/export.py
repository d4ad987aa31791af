"""Export a checkpoint as LeRobot's own pi0 or pi0.5, which loads without this package.

    lerobot-motion-export --policy.path=outputs/train/…/pretrained_model --output=outputs/pi0

The exported policy acts exactly as the checkpoint. Whatever runs LeRobot's policies runs it, such
as the asynchronous policy server, whose list of policy types is fixed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

# Importing the configurations registers their types.
import lerobot_motion.motion_pi0.configuration_motion_pi0
import lerobot_motion.motion_pi05.configuration_motion_pi05  # noqa: F401
from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.checkpoints.uploading import UPLOAD_ERRORS
from lerobot_motion.cli.command import run_command
from lerobot_motion.joint.export import export_checkpoint


@dataclass
class PolicyArguments:
    """Which checkpoint."""

    # Checkpoint of motion_pi0 or motion_pi05: a local directory (…/checkpoints/<step>/
    # pretrained_model) or a hub id. Adapters (LoRA) are merged.
    path: str = ""
    # Revision on the Hub: a branch, a tag or a commit. null: main.
    revision: str | None = None


@dataclass
class ExportArguments:
    """Export a checkpoint as LeRobot's own pi0 or pi0.5."""

    policy: PolicyArguments = field(default_factory=PolicyArguments)
    # Directory to write; it must not exist.
    output: Path | None = None
    # Upload the exported checkpoint to the Hub, too.
    push_to_hub: bool = False
    # Repository on the Hub, <user>/<name>; made if there is none.
    repo_id: str | None = None
    # Make the repository private. null: the account's default.
    private: bool | None = None
    # Tokenizer to name in the exported checkpoint, for one trained with a local copy; for example
    # google/paligemma-3b-pt-224. null: the one that it was trained with.
    tokenizer_name: str | None = None
    # Messages to show: debug, info, warning or error. debug: errors with their traceback.
    log_level: str = "warning"


def check_arguments(args: ExportArguments) -> Path:
    """Refuse a command line that cannot be carried out, before anything is read.

    Args:
        args: The command line.

    Returns:
        The directory to write.

    Raises:
        ValueError: If something is missing or is no repository id.
    """
    if not args.policy.path:
        raise ValueError("policy.path is missing: name a checkpoint, --policy.path=<directory>.")
    if args.output is None:
        raise ValueError("output is missing: name a new directory, --output=<directory>.")
    if args.push_to_hub and not args.repo_id:
        raise ValueError("repo_id is missing: --push_to_hub=true needs --repo_id=<user>/<name>.")
    if args.repo_id:
        try:
            validate_repo_id(args.repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo_id must be <user>/<name>: {error}") from error
    return args.output


def export(args: ExportArguments) -> None:
    """Export the checkpoint, upload it if asked to, and print what was done.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument is wrong, or the checkpoint cannot be exported.
        OSError: If something cannot be read, written or uploaded.
        ImportError: If the checkpoint has adapters and peft is not installed.
    """
    output = check_arguments(args)
    source = CheckpointSource(args.policy.path, revision=args.policy.revision)
    exported = export_checkpoint(
        source, output, repo_id=args.repo_id, tokenizer_name=args.tokenizer_name
    )
    print(
        f"{exported.path}: a {exported.policy_type} checkpoint of {exported.num_tensors} tensors; "
        f"{exported.num_dropped} of the motion head were left out."
    )
    if args.push_to_hub:
        print(upload(output, str(args.repo_id), private=args.private))


def upload(directory: Path, repo_id: str, *, private: bool | None) -> str:
    """Upload an exported checkpoint, in one commit.

    Args:
        directory: The checkpoint.
        repo_id: Repository on the Hub; made if there is none.
        private: Whether a new repository is private; None for the account's default.

    Returns:
        Address of the commit.

    Raises:
        OSError: If the Hub cannot be reached or refuses.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=directory, commit_message="Upload exported policy"
        )
    except UPLOAD_ERRORS as error:
        raise OSError(
            f"{repo_id} could not be uploaded ({type(error).__name__}: {error}). The checkpoint is "
            f"whole in {directory}; upload it with: hf upload {repo_id} {directory}"
        ) from error
    return str(commit.commit_url)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `run_command` for the exit status.

    Args:
        argv: Arguments, or None for those of the process.
    """
    return run_command(ExportArguments, export, argv)


if __name__ == "__main__":
    sys.exit(main())
