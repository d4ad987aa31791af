"""LeRobot's own test functions for pi0 and for all policies, run against motion_pi0.

    make lerobot-tests LEROBOT_SRC=<checkout of LeRobot at the tag v0.6.1>

They run in a process of their own, in that checkout, with the plugin as_motion_pi0.py in place of
pi0. Of the same files these do not apply:

- `test_policy`: feeds a policy what no preprocessor has seen, which pi0 cannot take either (and
  needs datasets from the Hub).
- `test_backward_compatibility`, `test_act_*`, `test_vqbet_*`, `test_multikey_construction`: are of
  one other policy, whichever is tested.
- `test_pi0_original_vs_lerobot.py`, `test_pi0_compile.py`: are of the full size, on a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny import shared_file

PI0 = "tests/policies/pi0_pi05/test_pi0.py"
RTC = "tests/policies/pi0_pi05/test_pi0_rtc.py"
POLICIES = "tests/policies/test_policies.py"
PROCESSOR = "tests/processor/test_pi0_processor.py"

TESTS = [
    f"{PI0}::test_policy_instantiation",
    f"{PI0}::test_config_creation",
    f"{RTC}::test_pi0_rtc_initialization",
    f"{RTC}::test_pi0_rtc_initialization_without_rtc_config",
    f"{RTC}::test_pi0_rtc_inference_with_prev_chunk",
    f"{RTC}::test_pi0_rtc_inference_without_prev_chunk",
    f"{RTC}::test_pi0_rtc_validation_rules",
    f"{POLICIES}::test_get_policy_and_config_classes[motion_pi0]",
    f"{POLICIES}::test_policy_defaults[motion_pi0]",
    f"{POLICIES}::test_save_and_load_pretrained[motion_pi0]",
    f"{POLICIES}::test_save_pretrained_with_state_dict",
    f"{PROCESSOR}::test_pi0_processor_inputs_match_openpi_reference",
]

Outcomes = dict[str, ElementTree.Element]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each of LeRobot's; one that says so where there is no checkout."""
    if metafunc.config.getoption("--lerobot-src", default=None):
        metafunc.parametrize("test", TESTS)
    else:
        reason = "needs a checkout of LeRobot: make lerobot-tests LEROBOT_SRC=<path>"
        metafunc.parametrize("test", [pytest.param(None, marks=pytest.mark.skip(reason=reason))])


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of LeRobot's tests, by their names."""
    source = Path(request.config.getoption("--lerobot-src")).resolve()
    report = tmp_path_factory.mktemp("lerobot") / "report.xml"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "as_motion_pi0", f"--junitxml={report}"),
            *("-c", os.devnull, "--rootdir", str(source), *TESTS),
        ],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PALIGEMMA_TOKENIZER": str(shared_file("tokenizers/paligemma")),
            "PYTHONPATH": str(Path(__file__).parent),
        },
    )
    assert report.exists(), result.stdout + result.stderr
    cases = ElementTree.parse(report).iter("testcase")
    return {f"{case.get('classname')}.{case.get('name')}": case for case in cases}


def test_lerobots_own(outcomes: Outcomes, test: str) -> None:
    path, name = test.split("::")
    module = path.removesuffix(".py").replace("/", ".")
    (case,) = [outcomes[key] for key in outcomes if key.endswith(f"{module}.{name}")]

    assert [child.text for child in case if child.tag in {"failure", "error", "skipped"}] == []
