"""Checkpoints from the Hub: revisions, tokens, repositories that are not there, working offline."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import Outcome, train_all
from hub_server import HubServer, serving
from runs import CPU, POLICY, RATES, Run, data_flags, read_config
from safetensors.torch import load_file
from tiny import save_stock_checkpoint

TOKEN = "hf_loopback"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, trained: Run) -> Iterator[HubServer]:
    """A Hub with a vanilla checkpoint in two revisions, and one of ours."""
    root = tmp_path_factory.mktemp("hub")
    save_stock_checkpoint(root / "user/pi0_tiny/main", seed=1)
    save_stock_checkpoint(root / "user/pi0_tiny/v2", seed=2)
    shutil.copytree(trained.checkpoint(6), root / "user/motion_tiny/main")
    with serving(root) as server:
        yield server


@pytest.fixture(scope="module")
def outcomes(hub: HubServer, dataset: Path, home: Path) -> dict[str, Outcome]:
    """Runs from the Hub with an empty cache, then offline with what is cached."""
    vanilla = (*POLICY, "--policy.motion_warmup_steps=1", "--steps=1")
    online = {
        "main": (*vanilla, "--policy.pretrained_path=user/pi0_tiny"),
        "v2": (
            *vanilla,
            "--policy.pretrained_path=user/pi0_tiny",
            "--policy.pretrained_revision=v2",
        ),
        "ours": ("--policy.path=user/motion_tiny", *CPU, *RATES, "--steps=1"),
        "absent": (*vanilla, "--policy.pretrained_path=user/absent"),
        "no revision": (
            *vanilla,
            "--policy.pretrained_path=user/pi0_tiny",
            "--policy.pretrained_revision=v3",
        ),
    }
    offline = {
        "cached": online["v2"],
        "not cached": (*vanilla, "--policy.pretrained_path=user/uncached"),
    }
    cache = str(home / "hub_cache")
    results: dict[str, Outcome] = {}
    for lines, variables in (
        (online, {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}),
        (offline, {"HF_HUB_OFFLINE": "1"}),
    ):
        ran = train_all(
            *((*line, *data_flags(dataset, home / f"hub_{name}")) for name, line in lines.items()),
            home=home,
            HF_ENDPOINT=hub.url,
            HF_HOME=cache,
            **variables,
        )
        results |= dict(zip(lines, ran, strict=True))
    return results


@pytest.mark.parametrize(("name", "revision"), [("main", "main"), ("v2", "v2"), ("cached", "v2")])
def test_starts_from_the_weights_of_the_revision(
    outcomes: dict[str, Outcome], hub: HubServer, home: Path, name: str, revision: str
):
    assert (outcomes[name].error, outcomes[name].message) == (None, None)
    run = Run(home / f"hub_{name}", "")
    served = load_file(hub.root / "user/pi0_tiny" / revision / "model.safetensors")
    weights = run.weights(1)

    # One step, and that in the warm-up.
    assert all(torch.equal(weights[key], served[key]) for key in served)
    assert read_config(run.checkpoint(1))["pretrained_path"] == "user/pi0_tiny"


def test_starts_from_one_of_ours(outcomes: dict[str, Outcome], home: Path):
    assert (outcomes["ours"].error, outcomes["ours"].message) == (None, None)
    run = Run(home / "hub_ours", "")
    assert run.weights(1)["model.motion_head.num_updates"] == 7
    assert read_config(run.checkpoint(1))["pretrained_path"] == "user/motion_tiny"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "absent",
            "checkpoint user/absent: there is no such local directory, and config.json could not "
            "be had from the Hub at revision main (RepositoryNotFoundError",
        ),
        (
            "no revision",
            "checkpoint user/pi0_tiny: there is no such local directory, and config.json could "
            "not be had from the Hub at revision v3 (RevisionNotFoundError",
        ),
        (
            "not cached",
            "checkpoint user/uncached: there is no such local directory, and config.json could "
            "not be had from the Hub at revision main (LocalEntryNotFoundError",
        ),
    ],
)
def test_names_what_cannot_be_had(outcomes: dict[str, Outcome], name: str, message: str):
    assert outcomes[name].error == "FileNotFoundError"
    assert (outcomes[name].message or "").startswith(message), outcomes[name].message
    assert outcomes[name].steps == 0


def test_sends_the_token_with_every_request(outcomes: dict[str, Outcome], hub: HubServer):
    assert outcomes["main"].error is None
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_asks_only_for_the_files_it_needs(outcomes: dict[str, Outcome], hub: HubServer):
    assert outcomes["main"].error is None
    files = {path.rsplit("/", 1)[-1] for _, path in hub.requests}
    assert files == {"config.json", "model.safetensors"}
