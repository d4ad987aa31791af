"""docs/latent_store.md, held to the stores that we write."""

import json
import re
from typing import Any

import torch
from safetensors import safe_open
from tiny import REPOSITORY

from lerobot_motion.extraction.build import build_store
from lerobot_motion.extraction.extract import Extraction
from lerobot_motion.latent_store import LatentStore

PAGE = (REPOSITORY / "docs" / "latent_store.md").read_text()


def test_the_reader_reads(extraction: Extraction) -> None:
    build_store(extraction)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("my_dataset/meta/motion/0123456789ab", str(extraction.store)), names)

    latent, valid = LatentStore(extraction.store).read(torch.arange(48))

    for index in (0, 6, 7, 24, 47):
        theirs, has_future = names["read"](index)
        assert torch.equal(theirs.float(), latent[index])
        assert bool(has_future) == bool(valid[index])


def test_every_field_and_tensor_is_described(extraction: Extraction) -> None:
    build_store(extraction)
    manifest = json.loads((extraction.store / "manifest.json").read_text())
    settings = manifest["settings"]
    for name in (*manifest, *settings, *settings["dataset"], *manifest["statistics"]):
        assert re.search(rf"`(settings\.|settings\.dataset|\.)*\.?{name}(\[\])?[`.]", PAGE), name
    for name in manifest["shards"][0]:
        assert f"`{name}`" in PAGE or f"`{name}` " in PAGE or name == "sha256"
    with safe_open(extraction.store / manifest["shards"][0]["file"], framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            assert f"`{name}`" in PAGE


def test_the_tolerances_are_those_of_verify() -> None:
    from lerobot_motion.extraction.verify import TOLERANCE

    assert f"difference of {TOLERANCE} over a latent" in PAGE
