"""Rules that the source itself shows: who imports whom, what is shunned, how long things get."""

import ast
from pathlib import Path

import pytest

import lerobot_motion

PACKAGE = Path(lerobot_motion.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]

# From the bottom to the top: a part imports parts of lower layers, or of its own.
LAYERS = [
    {"config_errors"},
    {"flow", "files"},
    {"models"},
    {"dataset_identity", "motion_target"},
    {"steps", "latent_store", "visualize"},
    {"checkpoints"},
    {"training"},
    {"joint", "extraction"},
    {"viz"},
    {"motion_pi0", "motion_pi05"},
    {"cli", "_plugin"},
]
# Parts that may not know each other, whatever their layers.
STRANGERS = [{"flow", "models"}, {"joint", "extraction"}, {"motion_pi0", "motion_pi05"}]
# Simulation and reports know nothing of the rest; only what registers or runs them may import them.
ALONE = {"sim", "report", "__init__"}
# A few lines that these, too, may use.
FOR_ALL = {"config_errors"}
PARTS = set.union(*LAYERS) | ALONE

MAX_FILE_LINES = 350
MAX_BODY_LINES = 60


def part_of(path: Path) -> str:
    """The package's part that a file belongs to, as in lerobot_motion/<part>/…."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(tree: ast.Module) -> set[str]:
    """Parts of the package that a file imports, under TYPE_CHECKING too."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    ours = [name.split(".")[1] for name in names if name.startswith("lerobot_motion.")]
    return {name for name in ours if not name.startswith("__")}


def may_import(part: str, other: str) -> bool:
    if part == other or other in FOR_ALL:
        return True
    if other in ALONE:
        return part in LAYERS[-1]
    if part in ALONE or {part, other} in STRANGERS:
        return False
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    return layer[other] <= layer[part]


def violations(part: str, source: str) -> list[str]:
    return sorted(
        other for other in imported_parts(ast.parse(source)) if not may_import(part, other)
    )


def test_every_part_has_its_layer() -> None:
    assert {part_of(path) for path in FILES} <= PARTS


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_one_way(path: Path) -> None:
    assert violations(part_of(path), path.read_text()) == []


def test_only_the_plugin_imports_the_policies() -> None:
    importers = {
        part_of(path)
        for path in FILES
        if imported_parts(ast.parse(path.read_text())) & {"motion_pi0", "motion_pi05"}
    }

    assert "_plugin" in importers
    assert importers <= {"_plugin", "motion_pi0", "motion_pi05", "cli"}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("flow", "import lerobot_motion.models.latent_codec"),
        ("models", "from lerobot_motion.flow import estimator"),
        ("models", "from lerobot_motion import steps"),
        ("steps", "from lerobot_motion.joint.policy import JointMotionPolicy"),
        ("joint", "from lerobot_motion.motion_pi0.modeling_motion_pi0 import MotionPi0Policy"),
        ("training", "from lerobot_motion.joint.configuration import JointMotionConfig"),
        ("checkpoints", "from lerobot_motion.training.train_run import TrainRun"),
        ("sim", "from lerobot_motion import steps"),
        ("config_errors", "from lerobot_motion import files"),
        ("joint", "from lerobot_motion.sim import aloha_expert"),
        ("report", "from lerobot_motion.extraction import store_directory"),
        ("extraction", "from lerobot_motion.report import statistics"),
        ("motion_pi05", "from lerobot_motion.motion_pi0 import modeling_motion_pi0"),
    ],
)
def test_the_check_sees_what_it_should(part: str, source: str) -> None:
    assert violations(part, source)
    assert violations(part, f"def late():\n    {source}")


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_what_is_shunned(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names) if any(alias.name == "pickle" for alias in names):
                found.append("import pickle")
            case ast.ImportFrom(module="pickle"):
                found.append("from pickle import")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                found.append("torch.load")
            case ast.Call(func=ast.Name(id="print")) if part_of(path) != "cli":
                found.append("print")
            case ast.ExceptHandler(type=None):
                found.append("except:")
            case ast.ExceptHandler(type=ast.Name(id="Exception" | "BaseException")):
                found.append("except Exception")
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    long = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if lines > MAX_BODY_LINES:
                long[node.name] = lines
    assert long == {}
