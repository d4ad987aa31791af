"""Uploads to the Hub: refused before a run if bound to fail, and whole or not there at all."""

import logging
import shutil
from pathlib import Path

import httpx
from huggingface_hub import ModelCard, get_token
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

logger = logging.getLogger(__name__)

# What an upload raises: the Hub's errors are OSErrors, refused files and metadata ValueErrors, a
# file that breaks off a RuntimeError.
UPLOAD_ERRORS = (OSError, ValueError, RuntimeError, httpx.HTTPError)


def check_upload(run: TrainPipelineConfig) -> None:
    """Refuse, before anything is trained, an upload that is bound to fail.

    Args:
        run: Configuration of the run, validated by LeRobot: where it uploads, it has a `repo_id`.

    Raises:
        ValueError: If `repo_id` is no repository's id, or the Hub is switched off.
    """
    repo_id, uploads = run.policy.repo_id, run.policy.push_to_hub or run.save_checkpoint_to_hub
    if repo_id is None or not uploads or run.job.is_remote:
        return
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--policy.repo_id must be <user>/<name>: {error}") from error
    if HF_HUB_OFFLINE:
        raise ValueError(
            f"the run is to be uploaded to {repo_id}, but HF_HUB_OFFLINE is set. Unset it, or pass "
            "--policy.push_to_hub=false --save_checkpoint_to_hub=false and upload a checkpoint "
            f"later: {upload_command(repo_id, last_checkpoint(run))}"
        )
    if get_token() is None:
        logger.warning(
            "The run is to be uploaded to %s, and there is no token for the Hub: run `hf auth "
            "login` or set HF_TOKEN before it ends.",
            repo_id,
        )


def last_checkpoint(run: TrainPipelineConfig) -> Path:
    """Where a run's last checkpoint lies, or will.

    Args:
        run: Configuration of the run.
    """
    parts = (CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR)
    return Path(str(run.output_dir)).joinpath(*parts)


class CardWithProcessors(ModelCard):
    """A card that brings the processors along to the folder that it is saved to.

    LeRobot 0.6.1 uploads weights, configuration and card in one commit, and each processor in one
    of its own. In between, and for good if the upload breaks off, the Hub would show new weights
    with no processors, or with the statistics of an earlier run.
    """

    processors: tuple[Path, ...] = ()

    def save(self, filepath: Path | str) -> None:
        """Write the card, and the processors beside it.

        Args:
            filepath: The card's path.
        """
        super().save(filepath)
        for path in self.processors:
            shutil.copyfile(path, Path(filepath).with_name(path.name))


def upload_command(repo_id: str, directory: Path) -> str:
    """The command that uploads a checkpoint.

    Args:
        repo_id: Repository to upload to.
        directory: The checkpoint's directory.
    """
    return f"hf upload {repo_id} {directory}"
