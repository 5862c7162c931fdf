"""Optimizers are recognised by what they really save."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from lite_probe.checkpoints import open_checkpoint
from lite_probe.checkpoints.optimizers import SavedSchedule, describe_optimizers, find_schedule, find_state_dicts
from lite_probe.checkpoints.state_dicts import bare_name, find_step, model_prefix
from lite_probe.errors import InputError
from lite_probe.optim import OPTIMIZERS, make_optimizer
from lite_probe.results.checkpoint import OptimizerFound
from tests.checkpoints import writers


def find_optimizer(saved: object) -> OptimizerFound | None:
    found = find_state_dicts(saved)
    return describe_optimizers(found) if found else None


def stepped(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> dict[str, Any]:
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = make([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda weights: torch.optim.AdamW(weights), "adamw"),
        (lambda weights: torch.optim.Muon(weights), "muon"),
        (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9), "sgd"),
        (lambda weights: torch.optim.Adafactor(weights), "adafactor"),
        (lambda weights: torch.optim.RMSprop(weights), "unknown"),
    ],
)
def test_torch_optimizers(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], name: str) -> None:
    state_dict = stepped(make)
    found = find_optimizer({"optimizer": state_dict})
    assert found is not None
    assert found.name == name
    tensors = [value for value in state_dict["state"][0].values() if isinstance(value, torch.Tensor)]
    assert found.num_tensors == len(tensors)
    assert found.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert found.state_names == tuple(sorted(state_dict["state"][0]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_our_own_optimizers_are_told_by_their_groups(name: str) -> None:
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = make_optimizer(name, [("mlp.up_proj.weight", weight)], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    found = find_optimizer({"optimizer": optimizer.state_dict()})
    assert found is not None
    assert found.name == name


def test_the_published_muon_lite_and_moonlight_are_recognised() -> None:
    moments = {"moment1": torch.ones(3), "moment2": torch.ones(3), "step": 4}
    lite = {"state": {0: moments, 1: {"momentum": torch.ones(4, 3), "step": 4}}, "param_groups": [{"muon_theta": 0.9}]}
    found = find_optimizer(lite)
    assert found is not None
    assert found.name == "muon-lite"
    moonlight = {"state": {0: {"momentum_buffer": torch.ones(4, 3)}, 1: moments}, "param_groups": [{"ns_steps": 5}]}
    found = find_optimizer(moonlight)
    assert found is not None
    assert found.name == "muon+adamw"


def test_soap_keeps_lists_of_matrices() -> None:
    state = {"exp_avg": torch.ones(4, 3), "exp_avg_sq": torch.ones(4, 3), "GG": [torch.eye(4), torch.eye(3)], "step": 1}
    found = find_optimizer({"state": {0: state}, "param_groups": [{"precondition_frequency": 10}]})
    assert found is not None
    assert (found.name, found.num_tensors, found.num_bytes) == ("soap", 4, 4 * (12 + 12 + 16 + 9))


def test_several_optimizers_are_named_together() -> None:
    muon = stepped(lambda weights: torch.optim.Muon(weights))
    adamw = stepped(lambda weights: torch.optim.AdamW(weights))
    for saved in ([muon, adamw], {"hidden": muon, "rest": adamw}):
        found = find_optimizer({"optimizers": saved})
        assert found is not None
        assert found.name == "muon+adamw"


@pytest.mark.parametrize("saved", [None, [], {}, {"optimizer": None}, {"optimizer": {"lr": 1}}, {"model": {"w": 1}}])
def test_nothing_to_find(saved: object) -> None:
    assert find_optimizer(saved) is None


# -- states of checkpoints -----------------------------------------------------------------------------------------


def write_folder(folder: Path) -> Path:
    writers.write_huggingface(folder, optimizer=True)
    return folder


def write_lite(folder: Path) -> Path:
    writers.write_lite(folder / "model_40")
    return folder / "model_40"


def write_distributed(folder: Path) -> Path:
    writers.write_distributed(folder)
    return folder


def write_lightning(folder: Path) -> Path:
    writers.write_lightning(folder / "last.ckpt")
    return folder / "last.ckpt"


def write_torch(folder: Path) -> Path:
    writers.write_torch(folder / "step.pt")
    return folder / "step.pt"


def write_legacy(folder: Path) -> Path:
    writers.write_torch(folder / "step.pt", _use_new_zipfile_serialization=False)
    return folder / "step.pt"


WRITERS = (write_folder, write_lite, write_distributed, write_lightning, write_torch, write_legacy)


def assert_same(found: Any, expected: Any) -> None:
    """Compare nested dicts and lists, tensors by value and dtype, and the kinds of keys."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_hands_out_the_states_it_holds(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    checkpoint = open_checkpoint(path, model_config=writers.CONFIGS["llama"])
    assert checkpoint.optimizer is not None
    assert checkpoint.optimizer.name == "adamw"
    states = checkpoint.optimizer_states()
    assert len(states) == 1
    expected = writers.trained_optimizer(writers.make_model("llama")).state_dict()
    if write is write_distributed:  # its metadata sorts what it lists
        assert set(states[0]["state"]) == set(expected["state"])
        for index, values in expected["state"].items():
            assert_same({key: states[0]["state"][index][key] for key in values}, values)
        assert_same(states[0]["param_groups"], expected["param_groups"])
    else:
        assert_same(states[0], expected)


def test_a_checkpoint_without_optimizer_has_no_states(tmp_path: Path) -> None:
    writers.write_huggingface(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.optimizer_states() == []
    assert checkpoint.optimizer is None


def test_several_distributed_optimizers_with_lists_and_names(tmp_path: Path) -> None:
    """As `torch.distributed.checkpoint.state_dict` names parameters, and SOAP keeps lists, one of them empty."""
    muon = {"state": {"w": {"momentum_buffer": torch.randn(4, 3)}}, "param_groups": [{"lr": 0.1, "params": ["w"]}]}
    factors = {"GG": [torch.eye(2), []], "Q": [torch.eye(2), []], "step": 3, "exp_avg": torch.ones(2, 5)}
    soap = {"state": {0: factors}, "param_groups": [{"betas": (0.9, 0.95), "params": [0]}]}
    saved = {"model": {"w": torch.ones(4, 3)}, "optimizers": [muon, soap]}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.optimizer is not None
    assert checkpoint.optimizer.name == "muon+soap"
    first, second = checkpoint.optimizer_states()
    assert_same(first, muon)
    assert second["param_groups"] == [{"betas": (0.9, 0.95), "params": [0]}]
    assert_same({key: second["state"][0][key] for key in factors}, factors)


def test_a_damaged_optimizer_file_is_a_note_until_its_values_are_asked_for(tmp_path: Path) -> None:
    writers.write_huggingface(tmp_path, optimizer=True)
    path = tmp_path / "optimizer.pt"
    content = path.read_bytes()
    moment = writers.trained_optimizer(writers.make_model("llama")).state_dict()["state"][0]["exp_avg"]
    raw = moment.numpy().tobytes()
    path.write_bytes(content.replace(raw, bytes([raw[0] ^ 1]) + raw[1:], 1))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.optimizer is not None  # its names are whole
    with pytest.raises(InputError, match=r"expected a file written by torch.save, got optimizer.pt, .* checksum"):
        checkpoint.optimizer_states()
    path.write_bytes(content[:300])
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.optimizer is None
    assert [note.code for note in checkpoint.notes] == ["optimizer-unreadable"]
    with pytest.raises(InputError, match=r"optimizer\.pt, which is damaged"):
        checkpoint.optimizer_states()
    checkpoint.build_model()  # the weights do not need it


def test_checksums_of_a_single_file_are_checked_before_states_are_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    writers.write_torch(path)
    raw = writers.trained_optimizer(writers.make_model("llama")).state_dict()["state"][0]["exp_avg"].numpy().tobytes()
    content = path.read_bytes()
    assert raw in content
    path.write_bytes(content.replace(raw, bytes([raw[0] ^ 1]) + raw[1:], 1))
    checkpoint = open_checkpoint(path)
    with pytest.raises(InputError, match=r"expected a file written by torch.save, got step.pt, .* checksum"):
        checkpoint.optimizer_states()


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_states_have_gpt2_names_and_layout(tmp_path: Path, bias: bool) -> None:
    path = tmp_path / "ckpt.pt"
    weights = writers.write_nanogpt(path, bias=bias, num_layers=2)
    parameters = writers.nanogpt_parameters(weights)
    optimizer = writers.nanogpt_optimizer(parameters)
    checkpoint = open_checkpoint(path)
    model = checkpoint.build_model()
    (state,) = checkpoint.optimizer_states()
    assert state["assumed_order"] == "matrices, then vectors, in the model's order"
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    assert set(names) == {name for name, _ in model.named_parameters()}
    indices = [index for group in state["param_groups"] for index in group["params"]]
    transposed = 0
    for index, name in zip(indices, names, strict=True):
        ours, theirs = state["state"][index], optimizer.state[parameters[name]]
        assert ours["exp_avg"].shape == model.get_parameter(name).shape
        is_linear = model.get_parameter(name).dim() == 2 and "transformer.w" not in name
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(ours[key].t() if is_linear else ours[key], theirs[key])
        assert ours["step"] == 3
        transposed += is_linear
    assert transposed == 2 * 4


def test_nanogpt_states_of_soap_exchange_their_sides(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    parameters = writers.nanogpt_parameters(writers.write_nanogpt(path))
    state: dict[int, dict[str, Any]] = {}
    for index, parameter in enumerate(parameters.values()):
        squares = [torch.eye(length) if parameter.dim() > 1 else [] for length in parameter.shape]
        moments = {"exp_avg": torch.randn(parameter.shape), "exp_avg_sq": torch.rand(parameter.shape), "step": 4}
        state[index] = {**moments, "GG": squares, "Q": squares}
    saved = torch.load(path)
    groups = [{"params": list(range(len(state)))}]
    torch.save({**saved, "optimizer": {"state": state, "param_groups": groups}}, path)
    checkpoint = open_checkpoint(path)
    model = checkpoint.build_model()
    (found,) = checkpoint.optimizer_states()
    for values, name in zip(found["state"].values(), found["param_groups"][0]["param_names"], strict=True):
        shape = model.get_parameter(name).shape
        assert values["exp_avg"].shape == shape
        if len(shape) > 1:
            for key in ("GG", "Q"):
                assert [len(square) for square in values[key]] == list(shape)


def test_nanogpt_states_in_no_known_order_are_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    writers.write_nanogpt(path)
    saved = torch.load(path)
    saved["optimizer"]["state"] = {0: {"step": 1, "exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(5)}}
    saved["optimizer"]["param_groups"] = [{"params": [0]}]
    torch.save(saved, path)
    assert_same(open_checkpoint(path).optimizer_states()[0], saved["optimizer"])


def test_the_schedule_of_each_format(tmp_path: Path) -> None:
    writers.write_lite(tmp_path / "model_40")
    assert open_checkpoint(tmp_path / "model_40").schedule() == SavedSchedule(
        rates=(1e-3,), source="base_lrs of its scheduler"
    )
    writers.write_nanogpt(tmp_path / "ckpt.pt")
    assert open_checkpoint(tmp_path / "ckpt.pt").schedule() == SavedSchedule(
        rates=(1e-3,), source="learning_rate of its config"
    )
    folder = tmp_path / "trainer"
    writers.write_huggingface(folder, optimizer=True)
    assert open_checkpoint(folder).schedule() is None
    torch.save({"base_lrs": [2e-3, 2e-3], "last_epoch": 9, "_last_lr": [0.0, 0.0]}, folder / "scheduler.pt")
    assert open_checkpoint(folder).schedule() == SavedSchedule(rates=(2e-3, 2e-3), source="base_lrs of its scheduler")
    (folder / "scheduler.pt").write_bytes(b"junk")
    checkpoint = open_checkpoint(folder)  # nobody needs it until it is asked for
    assert len(checkpoint.optimizer_states()) == 1
    with pytest.raises(InputError, match=r"scheduler\.pt"):
        checkpoint.schedule()
    writers.write_lightning(tmp_path / "last.ckpt")
    assert open_checkpoint(tmp_path / "last.ckpt", model_config=writers.CONFIGS["llama"]).schedule() is None


@pytest.mark.parametrize(
    ("saved", "rates"),
    [
        ({"lr_schedulers": [{"base_lrs": [0.1]}, {"base_lrs": (0.2, 0.3)}]}, (0.1, 0.2, 0.3)),
        ({"scheduler": {"base_lrs": [torch.tensor(0.5)]}}, (0.5,)),
        ({"config": {"lr": 0.25}}, (0.25,)),
        ({"scheduler": {"base_lrs": [0.0]}, "config": Namespace(learning_rate=0.5)}, (0.5,)),
        ({"scheduler": {"base_lrs": "0.1"}}, None),
        ({"scheduler": {"base_lrs": [0.1, float("nan")]}}, None),
        ({"config": {"lr": True}}, None),
        ([0.1], None),
        (None, None),
    ],
)
def test_learning_rates_of_schedules(saved: object, rates: tuple[float, ...] | None) -> None:
    found = find_schedule(saved)
    assert (None if found is None else found.rates) == rates


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("module._orig_mod.lm_head.weight", "lm_head.weight"),
        ("layers.0._fsdp_wrapped_module.mlp._orig_mod.w", "layers.0.mlp.w"),
        ("layers.module.w", "layers.module.w"),
    ],
)
def test_names_lose_their_wrappers(name: str, bare: str) -> None:
    assert bare_name(name) == bare


@pytest.mark.parametrize(
    ("saved", "step"),
    [
        ({"iter_num": 5000}, 5000),
        ({"global_step": 320, "update_step": 40}, 40),
        ({"step": torch.tensor(7)}, 7),
        ({"step": True}, None),
        ({"step": -1}, None),
        ({"step": "7"}, None),
        ({"epoch": 3}, None),
        ([7], None),
    ],
)
def test_steps(saved: object, step: int | None) -> None:
    assert find_step(saved) == step


def test_the_prefix_is_the_one_most_names_share() -> None:
    expected = ["model.embed.weight", "model.layers.0.weight", "lm_head.weight"]
    assert model_prefix(expected, expected) == ""
    assert model_prefix([f"net.{name}" for name in expected], expected) == "net."
    assert model_prefix([f"model.{name}" for name in expected], expected) == "model."
    both = [f"student.{name}" for name in expected] + ["teacher.lm_head.weight"]
    assert model_prefix(both, expected) == "student."
    assert model_prefix(["something.else"], expected) == ""


def test_what_lies_below_one_more_key_is_found(tmp_path: Path) -> None:
    """The layout of torch's recipe for distributed checkpoints."""
    model = writers.make_model("llama")
    optimizer = writers.trained_optimizer(model)
    saved = {"app": {"model": model.state_dict(), "optim": optimizer.state_dict(), "step": 7}, "epoch": 1}
    torch.save(saved, tmp_path / "app.pt")
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(saved, checkpoint_id=tmp_path / "app", no_dist=True)
    for name in ("app.pt", "app"):
        checkpoint = open_checkpoint(tmp_path / name, model_config=writers.CONFIGS["llama"])
        assert torch.equal(writers.logits(checkpoint.build_model()), writers.logits(model))
        assert checkpoint.step == 7
        assert checkpoint.optimizer is not None
        assert checkpoint.optimizer.name == "adamw"
        (state,) = checkpoint.optimizer_states()
        for index, values in optimizer.state_dict()["state"].items():
            assert_same({key: state["state"][index][key] for key in values}, values)


def test_a_step_and_an_optimizer_may_lie_above(tmp_path: Path) -> None:
    model = writers.make_model("llama")
    saved = {"app": {"model": model.state_dict()}, "optim": writers.trained_optimizer(model).state_dict(), "step": 9}
    torch.save(saved, tmp_path / "app.pt")
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(saved, checkpoint_id=tmp_path / "app", no_dist=True)
    for name in ("app.pt", "app"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.step == 9
        assert checkpoint.optimizer is not None


def test_several_models_below_other_keys_are_named(tmp_path: Path) -> None:
    weights = {"w": torch.ones(2)}
    saved = {"student": {"model": weights}, "teacher": {"ema": {"state_dict": {"w": torch.ones(2)}}}}
    torch.save(saved, tmp_path / "two.pt")
    with pytest.raises(InputError, match=r"one state dict in two\.pt, got several, below student, teacher\.ema"):
        open_checkpoint(tmp_path / "two.pt")
    torch.save({"a": {"model": weights}, "b": {"metrics": {"loss": torch.ones(1)}}}, tmp_path / "one.pt")
    assert open_checkpoint(tmp_path / "one.pt").num_parameters == 2
    torch.save({"b": {"metrics": {"loss": torch.ones(1)}}}, tmp_path / "none.pt")
    with pytest.raises(InputError, match="expected a state dict at the top level"):
        open_checkpoint(tmp_path / "none.pt")
