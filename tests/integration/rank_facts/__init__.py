"""A plugin of `lerobot-train` that writes down what every process of a run does at every step.

`--env.discover_packages_path=rank_facts` loads it; the environment variable RANK_FACTS names the
directory it writes to: a line of JSON a step, in a file of each rank.

It makes noise and times a function of the samples: then the loss of a global batch does not depend
on how the batch is spread over processes.
"""

import faulthandler
import json
import os
from pathlib import Path
from typing import Any

import torch
from lerobot.scripts import lerobot_train
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from lerobot_motion.checkpoints.loading import MOTION_HEAD_PREFIX
from lerobot_motion.joint.backbone import JointModel
from lerobot_motion.joint.policy import JointMotionPolicy
from lerobot_motion.latent_store import tensors_sha256
from lerobot_motion.steps import MOTION_VALID

LOSSES = ("loss", "action_loss", "motion_loss")
# A rank that waits for another for ever ends, with its stack, before the test's own limit.
faulthandler.dump_traceback_later(300, exit=True)


class Draws:
    """Numbers that depend on the samples of a batch alone, and those that would have been drawn."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.own: list[float] = []
        self.count = 0

    def begin(self, samples: list[int]) -> None:
        self.samples, self.own, self.count = samples, [], 0

    def for_samples(self, own: Tensor) -> Tensor:
        """Uniform numbers in the shape of what the policy drew itself."""
        self.own.append(own.double().sum().item())
        self.count += 1
        generators = [torch.Generator().manual_seed(97 * i + self.count) for i in self.samples]
        rows = [torch.rand(own.shape[1:], generator=generator) for generator in generators]
        return torch.stack(rows).to(own)


DRAWS = Draws()
_forward = JointMotionPolicy.forward
_update_policy = lerobot_train.update_policy


def forward(self: Any, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    DRAWS.begin(batch["index"].flatten().tolist())
    return _forward(self, batch, *args, **kwargs)


def sample_noise(self: Any, shape: Any, device: Any) -> Tensor:
    return 4 * DRAWS.for_samples(super(JointModel, self).sample_noise(shape, device)) - 2


def sample_time(self: Any, bsize: int, device: Any) -> Tensor:
    return DRAWS.for_samples(super(JointModel, self).sample_time(bsize, device))


def update_policy(tracker: Any, policy: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    tracker, output = _update_policy(tracker, policy, batch, *args, **kwargs)
    core = kwargs["accelerator"].unwrap_model(policy)
    facts = {
        "step": tracker.steps + 1,
        "samples": DRAWS.samples,
        "valid": batch[MOTION_VALID].tolist(),
        "drawn": DRAWS.own,
        "logged": sorted(output),
        **{name: output[name] for name in LOSSES},
        "grad_norm": tracker.grad_norm.val,
        "counter": int(core.model.motion_head.num_updates),
        # What a rank holds of a sharded policy is no tensor of the policy's.
        **({} if isinstance(policy, FullyShardedDataParallel) else digests(core)),
    }
    path = Path(os.environ["RANK_FACTS"]) / f"rank{os.environ.get('RANK', '0')}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(facts) + "\n")
    return tracker, output


def digests(core: Any) -> dict[str, str]:
    """Hashes of this rank's tensors: of pi0, and of the motion head."""
    parts: dict[str, list[tuple[str, Tensor]]] = {"pi0": [], "head": []}
    for name, tensor in core.state_dict().items():
        parts["head" if name.startswith(MOTION_HEAD_PREFIX) else "pi0"].append((name, tensor))
    return {name: tensors_sha256(part) for name, part in parts.items()}


JointMotionPolicy.forward = forward
JointModel.sample_noise = sample_noise
JointModel.sample_time = sample_time
lerobot_train.update_policy = update_policy
