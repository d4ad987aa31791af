"""LeRobot's own test functions for pi0, pi0.5 and all policies, run against ours.

    make lerobot-tests LEROBOT_SRC=<checkout of LeRobot at the tag v0.6.1>

They run in a process of their own, in that checkout, with the plugin as_motion.py in place of
LeRobot's policies. Of the same files these do not apply:

- `test_policy`: feeds a policy what no preprocessor has seen, which pi0 cannot take either (and
  needs datasets from the Hub).
- `test_backward_compatibility`, `test_act_*`, `test_vqbet_*`, `test_multikey_construction`: are of
  one other policy, whichever is tested.
- `test_pi0*_original_vs_lerobot.py`, `test_pi0*_compile.py`: are of the full size, on a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny import shared_file

POLICIES = "tests/policies/test_policies.py"
# Of both policies; {} is pi0 or pi05.
TESTS_OF_BOTH = [
    "tests/policies/pi0_pi05/test_{}.py::test_policy_instantiation",
    "tests/policies/pi0_pi05/test_{}.py::test_config_creation",
    "tests/policies/pi0_pi05/test_{0}_rtc.py::test_{0}_rtc_initialization",
    "tests/policies/pi0_pi05/test_{0}_rtc.py::test_{0}_rtc_initialization_without_rtc_config",
    "tests/policies/pi0_pi05/test_{0}_rtc.py::test_{0}_rtc_inference_with_prev_chunk",
    "tests/policies/pi0_pi05/test_{0}_rtc.py::test_{0}_rtc_inference_without_prev_chunk",
    "tests/policies/pi0_pi05/test_{0}_rtc.py::test_{0}_rtc_validation_rules",
    "tests/processor/test_{0}_processor.py::test_{0}_processor_inputs_match_openpi_reference",
    f"{POLICIES}::test_get_policy_and_config_classes[motion_{{}}]",
    f"{POLICIES}::test_policy_defaults[motion_{{}}]",
    f"{POLICIES}::test_save_and_load_pretrained[motion_{{}}]",
]
TESTS = [
    *[test.format(base) for base in ("pi0", "pi05") for test in TESTS_OF_BOTH],
    f"{POLICIES}::test_save_pretrained_with_state_dict",
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
            *(sys.executable, "-m", "pytest", "-p", "as_motion", f"--junitxml={report}"),
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
