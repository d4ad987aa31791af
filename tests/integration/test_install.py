"""What an installation brings: the policy type, its help, its files."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import run_python, succeed

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "lerobot_motion"

DISCOVERY = """
import logging
logging.basicConfig(level="INFO", force=True)
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.policies.factory import get_policy_class, make_policy_config
from lerobot.processor import ProcessorStepRegistry
import lerobot_policy_motion
config = make_policy_config("motion_pi0", backbone="tiny", device="cpu")
print(type(config).__name__, get_policy_class("motion_pi0").__name__)
print(sorted(n for n in ProcessorStepRegistry.list() if n in {names}))
print(lerobot_policy_motion.__file__)
"""
STEPS = ["byte_tokenizer_processor", "motion_target_processor"]


def test_help_lists_our_fields(home: Path):
    result = succeed("lerobot-train", "--policy.type=motion_pi0", "--help", home=home)
    help_text = " ".join(result.stdout.split())

    assert "Could not import third-party plugin" not in result.stderr
    for flag, sentence in {
        "motion_camera": "Camera whose motion is learned, as the policy names it",
        "motion_horizon": "Frames from the observation to the future frame of the motion image",
        "motion_loss_weight": "loss = action_loss + motion_loss_weight * motion_loss",
        "motion_warmup_steps": "Optimizer steps at the start of training in which only the motion",
        "motion_vae": "VAE of the motion image: a hub id",
        "flow_estimator": "Optical flow for targets made on the fly: raft_large, raft_small or dis",
        "flow_max_magnitude": "Displacement drawn at full saturation, in pixels",
        "backbone": "VLM and action expert: paligemma (pi0 itself), or tiny",
        "load_motion_head": "build and load the policy without its motion head",
    }.items():
        assert f"--policy.{flag} " in help_text
        assert sentence in help_text


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's wheel."""
    pytest.importorskip("hatchling", reason="needs hatchling to build the wheel (extra `dev`)")
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target=wheel", f"--directory={directory}"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (path,) = directory.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_the_module_lerobot_looks_for(wheel: Path):
    assert wheel.name.startswith("lerobot_policy_motion-")
    names = set(zipfile.ZipFile(wheel).namelist())

    files = {
        str(path.relative_to(REPOSITORY))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == files - {"lerobot_motion/_plugin.py"} | {"lerobot_policy_motion.py"}


def test_wheel_is_discovered(wheel: Path, home: Path, tmp_path: Path):
    # What pip does with a wheel of pure Python.
    zipfile.ZipFile(wheel).extractall(tmp_path)

    code = DISCOVERY.replace("{names}", repr(STEPS))
    result = run_python(code, home, PYTHONPATH=str(tmp_path))

    assert "Imported third-party plugin: lerobot_policy_motion" in result.stderr
    assert "Could not import third-party plugin" not in result.stderr
    assert result.stdout.splitlines() == [
        "MotionPi0Config MotionPi0Policy",
        str(STEPS),
        str(tmp_path / "lerobot_policy_motion.py"),
    ]
