"""The model card of a checkpoint: what it is, how it was trained, how to run it and make it again.

LeRobot 0.6.1's own card knows nothing of motion learning. It also has its metadata checked by
huggingface.co, even where HF_ENDPOINT names another Hub; ours is checked by the Hub that it is
uploaded to, which looks at a README.md before it takes any file.
"""

import shlex
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lerobot_motion.checkpoints.card_tables import (
    DISTRIBUTION,
    Training,
    dataset_id,
    losses_table,
    policy_table,
    training_table,
)
from lerobot_motion.checkpoints.origin import checkpoint_label, is_hub_id, origin_of
from lerobot_motion.motion_target import NO_TARGET, target_image

PAPER = "https://arxiv.org/abs/2512.18007"
PICTURE = "motion.png"
# That of LeRobot's own card.
DEFAULT_LICENSE = "apache-2.0"
# Labels under which a package's metadata may tell where its source is.
_SOURCE_LABELS = {"repository", "source", "homepage"}

_CITATION = """```bibtex
@misc{motion-image-diffusion,
    title = {Robotic VLA Benefits from Joint Learning with Motion Image Diffusion},
    year = {2025},
    eprint = {2512.18007},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2512.18007}
}
```

Trained with [LeRobot](https://github.com/huggingface/lerobot); the plugin is an independent
implementation of the method."""


def make_model_card(config: Any, training: Training) -> ModelCard:
    """Write the card of a checkpoint.

    Args:
        config: The policy's configuration.
        training: How it was trained.
    """
    origin = origin_of(training.run)
    repo_id = config.repo_id or "<this checkpoint>"
    sections = {
        "What it is": policy_table(config, training, origin),
        "Training": f"{training_table(config, training)}\n\n{losses_table(training)}",
        "Use": _use(config, training, repo_id),
        "Evaluation": "None is recorded here: this card was written by the training run.",
        "Make it again": _reproduction(config, training, repo_id, origin),
        "Licence": _license(config),
        "Citation": _CITATION,
    }
    front_matter = _card_data(config, training, origin).to_yaml()
    body = [_introduction(config, training), *(f"## {k}\n\n{v}" for k, v in sections.items())]
    return ModelCard(f"---\n{front_matter}\n---\n\n" + "\n\n".join(body) + "\n")


def _card_data(config: Any, training: Training, origin: str | None) -> ModelCardData:
    dataset = dataset_id(training)
    tags = {"lerobot", "robotics", config.type, *(config.tags or [])}
    if config.motion_target != NO_TARGET:
        tags.add("motion-image-diffusion")
    return ModelCardData(
        license=config.license or DEFAULT_LICENSE,
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=sorted(tags),
        model_name=config.type,
        datasets=None if dataset is None else [dataset],
        base_model=origin if origin is not None and is_hub_id(origin) else None,
    )


def _introduction(config: Any, training: Training) -> str:
    base = {"pi0": "π0", "pi05": "π0.5"}.get(_base_type(config), _base_type(config))
    name = config.repo_id.split("/")[-1] if config.repo_id else config.type
    if config.motion_target == NO_TARGET:
        text = (
            f"LeRobot's {base}, trained without a motion head (`motion_target=none`): a control "
            f"for joint learning of actions and motion images ([arXiv 2512.18007]({PAPER}))."
        )
    else:
        images = f"{target_image(config.motion_target).title}s"
        text = (
            f"LeRobot's {base}, which learned jointly to act and to draw what is about to happen "
            f"({images}, as in [Robotic VLA Benefits from Joint Learning with Motion Image "
            f"Diffusion]({PAPER})). It drives robots as {base} does: the motion head, which "
            "learned from the same VLM features, does not run then."
        )
    picture = (
        "\n\nObservation, target, and what the policy imagined from the observation alone:\n\n"
        f"![What the policy imagined]({PICTURE})"
    )
    return f"# {name}\n\n{text}{picture if training.has_picture else ''}"


def _base_type(config: Any) -> str:
    return str(config.type.removeprefix("motion_"))


def _use(config: Any, training: Training, repo_id: str) -> str:
    dataset, env = training.dataset, getattr(training.run, "env", None)
    headless = config.motion_target != NO_TARGET
    evaluate = [
        f"lerobot-eval --policy.path={repo_id}",
        f"--env.type={env.type} --env.task={env.task}" if env else "--env.type=<simulator>",
        "--eval.n_episodes=50",
    ]
    drive = [
        f"lerobot-rollout --policy.path={repo_id}",
        *(["--policy.load_motion_head=false"] if headless else []),
        f"--robot.type={(dataset and dataset.robot_type) or '<robot>'}",
        "--robot.port=<port> --robot.cameras='<cameras>'",
        f"--task={_quoted_task(training)} --duration=60",
    ]
    text = f"Install the plugin `{DISTRIBUTION}` beside LeRobot ({_install()}), then:\n\n"
    text += _bash(evaluate, drive)
    if headless:
        text += (
            "\n\n`--policy.load_motion_head=false` leaves the motion head out of memory; the "
            "actions are the same with it. `policy.predict_motion(batch)` shows what the policy "
            "imagines."
        )
    if config.backbone != "tiny":
        export = [f"lerobot-motion-export --policy.path={repo_id}", "--output=<directory>"]
        text += (
            "\n\nFor machines without the plugin, write it as a checkpoint of LeRobot's own "
            f"`{_base_type(config)}`:\n\n{_bash(export)}"
        )
    return text


def _quoted_task(training: Training) -> str:
    tasks = training.dataset.tasks if training.dataset is not None else ()
    return shlex.quote(tasks[0]) if tasks else "'<instruction>'"


def _bash(*commands: list[str]) -> str:
    lines = "\n".join(" \\\n    ".join(words) for words in commands)
    return f"```bash\n{lines}\n```"


def _install() -> str:
    """How to install the plugin, by the address that its own metadata tells, if any."""
    urls = metadata(DISTRIBUTION).get_all("Project-URL") or []
    for label, _, url in (entry.partition(", ") for entry in urls):
        if label.lower() in _SOURCE_LABELS:
            return f"`pip install git+{url}`"
    return "`pip install .` in a copy of its repository"


def _reproduction(config: Any, training: Training, repo_id: str, origin: str | None) -> str:
    run = training.run
    if run is None:
        return "The run that made it is not recorded."
    flags = [
        f"lerobot-train --config_path={repo_id}",
        "--output_dir=<new directory>",
        "--policy.push_to_hub=false",
    ]
    if training.num_processes > 1:
        launcher = f"accelerate launch --num_processes={training.num_processes}"
        flags[0] = f"{launcher} $(which lerobot-train) --config_path={repo_id}"
    flags += [
        f"--{name}=false" for name in ("resume", "save_checkpoint_to_hub") if _is_on(run, name)
    ]
    if origin is not None and not is_hub_id(origin):
        flags.append(f"--policy.pretrained_path=<{checkpoint_label(origin)}>")
    elif run.resume:
        flags.append(f"--policy.pretrained_path={origin or 'null'}")
    if run.dataset.root is not None:
        flags.append("--dataset.root=<folder of the dataset>")
    if config.motion_latents is not None:
        flags.append("--policy.motion_latents=null")
    flags += [f"--policy.{name}=<{label}>" for name, label in _local_files(config).items()]
    text = f"With the `train_config.json` of this repository:\n\n{_bash(flags)}"
    if config.motion_latents is not None:
        text += (
            "\n\n`--policy.motion_latents=null` computes the motion targets as training goes; "
            "the run itself read them from a latent store."
        )
    return text


def _is_on(run: Any, name: str) -> bool:
    return bool(getattr(run, name))


def _local_files(config: Any) -> dict[str, str]:
    """Settings that name something on the machine that trained, and its name there."""
    names = ("motion_vae", "flow_weights", "tokenizer_name")
    values = {name: str(getattr(config, name)) for name in names}
    return {name: Path(value).name for name, value in values.items() if Path(value).exists()}


def _license(config: Any) -> str:
    text = f"`{config.license or DEFAULT_LICENSE}`."
    if config.backbone == "paligemma":
        text += (
            " The VLM descends from PaliGemma, whose weights come under the "
            "[Gemma terms of use](https://ai.google.dev/gemma/terms)."
        )
    return text
