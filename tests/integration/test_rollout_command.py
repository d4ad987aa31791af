"""`lerobot-rollout` on a robot that is not there, with both backends."""

import json
import math
from pathlib import Path

import pytest
from commands import succeed
from runs import Run


@pytest.mark.parametrize("backend", ["sync", "rtc"])
def test_drives_a_robot(trained: Run, home: Path, tmp_path: Path, backend: str):
    actions_path = tmp_path / "actions.jsonl"

    result = succeed(
        "lerobot-rollout",
        f"--policy.path={trained.checkpoint(6)}",
        "--policy.device=cpu",
        f"--inference.type={backend}",
        *(("--inference.rtc.execution_horizon=2",) if backend == "rtc" else ()),
        "--robot.discover_packages_path=mock_motion",
        "--robot.type=mock_motion",
        f"--robot.actions_path={actions_path}",
        f"--robot.calibration_dir={tmp_path}",
        "--task=push the square",
        "--fps=5",
        "--duration=3",
        "--play_sounds=false",
        "--return_to_initial_position=false",
        home=home,
    )

    actions = [json.loads(line) for line in actions_path.read_text().splitlines()]
    assert len(actions) >= 4, result.stderr
    for action in actions:
        assert list(action) == [f"j{i}.pos" for i in range(5)]
        assert all(math.isfinite(value) for value in action.values())
    assert len({json.dumps(action) for action in actions}) > 1
    assert "ERROR" not in result.stderr, result.stderr
