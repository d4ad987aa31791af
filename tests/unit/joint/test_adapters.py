"""LoRA on tiny policies: what learns, what is saved, and what adapters refuse to be put on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.optim.optimizers import AdamWConfig
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from tiny import (
    BASES,
    make_batch,
    make_motion_config,
    make_motion_policy,
    make_stock_policy,
    save_stock_checkpoint,
    wake_motion_head,
)
from torch import Tensor

from lerobot_motion.checkpoints import loading
from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.joint.adapters import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, weights_fingerprint
from lerobot_motion.joint.export import merged_weights
from lerobot_motion.joint.parameter_counts import PARTS, part_of
from lerobot_motion.training.train_run import TrainRun

on_both_bases = pytest.mark.parametrize("base", sorted(BASES))
COUNTER = "base_model.model.model.motion_head.num_updates"
VLM = ("vision tower", "vision projector", "language model")


def adapt(checkpoint: Path, base: str = "pi0", seed: int = 0, **settings: Any) -> PeftModel:
    """Wrap a policy with the checkpoint's weights, as `lerobot-train --peft.…` does."""
    peft = {"method_type": "LORA", "r": 4, **settings.pop("peft", {})}
    config = make_motion_config(base=base, pretrained_path=checkpoint, **settings)
    torch.manual_seed(seed)
    policy = BASES[base].motion_policy.from_pretrained(checkpoint, config=config)
    adapted: PeftModel = policy.wrap_with_peft(peft_cli_overrides=peft)
    return adapted


def save(adapted: PeftModel, path: Path) -> Path:
    """Write what lerobot-train writes of a policy with adapters."""
    adapted.save_pretrained(path)
    adapted.config.save_pretrained(path)
    return path


def load(path: Path, base: str = "pi0", **overrides: Any) -> PeftModel:
    """Load adapters by the steps of LeRobot's make_policy."""
    config = BASES[base].motion_policy.config_class.from_pretrained(path)
    for name, value in {**overrides, "pretrained_path": path}.items():
        setattr(config, name, value)
    settings = PeftConfig.from_pretrained(str(path))
    policy = BASES[base].motion_policy.from_pretrained(
        settings.base_model_name_or_path, config=config, revision=settings.revision
    )
    return PeftModel.from_pretrained(policy, str(path), config=settings, is_trainable=True)


def train(adapted: PeftModel, num_steps: int, seed: int = 0) -> None:
    """Take optimizer steps as lerobot-train does."""
    optimizer = AdamWConfig(lr=1e-2, weight_decay=0.1).build(adapted.get_optim_params())
    adapted.train()
    for step in range(num_steps):
        torch.manual_seed(seed + step)
        loss, _ = adapted.forward(make_batch(adapted, seed=step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        adapted.update()


def losses_and_actions(adapted: PeftModel) -> list[Tensor]:
    adapted.eval()
    batch = make_batch(adapted)
    with torch.no_grad():
        torch.manual_seed(3)
        losses, _ = adapted.forward(batch, reduction="none")
        torch.manual_seed(3)
        return [losses, adapted.predict_action_chunk(batch)]


def trained_tensors(adapted: PeftModel) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}


def learning_head(adapted: PeftModel) -> Any:
    return adapted.get_base_model().model.motion_head.modules_to_save["default"]


def changed_parts(adapted: PeftModel, before: dict[str, Tensor]) -> set[str]:
    after = trained_tensors(adapted)
    return {part_of(name) for name in before if not torch.equal(after[name], before[name])}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base checkpoints: LeRobot's own as `pi0` and `pi05`, ours as `motion`."""
    root = tmp_path_factory.mktemp("adapters")
    for base in BASES:
        save_stock_checkpoint(root / base, base=base)
    make_motion_policy(seed=5).save_pretrained(root / "motion")
    return root


@pytest.fixture(scope="module")
def saved(root: Path) -> Path:
    """Adapters of the vanilla pi0, trained for two steps."""
    adapted = adapt(root / "pi0")
    train(adapted, 2)
    return save(adapted, root / "saved")


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of the trained adapters, to be spoilt."""
    return shutil.copytree(saved, tmp_path / "copied")


# --- what learns ---


@on_both_bases
def test_adapters_are_on_every_part_and_the_head_learns_in_full(root: Path, base: str) -> None:
    adapted = adapt(root / base, base)

    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    lora = [name for name in trained if "lora_" in name]
    assert {part_of(name) for name in lora} == set(PARTS) - {"motion head"}
    full = sorted(set(trained) - set(lora))
    copy = "base_model.model.model.motion_head.modules_to_save.default."
    head = learning_head(adapted)
    assert full == sorted(copy + name for name, _ in head.named_parameters())
    assert adapted.config.use_peft


@on_both_bases
def test_stock_pi0s_own_targets_are_among_ours(root: Path, base: str) -> None:
    stock = make_stock_policy(base=base)
    stock.config.pretrained_path = root / base
    stock = stock.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})

    ours = adapt(root / base, base)

    of_stock, of_ours = (
        {name for name, _ in policy.named_parameters() if "lora_" in name}
        for policy in (stock, ours)
    )
    assert of_stock < of_ours
    assert {part_of(name) for name in of_ours - of_stock} == set(VLM)


@pytest.mark.parametrize(
    ("settings", "without"),
    [
        ({"train_expert_only": True}, set(VLM)),
        ({"freeze_vision_encoder": True}, {"vision tower"}),
    ],
)
def test_what_the_user_freezes_gets_no_adapters(
    root: Path, settings: dict[str, bool], without: set[str]
) -> None:
    adapted = adapt(root / "pi0", **settings)

    assert {part_of(name) for name in trained_tensors(adapted)} == set(PARTS) - without


def test_motion_reaches_the_adapters_of_the_vlm(root: Path) -> None:
    gradients = []
    for weight in (0.0, 1.0):
        adapted = adapt(root / "pi0", motion_loss_weight=weight)
        wake_motion_head(adapted.get_base_model())
        torch.manual_seed(0)
        adapted.train().forward(make_batch(adapted))[0].backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if "lora_B" in n})

    without, with_motion = gradients
    moved = {part_of(n) for n in without if not torch.allclose(without[n], with_motion[n])}
    assert moved >= set(VLM)


def test_in_the_warm_up_no_adapter_changes(root: Path) -> None:
    adapted = adapt(root / "pi0", motion_warmup_steps=2)
    before = trained_tensors(adapted)

    train(adapted, 2)
    assert changed_parts(adapted, before) == {"motion head"}

    train(adapted, 2)
    assert changed_parts(adapted, before) == set(PARTS)


def test_without_a_motion_target_the_adapters_learn_alone(root: Path) -> None:
    adapted = adapt(root / "pi0", motion_target="none")

    assert {part_of(name) for name in trained_tensors(adapted)} == set(PARTS) - {"motion head"}
    assert adapted.peft_config["default"].modules_to_save == []


# --- the optimizer ---


def test_the_optimizer_gets_what_learns_and_nothing_else(root: Path) -> None:
    adapted = adapt(root / "pi0")

    given = {id(parameter) for parameter in adapted.get_optim_params()}

    assert given == {id(p) for p in adapted.parameters() if p.requires_grad}


def test_the_head_has_a_rate_of_its_own(root: Path) -> None:
    adapted = adapt(root / "pi0", motion_head_lr=3e-3)

    base, head = adapted.get_optim_params()

    assert head["lr"] == 3e-3
    learning = learning_head(adapted)
    assert {id(p) for p in head["params"]} == {id(p) for p in learning.parameters()}
    names = {id(p): name for name, p in adapted.named_parameters()}
    assert all("lora_" in names[id(p)] for p in base["params"])
    assert len(base["params"]) + len(head["params"]) == len(trained_tensors(adapted))


# --- saving and loading ---


@on_both_bases
@pytest.mark.parametrize("from_ours", [False, True])
def test_what_is_saved_is_what_is_loaded(
    root: Path, tmp_path: Path, base: str, from_ours: bool
) -> None:
    checkpoint = root / base
    if from_ours:
        checkpoint = tmp_path / "base"
        wake_motion_head(make_motion_policy(seed=5, base=base)).save_pretrained(checkpoint)
    adapted = adapt(checkpoint, base, motion_warmup_steps=1)
    train(adapted, 3)
    save(adapted, tmp_path / "saved")

    torch.manual_seed(99)  # A fresh head would be another one.
    loaded = load(tmp_path / "saved", base)

    for found, expected in zip(
        losses_and_actions(loaded), losses_and_actions(adapted), strict=True
    ):
        assert torch.equal(found, expected)
    before, after = adapted.state_dict(), loaded.state_dict()
    # What PEFT keeps of the head from before is used by nothing, and of a vanilla base random.
    compared = [name for name in before if ".original_module." not in name]
    assert [name for name in compared if not torch.equal(after[name], before[name])] == []
    assert set(trained_tensors(loaded)) == set(trained_tensors(adapted))


def test_the_counter_of_the_warm_up_goes_with_the_adapters(root: Path, tmp_path: Path) -> None:
    adapted = adapt(root / "pi0", motion_warmup_steps=3)
    train(adapted, 2)
    save(adapted, tmp_path)
    assert load_file(tmp_path / ADAPTER_WEIGHTS)[COUNTER] == 2

    loaded = load(tmp_path)
    assert loaded.in_motion_warmup
    train(loaded, 1)

    assert not loaded.in_motion_warmup
    assert learning_head(loaded).num_updates == 3
    assert get_saved(loaded, tmp_path / "again")[COUNTER] == 3


def get_saved(adapted: PeftModel, path: Path) -> dict[str, Tensor]:
    return load_file(save(adapted, path) / ADAPTER_WEIGHTS)


def test_the_checkpoint_holds_adapters_and_head_alone(saved: Path) -> None:
    stored = load_file(saved / ADAPTER_WEIGHTS)

    head = make_motion_policy().model.motion_head.state_dict()
    assert {k for k in stored if "lora_" not in k} == {
        f"base_model.model.model.motion_head.{name}" for name in head
    }


def test_it_serves_without_the_motion_head(saved: Path) -> None:
    whole, headless = load(saved), load(saved, load_motion_head=False)

    assert headless.get_base_model().model.motion_head is None
    batch, noise = make_batch(whole), torch.randn(2, 4, 8)
    actions = [p.eval().predict_action_chunk(batch, noise=noise) for p in (whole, headless)]
    assert torch.equal(*actions)


def test_it_imagines_motion(saved: Path) -> None:
    loaded = load(saved)

    assert loaded.predict_motion(make_batch(loaded), num_steps=2).shape == (2, 3, 112, 112)


def test_merging_from_disk_is_merging_in_memory(saved: Path) -> None:
    merged = load(saved).merge_and_unload().state_dict()

    found = merged_weights(CheckpointSource(str(saved)))

    assert set(found) == set(merged)
    assert [key for key, value in merged.items() if not torch.equal(found[key], value)] == []


# --- the user's own choice ---


def test_other_targets_are_respected(root: Path) -> None:
    adapted = adapt(root / "pi0", peft={"target_modules": ["o_proj"]})

    lora = [name for name in trained_tensors(adapted) if "lora_" in name]
    assert {name.split(".lora_")[0].split(".")[-1] for name in lora} == {"o_proj"}
    assert {part_of(name) for name in lora} == {"language model", "action expert"}


@pytest.mark.parametrize("modules", [["state_proj"], []])
def test_the_head_is_added_to_the_modules_that_learn_in_full(
    root: Path, modules: list[str]
) -> None:
    adapted = adapt(
        root / "pi0", peft={"full_training_modules": modules, "target_modules": ["q_proj"]}
    )

    assert list(adapted.peft_config["default"].modules_to_save) == [*modules, "motion_head"]
    full = {name for name in trained_tensors(adapted) if "lora_" not in name}
    parts = {"motion head"} | ({"action projections"} if modules else set())
    assert {part_of(name) for name in full} == parts


def test_the_head_is_not_added_twice(root: Path) -> None:
    adapted = adapt(root / "pi0", peft={"full_training_modules": ["model.motion_head"]})

    assert adapted.peft_config["default"].modules_to_save == ["model.motion_head"]


def test_a_whole_configuration_must_hold_the_head(root: Path) -> None:
    policy = BASES["pi0"].motion_policy.from_pretrained(
        root / "motion", config=make_motion_config(pretrained_path=root / "motion")
    )

    message = r"it has to be one of modules_to_save, got None. Add 'motion_head'"
    with pytest.raises(ValueError, match=message):
        policy.wrap_with_peft(peft_config=LoraConfig(target_modules=["q_proj"]))

    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["motion_head"])
    assert "motion head" in {
        part_of(name) for name in trained_tensors(policy.wrap_with_peft(peft_config=config))
    }


def test_adapters_need_a_base(root: Path) -> None:
    with pytest.raises(ValueError, match="Supply a `policy.pretrained_path`"):
        make_motion_policy().wrap_with_peft(peft_cli_overrides={"method_type": "LORA"})


# --- which base they belong to ---


def test_the_base_is_noted_by_a_path_that_holds_from_anywhere(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "last").symlink_to("pi0")
    monkeypatch.chdir(root)
    path = save(adapt(Path("last")), tmp_path)

    monkeypatch.chdir(tmp_path)
    (root / "last").unlink()

    settings = json.loads((path / ADAPTER_SETTINGS).read_text())
    assert settings["base_model_name_or_path"] == str((root / "pi0").resolve())
    assert load(path).config.adapter_base_fingerprint is not None


def test_the_revision_of_the_base_is_noted_with_the_adapters_alone(
    root: Path, tmp_path: Path
) -> None:
    policy = BASES["pi0"].motion_policy.from_pretrained(
        root / "pi0",
        config=make_motion_config(pretrained_path=root / "pi0", pretrained_revision="v2"),
        revision="v2",
    )
    adapted = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA"})
    save(adapted, tmp_path)

    assert json.loads((tmp_path / ADAPTER_SETTINGS).read_text())["revision"] == "v2"
    assert json.loads((tmp_path / "config.json").read_text())["pretrained_revision"] is None
    assert adapted.config.pretrained_revision == "v2"


def test_a_base_on_the_hub_is_noted_by_its_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loading, "hf_hub_download", lambda path, name, **options: str(root / "pi0" / name)
    )
    adapted = adapt(Path("user/pi0"))

    save(adapted, tmp_path)

    settings = json.loads((tmp_path / ADAPTER_SETTINGS).read_text())
    assert settings["base_model_name_or_path"] == "user/pi0"
    assert load(tmp_path).config.adapter_base_fingerprint == weights_fingerprint(
        CheckpointSource(str(root / "pi0"))
    )


def test_the_base_is_what_was_loaded_whatever_the_configuration_says(
    root: Path, tmp_path: Path
) -> None:
    config = make_motion_config(pretrained_path=root / "pi0")
    policy = BASES["pi0"].motion_policy.from_pretrained(root / "motion", config=config)

    adapted = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA"})

    assert adapted.peft_config["default"].base_model_name_or_path == str(root / "motion")
    expected = weights_fingerprint(CheckpointSource(str(root / "motion")))
    assert adapted.config.adapter_base_fingerprint == expected


def test_the_fingerprint_is_of_the_weights(root: Path, tmp_path: Path) -> None:
    path = shutil.copytree(root / "pi0", tmp_path / "base")
    source = CheckpointSource(str(path))
    before = weights_fingerprint(source)
    assert weights_fingerprint(CheckpointSource(str(root / "pi0"))) == before

    tensors = load_file(path / "model.safetensors")
    tensors["model.action_out_proj.weight"].flatten()[-1] += 1
    save_file(tensors, path / "model.safetensors")
    assert weights_fingerprint(source) != before

    save_file({k: v for k, v in tensors.items() if "state_proj" not in k}, path / "x")
    (path / "x").rename(path / "model.safetensors")
    assert weights_fingerprint(source) != before


@pytest.mark.parametrize("other", ["values", "sizes", "kind"])
def test_another_base_is_refused(root: Path, copied: Path, tmp_path: Path, other: str) -> None:
    path = tmp_path / "other"
    if other == "values":
        save_stock_checkpoint(path, seed=1)
    elif other == "sizes":
        save_stock_checkpoint(path, max_action_dim=16)
    else:
        shutil.copytree(root / "motion", path)
    edit_json(copied / ADAPTER_SETTINGS, base_model_name_or_path=str(path))

    with pytest.raises(ValueError, match=r"adapters of \S+/copied \S.* \S+/other") as error:
        load(copied)

    assert "base_model_name_or_path in" in str(error.value)
    if other != "sizes":
        message = r"were trained on other weights than those of \S+/other: fingerprint \w{16}, not"
        assert error.match(message)
        load(copied, adapter_base_fingerprint=None)


def test_adapters_of_pi0_are_refused_on_pi05(root: Path, copied: Path) -> None:
    edit_json(copied / ADAPTER_SETTINGS, base_model_name_or_path=str(root / "pi05"))

    message = (
        r"the adapters of \S+/copied belong to the base checkpoint \S+/pi05, which cannot be used: "
        r"checkpoint \S+/pi05 holds a policy of type 'pi05'; expected one of \['motion_pi0', 'pi0'"
    )
    with pytest.raises(ValueError, match=message):
        load(copied)


def test_a_policy_of_pi05_refuses_adapters_of_pi0(copied: Path) -> None:
    config = make_motion_config(base="pi05", use_peft=True, pretrained_path=copied)
    settings = PeftConfig.from_pretrained(str(copied))

    message = r"the adapters of \S+/copied .* type 'pi0'; expected one of \['motion_pi05', 'pi05'\]"
    with pytest.raises(ValueError, match=message):
        BASES["pi05"].motion_policy.from_pretrained(settings.base_model_name_or_path, config=config)


def test_a_base_that_is_gone_is_named(copied: Path, tmp_path: Path) -> None:
    edit_json(copied / ADAPTER_SETTINGS, base_model_name_or_path=str(tmp_path / "gone"))

    message = (
        r"the adapters of \S+/copied belong to the base checkpoint \S+/gone, which cannot be used: "
        r"checkpoint \S+/gone: there is no such local directory.* If the base was moved, write its "
        r"place as base_model_name_or_path in \S+/copied/adapter_config.json"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load(copied)


# --- adapters that are not whole ---


def test_a_fresh_head_is_never_taken_for_a_trained_one(copied: Path) -> None:
    stored = load_file(copied / ADAPTER_WEIGHTS)
    save_file({k: v for k, v in stored.items() if "lora_" in k}, copied / ADAPTER_WEIGHTS)
    edit_json(copied / ADAPTER_SETTINGS, modules_to_save=None)

    message = r"adapters of \S+/copied hold no motion head, and neither does their base \S+ \S+/pi0"
    with pytest.raises(ValueError, match=message):
        load(copied)

    assert load(copied, load_motion_head=False).get_base_model().model.motion_head is None


def test_a_head_of_another_size_is_refused(copied: Path) -> None:
    message = (
        r"motion head of the adapters of \S+/copied does not fit the policy on \S+/pi0: \d+ tensors"
    )
    with pytest.raises(ValueError, match=message):
        load(copied, motion_head_layers=1)


@pytest.mark.parametrize("what", ["missing", "unexpected"])
def test_partial_adapters_are_refused(copied: Path, what: str) -> None:
    stored = load_file(copied / ADAPTER_WEIGHTS)
    key = next(key for key in stored if "language_model" in key)
    if what == "missing":
        del stored[key]
    else:
        stored[key.replace("language_model", "another_model")] = stored[key].clone()
    save_file(stored, copied / ADAPTER_WEIGHTS)

    message = rf"adapters of \S+/copied do not fit the policy on \S+/pi0: 1 tensors {what} \(base_m"
    with pytest.raises(ValueError, match=message):
        load(copied)


def test_adapters_without_their_weights_file(copied: Path) -> None:
    (copied / ADAPTER_WEIGHTS).unlink()

    with pytest.raises(FileNotFoundError, match=r"copied has no adapter_model.safetensors"):
        load(copied)


# --- adapters are no whole policy ---


def test_adapters_are_not_loaded_as_a_policy(saved: Path) -> None:
    message = (
        r"checkpoint \S+/saved holds adapters, no whole policy. Name it by --policy.path .*"
        "lerobot-motion-export"
    )
    with pytest.raises(ValueError, match=message):
        BASES["pi0"].motion_policy.from_pretrained(saved)
    with pytest.raises(ValueError, match=message):
        adapt(saved)


def test_adapters_are_not_stacked(saved: Path, copied: Path) -> None:
    edit_json(copied / ADAPTER_SETTINGS, base_model_name_or_path=str(saved))

    with pytest.raises(ValueError, match=r"adapters of \S+/copied belong to .* holds adapters, no"):
        load(copied)


def test_a_run_that_could_not_save_them_is_refused() -> None:
    config = make_motion_config(use_peft=True, pretrained_path=Path("some/adapters"))

    message = r"some/adapters holds adapters \(LoRA\).* Add --peft.method_type=LORA"
    with pytest.raises(ValueError, match=message):
        config.enter_run(TrainRun(num_steps=9))

    config.enter_run(TrainRun(num_steps=9, adapters=True))
