"""Checkpoints of a run that say what they are, and their upload."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, ModelCard
from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.constants import (
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
)
from torch import Tensor, distributed

from lerobot_motion.checkpoints.card_tables import Training, describe_dataset
from lerobot_motion.checkpoints.model_card import PICTURE, make_model_card
from lerobot_motion.checkpoints.uploading import (
    UPLOAD_ERRORS,
    CardWithProcessors,
    last_checkpoint,
    upload_command,
)
from lerobot_motion.training.recent_losses import RecentLosses

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy as _Policy

    from lerobot_motion.joint.configuration import JointMotionConfig
else:
    # At run time a plain mixin, whose next class in the MRO is LeRobot's policy.
    _Policy = torch.nn.Module

CARD = "README.md"


class Publishing(_Policy):
    """Mixed into a policy: its checkpoints have a model card, its uploads are whole."""

    config: "JointMotionConfig"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the policy.

        Args:
            *args: Passed on to LeRobot.
            **kwargs: Passed on to LeRobot.
        """
        super().__init__(*args, **kwargs)
        self.recent_losses = RecentLosses()

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Save as LeRobot does; in a training run with a card, ready for `hf upload`."""
        super()._save_pretrained(save_directory, state_dict=state_dict)
        self.write_card(save_directory)

    def wrap_with_peft(self, *args: Any, **kwargs: Any) -> Any:
        """Wrap with adapters as LeRobot does; their checkpoints get our card instead of PEFT's.

        Args:
            *args: Passed on to LeRobot.
            **kwargs: Passed on to LeRobot.
        """
        adapted = super().wrap_with_peft(*args, **kwargs)
        adapted.create_or_update_model_card = self.write_card
        return adapted

    def note_losses(self, log: dict[str, Any], *, in_warmup: bool = False) -> None:
        """Remember a training batch's losses for the card.

        Args:
            log: What `forward` logs.
            in_warmup: Whether the batch is one of the warm-up.
        """
        if self.training:
            self.recent_losses.add(log, in_warmup=in_warmup)

    def write_card(self, directory: str | Path) -> None:
        """Write the card of a checkpoint that a training run saves; nothing outside of one.

        Args:
            directory: The checkpoint's directory.
        """
        run = self.config.train_run
        if run is not None and run.pipeline is not None:
            temporary = Path(directory) / f".{CARD}"
            self._make_card(run.pipeline).save(temporary)
            temporary.replace(Path(directory) / CARD)

    def generate_model_card(
        self,
        dataset_repo_id: str,  # noqa: ARG002 - part of LeRobot's signature
        model_type: str,  # noqa: ARG002 - part of LeRobot's signature
        license: str | None,  # noqa: A002, ARG002 - part of LeRobot's signature
        tags: list[str] | None,  # noqa: ARG002 - part of LeRobot's signature
        cfg: TrainPipelineConfig | None = None,
        dataset_meta: Any | None = None,
    ) -> ModelCard:
        """Write the card of an upload; LeRobot calls this, and saves it among the files to upload.

        Args:
            dataset_repo_id: Accepted for LeRobot; `cfg` has it.
            model_type: Accepted for LeRobot; the configuration has it.
            license: Accepted for LeRobot; the configuration has it.
            tags: Accepted for LeRobot; the configuration has them.
            cfg: Configuration of the run that ends.
            dataset_meta: Metadata of the training dataset.
        """
        card = CardWithProcessors(str(self._make_card(cfg, dataset_meta)))
        if cfg is not None:
            names = (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME)
            directory = last_checkpoint(cfg)
            card.processors = tuple(path for n in names for path in directory.glob(f"{n}*"))
        return card

    def _make_card(self, run: Any, dataset_meta: Any | None = None) -> ModelCard:
        head = getattr(self.model, "motion_head", None)
        dataset = self.config.dataset_facts
        return make_model_card(
            self.config,
            Training(
                run=run,
                dataset=describe_dataset(dataset_meta) if dataset_meta is not None else dataset,
                num_updates=None if head is None else int(head.num_updates),
                losses=self.recent_losses.means(),
                num_processes=_num_processes(),
                has_picture=run is not None and _picture(run).is_file(),
            ),
        )

    def push_model_to_hub(self, cfg: TrainPipelineConfig, *args: Any, **kwargs: Any) -> None:
        """Upload as LeRobot does, and the picture of predicted motion if the run has one.

        Args:
            cfg: Configuration of the run that ends.
            *args: Passed on to LeRobot.
            **kwargs: Passed on to LeRobot.

        Raises:
            OSError: If the Hub cannot be reached, refuses, or fails.
        """
        repo_id = str(self.config.repo_id)
        try:
            if _picture(cfg).is_file():
                self._upload_picture(_picture(cfg), repo_id)
            super().push_model_to_hub(cfg, *args, **kwargs)
        except UPLOAD_ERRORS as error:
            directory = last_checkpoint(cfg)
            advice = (
                f"The checkpoint is whole in {directory}; upload it with: "
                f"{upload_command(repo_id, directory)}"
                if directory.is_dir()
                else "There is no local checkpoint of it (--save_checkpoint=false)."
            )
            raise OSError(
                f"{repo_id} could not be uploaded ({type(error).__name__}: {error}). Training is "
                f"done. {advice}"
            ) from error

    def _upload_picture(self, path: Path, repo_id: str) -> None:
        """Upload the picture that the card shows; LeRobot's own upload takes no pictures."""
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=self.config.private, exist_ok=True).repo_id
        api.upload_file(path_or_fileobj=path, path_in_repo=PICTURE, repo_id=repo_id)


def _num_processes() -> int:
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def _picture(run: Any) -> Path:
    return Path(str(run.output_dir)) / PICTURE
