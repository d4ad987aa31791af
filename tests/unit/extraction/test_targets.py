from dataclasses import replace
from pathlib import Path

import pytest
import torch
from extractions import make_extraction
from tiny import shared_file, textured_frames, write_autoencoder

from lerobot_motion.extraction.extract import Extraction
from lerobot_motion.extraction.targets import TargetMaker, usable_device
from lerobot_motion.flow.estimator import RaftEstimator, load_flow_estimator
from lerobot_motion.models.latent_codec import AutoencoderCodec, load_latent_codec


@pytest.fixture
def raft(image_root: Path, tmp_path: Path) -> Extraction:
    """A store made with RAFT-small and a tiny autoencoder."""
    return make_extraction(
        image_root,
        tmp_path / "store",
        compute={"flow_weights": str(shared_file("weights/raft_small_things.safetensors"))},
        flow_estimator="raft_small",
        image_resolution=(128, 128),
        vae=str(write_autoencoder(tmp_path / "vae")),
    )


def test_networks_are_loaded_when_first_used(raft: Extraction) -> None:
    load_flow_estimator.cache_clear()
    load_latent_codec.cache_clear()

    TargetMaker(raft.settings, raft.compute)

    assert load_flow_estimator.cache_info().currsize == 0
    assert load_latent_codec.cache_info().currsize == 0


def test_channels_last_gives_the_same_targets(raft: Extraction) -> None:
    frames = textured_frames(4, (128, 128), speed=4)
    plain = TargetMaker(raft.settings, raft.compute)
    tuned = TargetMaker(raft.settings, replace(raft.compute, channels_last=True))

    expected = plain.make(frames[:2], frames[2:], (128, 128))
    found = tuned.make(frames[:2], frames[2:], (128, 128))

    torch.testing.assert_close(found.latent.float(), expected.latent.float(), rtol=0, atol=5e-3)
    assert isinstance(tuned.estimator, RaftEstimator)
    assert isinstance(tuned.codec, AutoencoderCodec)
    for module in (tuned.estimator.model, tuned.codec.autoencoder.encoder):
        weights = [p for p in module.parameters() if p.ndim == 4 and p.shape[-1] > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    shared = load_latent_codec(raft.settings.vae).autoencoder.encoder.conv_in.weight
    assert shared.is_contiguous()


def test_bfloat16_is_an_option_of_the_store(raft: Extraction) -> None:
    frames = textured_frames(4, (128, 128), speed=4)
    settings = replace(raft.settings, flow_precision="bfloat16")

    rough = TargetMaker(settings, raft.compute).flow(frames[:2], frames[2:], (128, 128))
    exact = TargetMaker(raft.settings, raft.compute).flow(frames[:2], frames[2:], (128, 128))

    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm(dim=1).mean() < 0.3


def test_compiling_is_asked_of_both_networks(
    raft: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(RaftEstimator, "compile", lambda self: compiled.append("raft"))
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__)
    )
    maker = TargetMaker(raft.settings, replace(raft.compute, compile=True))

    _ = maker.estimator, maker.codec

    assert compiled == ["raft", "Encoder"]


@pytest.mark.parametrize(("name", "chosen"), [("cuda", []), ("cuda:2", ["cuda:2"]), ("cpu", [])])
def test_one_of_several_gpus_becomes_the_processs_own(
    name: str, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)

    assert usable_device(name) == name
    assert found == chosen
