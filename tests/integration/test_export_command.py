"""`lerobot-motion-export`: what it writes runs in a LeRobot that has never heard of us."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_script, succeed
from hub_server import HubServer, serving
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file, save_file
from tiny import BASES, make_dataset_batch, save_adapters, save_full_size_checkpoint

from lerobot_motion.checkpoints.loading import MOTION_HEAD_PREFIX
from lerobot_motion.cli.export import main
from lerobot_motion.joint import backbone
from lerobot_motion.steps import ByteTokenizerStep

SIZES = {
    "width": backbone.TINY_WIDTH,
    "layers": backbone.TINY_LAYERS,
    "heads": backbone.TINY_HEADS,
    "patch": backbone.TINY_IMAGE_PATCH,
    "vocabulary": ByteTokenizerStep.vocab_size(),
}
ADAPTERS = "pi0_lora"
bases = pytest.mark.parametrize("base", sorted(BASES))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the commands' processes: sums over several threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def policies(root: Path) -> dict[str, Any]:
    """Policies of ours, saved as `<base>`."""
    return {base: save_full_size_checkpoint(root / base, base) for base in BASES}


@pytest.fixture(scope="module")
def merged(root: Path) -> Any:
    """A pi0 of ours with adapters, saved as `pi0_lora`, then merged in memory."""
    return save_adapters(root / ADAPTERS, "pi0", root / "pi0_lora_base").merge_and_unload()


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[HubServer]:
    (root / "hub").mkdir()
    with serving(root / "hub") as server:
        yield server


@pytest.fixture(scope="module")
def exported(root: Path, policies: dict[str, Any], merged: Any, hub: HubServer, home: Path) -> Path:
    """A directory with `exported_<name>`: pi0.5's from the command, which pushed it, too."""
    arguments = {
        name: (f"--policy.path={root / name}", f"--output={root / f'exported_{name}'}")
        for name in (*policies, ADAPTERS)
    }
    assert main(arguments["pi0"]) == 0
    with backbone.tiny_backbone(BASES["pi0"].modeling):  # To merge, the network is built.
        assert main(arguments[ADAPTERS]) == 0
    succeed(
        "lerobot-motion-export",
        *(*arguments["pi05"], "--push_to_hub=true", "--repo_id=user/exported"),
        home=home,
        **{"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_loopback"},
    )
    return root


@pytest.fixture(scope="module")
def acted(exported: Path, home: Path) -> Path:
    """What LeRobot alone made of the exported checkpoints."""
    output = exported / "acted"
    output.mkdir()
    observation = make_dataset_batch(stacked=False)
    task = observation.pop("task")
    tensors = {key: value.contiguous() for key, value in observation.items()}
    save_file(tensors, output / "observation.safetensors")
    request = {
        "checkpoints": {name: str(exported / f"exported_{name}") for name in (*BASES, ADAPTERS)},
        "observation": str(output / "observation.safetensors"),
        "task": task,
        "sizes": SIZES,
        "output": str(output),
    }
    result = run_script("stock_lerobot.py", request, home)
    (output / "log").write_text(result.stdout)
    return output


@bases
def test_lerobots_own_class_runs_it(acted: Path, base: str):
    assert f"{base} lerobot.policies.{base}.modeling_{base}" in (acted / "log").read_text()


@bases
def test_every_tensor_of_the_policy_is_from_the_checkpoint(
    acted: Path, exported: Path, policies: dict[str, Any], base: str
):
    held = load_file(acted / f"{base}_state.safetensors")
    stored = load_file(exported / f"exported_{base}" / "model.safetensors")
    ours = policies[base].state_dict()

    assert set(held) == set(stored) == {k for k in ours if not k.startswith(MOTION_HEAD_PREFIX)}
    for key, value in held.items():
        assert torch.equal(value, stored[key]), key
        assert torch.equal(value, ours[key]), key


def act(policy: Any, checkpoint: Path) -> torch.Tensor:
    """What a policy does with the processors of its checkpoint."""
    preprocessor, postprocessor = make_pre_post_processors(
        policy.config, pretrained_path=str(checkpoint)
    )
    torch.manual_seed(0)
    batch = preprocessor(make_dataset_batch(stacked=False))
    return postprocessor(policy.eval().predict_action_chunk(batch))


@bases
def test_it_acts_as_ours_bit_for_bit(
    acted: Path, exported: Path, policies: dict[str, Any], base: str
):
    expected = act(policies[base], exported / base)

    found = load_file(acted / f"{base}_actions.safetensors")["actions"]
    assert found.shape == (2, 4, 5)
    assert torch.equal(found, expected)


@bases
def test_lerobots_policy_server_serves_it(acted: Path, base: str):
    found = load_file(acted / f"{base}_actions.safetensors")
    # A second policy of equal weights in one process: its sums may differ in their last bits.
    torch.testing.assert_close(found["served"], found["actions"])


def test_adapters_are_merged_bit_for_bit(acted: Path, exported: Path, merged: Any):
    held = load_file(acted / f"{ADAPTERS}_state.safetensors")
    ours = merged.state_dict()
    assert set(held) == {key for key in ours if not key.startswith(MOTION_HEAD_PREFIX)}
    assert [key for key, value in held.items() if not torch.equal(value, ours[key])] == []
    base = load_file(exported / "pi0_lora_base" / "model.safetensors")
    assert any(not torch.equal(value, base[key]) for key, value in held.items())
    # Equal weights at other places in memory: MKL's sums may differ in their last bits.
    found = load_file(acted / f"{ADAPTERS}_actions.safetensors")["actions"]
    torch.testing.assert_close(found, act(merged, exported / ADAPTERS))


def test_what_is_pushed_is_what_was_written(exported: Path, hub: HubServer):
    written = exported / "exported_pi05"
    pushed = hub.root / "user/exported/main"

    assert {"config.json", "model.safetensors", "policy_preprocessor.json", "README.md"} <= {
        path.name for path in pushed.iterdir()
    }
    for path in written.iterdir():
        assert (pushed / path.name).read_bytes() == path.read_bytes(), path.name
    assert '"repo_id": "user/exported"' in (written / "config.json").read_text()
    assert hub.tokens == {"Bearer hf_loopback"}
