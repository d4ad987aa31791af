import json
from inspect import signature
from pathlib import Path

import av
import pytest
from imagining import save_checkpoint
from lerobot.utils.rerun_visualization import init_rerun
from PIL import Image
from tiny import CAMERA, write_dataset

from lerobot_motion.cli import viz as viz_module
from lerobot_motion.cli.viz import main
from lerobot_motion.viz import stream as stream_module
from lerobot_motion.viz.metrics import FIGURES

OTHER = "observation.images.wrist"
NUM_FRAMES, FPS = 12, 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("viz") / "data", num_frames=NUM_FRAMES, fps=FPS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viz") / "pretrained_model"
    save_checkpoint(path, dataset_settings={"repo_id": "tests/tiny", "eval_split": 0.5})
    return path


def flags(data: Path, *others: object) -> list[str]:
    common = ["--dataset.repo_id=tests/tiny", f"--dataset.root={data}", "--device=cpu"]
    return [*common, *map(str, others)]


def num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_draws_and_measures_a_policy(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = [f"--policy.path={checkpoint}", f"--output={output}", "--metrics=true"]

    assert main(flags(data, *arguments, "--stride=2", "--batch_size=4")) == 0

    printed = capsys.readouterr()
    assert {path.name for path in output.iterdir()} == {
        "episode_000.mp4",
        "episode_001.mp4",
        "contact_sheet.png",
        "legend.png",
        "metrics.json",
    }
    assert num_frames(output / "episode_001.mp4") == NUM_FRAMES / 2
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["target"]["horizon"] == 4
    for part in ("episode 0", "episode 1", "overall"):
        # Of positions 0, 2, ... 10 the first four have a future, of which two have a past, too.
        frames = {name: row["frames"] for name, row in metrics[part].items()}
        factor = 2 if part == "overall" else 1
        assert frames == {
            "policy": 4 * factor,
            "no_motion": 4 * factor,
            "codec": 4 * factor,
            "policy_after_horizon": 2 * factor,
            "no_motion_after_horizon": 2 * factor,
            "last_motion": 2 * factor,
        }
        assert all(set(row) == {"frames", *FIGURES} for row in metrics[part].values())
    overall = metrics["overall"]
    assert overall["codec"]["end_point_error_px"] < overall["no_motion"]["end_point_error_px"]
    assert overall["no_motion"]["moving_f1"] == 0.0
    # The square goes on as it went; an untrained head knows nothing.
    assert overall["last_motion"]["angular_error_deg"] < 45
    assert "last motion, after a horizon" in printed.out
    assert "Looking: 100%" in printed.err
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 288


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("viz") / "two"
    return write_dataset(root, cameras=(CAMERA, OTHER), num_frames=NUM_FRAMES, fps=FPS)


def test_every_view_of_a_policy_is_drawn_and_measured(
    two_cameras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = (OTHER, CAMERA, "observation.images.empty_camera_0")
    settings = {"motion_camera": list(views), "empty_cameras": 1}
    save_checkpoint(tmp_path / "views", cameras=(CAMERA, OTHER), **settings)
    output = tmp_path / "out"
    arguments = [f"--policy.path={tmp_path / 'views'}", f"--output={output}", "--metrics=true"]

    assert main(flags(two_cameras, *arguments, "--stride=4", "--num_rows=2")) == 0

    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["dataset"]["camera"] == [OTHER, CAMERA]
    assert list(metrics)[3:] == ["episode 0", "episode 1", OTHER, CAMERA, "overall"]
    # Positions 0 and 4 have a future, in two episodes and two views.
    frames = {title: metrics[title]["policy"]["frames"] for title in list(metrics)[3:]}
    assert list(frames.values()) == [4, 4, 4, 4, 8]
    means = [metrics[camera]["policy"]["end_point_error_px"] for camera in (OTHER, CAMERA)]
    assert means[0] != means[1]
    assert metrics["overall"]["policy"]["end_point_error_px"] == pytest.approx(sum(means) / 2)
    assert OTHER in capsys.readouterr().out
    with av.open(str(output / "episode_000.mp4")) as container:
        (frame, *_) = container.decode(video=0)
        assert frame.height > 2 * 288
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.height > 4 * 288


def test_targets_of_several_cameras(two_cameras: Path, tmp_path: Path) -> None:
    arguments = ["--flow_estimator=dis", "--image_resolution=[112,112]", "--horizon=3"]
    cameras = f"--camera={CAMERA},{OTHER}"

    output = f"--output={tmp_path / 'targets.png'}"
    assert main(flags(two_cameras, *arguments, cameras, output, "--num_rows=1")) == 0

    with Image.open(tmp_path / "targets.png") as sheet:
        assert 2 * 288 < sheet.height < 3 * 288


def test_shows_the_targets_alone(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "targets.gif"
    arguments = ["--flow_estimator=dis", "--image_resolution=[112,112]", "--horizon=3"]

    status = main(flags(data, *arguments, f"--output={output}", "--dataset.episodes=[1]"))

    assert status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["targets.gif", "targets.png"]
    with Image.open(output) as gif:
        assert gif.n_frames == NUM_FRAMES
        assert gif.width < 4 * 288


def test_measures_the_baselines_alone(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--flow_estimator=dis", "--image_resolution=[112,112]", "--horizon=3"]

    assert main(flags(data, *arguments, "--metrics=true")) == 0

    table = capsys.readouterr().out
    assert "no motion" in table
    assert "policy" not in table
    assert "Written" not in table


def test_a_contact_sheet_alone(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "motion.png"
    arguments = [f"--policy.path={checkpoint}", f"--output={output}", "--metrics=true"]

    # Only what the run held out.
    assert main(flags(data, *arguments, "--held_out=true", "--num_rows=2")) == 0

    assert sorted(path.name for path in tmp_path.iterdir()) == ["motion.json", "motion.png"]
    metrics = json.loads((tmp_path / "motion.json").read_text())
    assert "episode 0" not in metrics
    assert metrics["episode 1"] == metrics["overall"]


def test_targets_may_be_estimated_otherwise(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that was trained elsewhere, with weights of RAFT that are not here."""
    save_checkpoint(
        tmp_path / "raft",
        image_resolution=(128, 128),
        flow_estimator="raft_large",
        flow_weights="/gone.safetensors",
    )
    arguments = [f"--policy.path={tmp_path / 'raft'}", "--metrics=true", "--stride=6"]

    assert main(flags(data, *arguments)) == 1
    assert "/gone.safetensors" in capsys.readouterr().err
    assert main(flags(data, *arguments, "--flow_estimator=dis")) == 0


def test_future_images_are_drawn_and_compared(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "future", motion_target="future_image")
    arguments = [f"--policy.path={tmp_path / 'future'}", "--metrics=true", "--stride=4"]

    assert main(flags(data, *arguments, f"--output={tmp_path / 'out'}")) == 0

    overall = json.loads((tmp_path / "out" / "metrics.json").read_text())["overall"]
    assert set(overall) == {"policy", "no_motion", "codec"}
    assert set(overall["policy"]) == {"frames", "psnr_db"}
    assert "EPE" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "legend.png").exists()


def test_streams_to_rerun(
    data: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rerun = pytest.importorskip("rerun")
    assert list(signature(init_rerun).parameters) == ["session_name", "ip", "port"]
    sessions = []

    def record(session_name: str, ip: str | None, port: int | None) -> None:
        sessions.append((session_name, ip, port))
        rerun.init(session_name)
        rerun.save(tmp_path / "stream.rrd")

    monkeypatch.setattr(stream_module, "init_rerun", record)
    arguments = [f"--policy.path={checkpoint}", "--display_data=true", "--stride=6"]

    status = main(flags(data, *arguments, "--display_ip=127.0.0.1", "--display_port=9876"))

    assert status == 0
    assert sessions == [("lerobot_motion_viz", "127.0.0.1", 9876)]
    rerun.rerun_shutdown()
    content = (tmp_path / "stream.rrd").read_bytes()
    assert len(content) > 10_000
    for name in (b"episode_1/predicted_motion_image", b"episode_0/action/demonstrated"):
        assert name in content


def test_streams_every_view(
    two_cameras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: set[str] = set()
    monkeypatch.setattr(stream_module.RerunStream, "__init__", lambda *_: None)
    monkeypatch.setattr(
        stream_module.RerunStream,
        "log",
        lambda _, e, moment, pictures, actions: logged.update(pictures),
    )
    arguments = ["--flow_estimator=dis", "--image_resolution=[112,112]", "--horizon=3"]
    cameras = f"--camera={CAMERA},{OTHER}"

    assert main(flags(two_cameras, *arguments, cameras, "--display_data=true", "--stride=6")) == 0

    names = ("camera", "target_motion_image", "where_it_goes")
    assert logged == {f"{view}/{name}" for view in ("top", "wrist") for name in names}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do: pass --output"),
        (["--metrics=true", "--stride=0"], "stride must be at least 1, got 0"),
        (["--metrics=true", "--held_out=true"], "held_out needs --policy.path"),
        (["--metrics=true", "--flow_estimator=sift"], "flow_estimator must be one of"),
        (["--metrics=true", "--dataset.episodes=[7]"], "has the episodes 0 to 1, got [7]"),
        (["--metrics=true", f"--camera={OTHER}"], f"camera must be one of ['{CAMERA}']"),
        (["--metrics=true", "--motion_target=depth"], "motion_target must be one of"),
        (["--metrics=true", "--horizon=12"], "horizon must be shorter than the longest"),
        (["--metrics=true", "--horizon=0"], "horizon must be at least 1 frame, got 0"),
        (["--metrics=true", "--horizon=-5"], "horizon must be at least 1 frame, got -5"),
        (["--metrics=true", "--device=tpu9"], "cannot be used"),
        (["--output=a.avi"], "must end in .mp4, .gif, .png, or name a folder"),
        (["--metrics=true", "--policy.path=/nowhere"], "checkpoint /nowhere: there is no such"),
        (["--metrics=true", "--log_level=loud"], "log_level must be one of"),
    ],
)
def test_says_what_is_wrong(
    arguments: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(data, *arguments)) == 1

    error = capsys.readouterr().err
    assert "error: " in error
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--horizon=3"], "horizon: a checkpoint settles what it imagines"),
        (["--camera=x", "--flow_max_magnitude=3"], "flow_max_magnitude, camera: a checkpoint"),
        (["--held_out=true", "--dataset.episodes=[0]"], "both choose episodes, got [0]"),
    ],
)
def test_a_checkpoint_settles_much(
    arguments: list[str],
    message: str,
    data: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(data, f"--policy.path={checkpoint}", "--metrics=true", *arguments)) == 1

    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--flow_estimator=dis", "--flow_weights=w.safetensors"],
            "flow_estimator=dis has no weights, got flow_weights=w.safetensors",
        ),
        (["--flow_weights={stock}"], "does not hold the weights of raft_large"),
        (["--flow_weights=gone.safetensors"], "flow_weights: no file at gone.safetensors"),
        (
            ["--image_resolution=[64,64]"],
            "raft_large needs an image_resolution of at least 128 px a side",
        ),
        (["--image_resolution=[0,64]"], "image_resolution must be positive, got 0x64"),
        (["--flow_max_magnitude=-3"], "flow_max_magnitude must be positive (pixels), got -3.0"),
        (["--flow_max_magnitude=.inf"], "flow_max_magnitude must be positive (pixels), got inf"),
        (
            ["--policy.path={checkpoint}", "--flow_estimator=raft_small"],
            "raft_small needs an image_resolution of at least 128 px a side",
        ),
        (
            ["--policy.path={checkpoint}", "--flow_weights=w.safetensors"],
            "flow_estimator=dis has no weights, got flow_weights=w.safetensors",
        ),
    ],
)
def test_settings_of_flow_are_refused_before_anything_is_loaded(
    arguments: list[str],
    message: str,
    data: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(viz_module, "open_dataset", lambda *_: pytest.fail("the dataset was read"))
    paths = {"checkpoint": checkpoint, "stock": checkpoint / "model.safetensors"}
    given = [argument.format(**paths) for argument in arguments]

    assert main(flags(data, "--metrics=true", *given)) == 1

    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert "--policy." not in printed.err
    assert "Looking" not in printed.err


def test_of_a_future_image_the_settings_of_flow_do_not_matter(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--motion_target=future_image", "--image_resolution=[64,64]", "--horizon=3"]

    assert main(flags(data, *arguments, "--flow_weights=gone", "--metrics=true")) == 0

    assert "PSNR" in capsys.readouterr().out


def test_overwrites_only_when_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sheet.png"
    output.write_text("mine")
    arguments = ["--flow_estimator=dis", "--image_resolution=[112,112]", "--horizon=3"]
    arguments += [f"--output={output}", "--stride=4"]

    assert main(flags(data, *arguments)) == 1
    assert "sheet.png exists and is not overwritten" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert main(flags(data, *arguments, "--overwrite=true")) == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_argument_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--stride=often"]) == 2

    assert "stride" in capsys.readouterr().err
