"""Optimizers that are not ours: torch's by name and a user's function are replayed as ours are, or refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lite_probe as lp
from lite_probe.errors import InputError, UsageError
from lite_probe.measurements.base import discard_state
from lite_probe.measurements.replay import replay
from lite_probe.optim.interface import Together, make_foreign, set_learning_rate, torch_maker
from lite_probe.replays.entrants import Asked, entrants_of, name_of
from lite_probe.results.replay import Replay
from lite_probe.runtime import resumable
from tests.plans import plan_replay
from tests.replays.conftest import spectrum_of, with_training

pytestmark = pytest.mark.slow

_ASKED: dict[str, Any] = {"steps": 6, "seeds": 2, "warm_batches": 4, "landscape": False}
Named = list[tuple[str, nn.Parameter]]


class SignDescent(torch.optim.Optimizer):
    """A user's optimizer: the sign of an average, scaled by how often it stepped."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("average", torch.zeros_like(parameter))
                state["steps"] = state.get("steps", 0) + 1
                average.lerp_(parameter.grad, 1.0 - group["momentum"])
                parameter.add_(average.sign(), alpha=-group["lr"] / state["steps"] ** 0.5)


class Forgetful(SignDescent):
    """Counts its steps where no state has them."""

    steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad.sign(), alpha=-group["lr"] / self.steps)


def make_sign(named_parameters: Named, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    return SignDescent(named_parameters, lr=lr, momentum=momentum)


def make_forgetful(named_parameters: Named, lr: float) -> torch.optim.Optimizer:
    return Forgetful(named_parameters, lr=lr)


def replayed(optimizers: Asked | Sequence[Asked], lr: Any = 2e-3, **more: Any) -> Replay:
    task = with_training("mlp", 40)
    return replay(task, optimizers, spectrum=spectrum_of(task), lr=lr, **{**_ASKED, **more})


# -- as ours are -----------------------------------------------------------------------------------------------------


def test_torchs_adamw_makes_the_progress_of_ours() -> None:
    """Two implementations of one algorithm, by one name each, from warmed states."""
    settings = {
        "torch.AdamW": {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1},
        "adamw": {"adamw_beta1": 0.9, "adamw_beta2": 0.99, "eps_after_correction": True, "weight_decay": 0.1},
    }
    found = replayed(["adamw", "torch.AdamW"], hyperparameters=settings)
    for ours, theirs in zip(found.runs_of("adamw"), found.runs_of("torch.AdamW"), strict=True):
        assert abs(ours.loss_change) > 1e-4
        # Steps differ by roundings of float32, 1e-7 of the weights each.
        np.testing.assert_allclose(theirs.losses, ours.losses, rtol=1e-5)
        np.testing.assert_allclose(theirs.update_norms, ours.update_norms, rtol=1e-4)
        np.testing.assert_allclose(theirs.band_allocations.sum(), ours.band_allocations.sum(), rtol=1e-3)


def test_everything_is_measured_of_a_function_s_optimizer() -> None:
    found = replayed(["muon", make_sign], lr={"muon": 1e-2, "make_sign": 1e-3}, ramp=0)
    assert found.optimizers == ("muon", "make_sign")
    recipe = found.recipes["make_sign"]
    assert (recipe.lr, recipe.lr_source, recipe.state) == (1e-3, "given", "warm")
    assert "make_sign" not in found.theory
    for run in found.runs_of("make_sign"):
        assert run.is_recorded
        # A sign step moves every entry by lr over √ of the steps, those of warming counted.
        size = 1e-3 * np.sqrt(found.num_parameters / np.arange(5, 11))
        np.testing.assert_allclose(run.update_norms, size, rtol=0.05)
    assert found.exponent("make_sign") is None or found.effective_lrs("make_sign") is not None


def test_a_sweep_finds_a_rate_for_it() -> None:
    found = replayed([make_sign], lr="sweep", ramp=0)
    assert found.sweeps["make_sign"].chosen == found.recipes["make_sign"].lr
    assert found.loss_change("make_sign").value < 0.0  # type: ignore[union-attr]


def test_the_python_interface_takes_both() -> None:
    task = with_training("mlp", 40)
    found = lp.replay(task, optimizers=["sgd", make_sign], spectrum=spectrum_of(task), lr=1e-3, **_ASKED)
    assert found.optimizers == ("sgd", "make_sign")


@pytest.mark.parametrize("asked", [make_sign, "torch.AdamW", "torch.Muon"])
def test_it_continues_after_a_kill_bitwise(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "_LONGEST_INTERVAL", 0.0)
    whole = replayed([asked])
    task = with_training("mlp", 40)
    spectrum = spectrum_of(task)
    steps = 0

    def stop_at(number: int) -> Callable[[Any], None]:
        def on_step(event: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == number:
                raise KeyboardInterrupt

        return on_step

    with pytest.raises(KeyboardInterrupt):
        replay(task, [asked], spectrum=spectrum, lr=2e-3, **_ASKED, state_directory=tmp_path, on_step=stop_at(4))
    again = replay(task, [asked], spectrum=spectrum, lr=2e-3, **_ASKED, state_directory=tmp_path)
    discard_state(tmp_path, "replay")
    assert [note for note in again.notes if note.code == "damaged-state"] == []
    for one, other in zip(whole.runs, again.runs, strict=True):
        assert one.losses.tobytes() == other.losses.tobytes()
        assert one.band_allocations.tobytes() == other.band_allocations.tobytes()


# -- how it is made --------------------------------------------------------------------------------------------------


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def made(maker: Any, **hyperparameters: Any) -> Any:
    return make_foreign(maker, "make_it of mine.py", model().named_parameters(), hyperparameters)


def test_groups_keep_the_ratio_of_their_rates() -> None:
    def maker(named: Named, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": named[:2], "lr": lr}, {"params": named[2:], "lr": 0.1 * lr}], lr=lr)

    optimizer = made(maker)
    set_learning_rate(optimizer, 0.02)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.002])
    state = optimizer.state_dict()
    other = made(maker)
    other.load_state_dict(state)
    set_learning_rate(other, 0.5)
    assert [group["lr"] for group in other.param_groups] == pytest.approx([0.5, 0.05])


def test_several_optimizers_step_as_one() -> None:
    def maker(named: Named, lr: float) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(named[:2], lr=lr), torch.optim.AdamW(named[2:], lr=2 * lr)]

    optimizer = made(maker)
    assert isinstance(optimizer, Together)
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(not torch.equal(one, other) for one, other in zip(parameters, before, strict=True))
    assert len(optimizer.state) == 2  # AdamW's: plain gradient descent keeps nothing


def test_torchs_muon_takes_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    task = with_training("llama", 4)
    optimizer = make_foreign(torch_maker("torch.Muon"), "torch.Muon", task.model.named_parameters(), {"ns_steps": 6})
    assert isinstance(optimizer, Together)
    muon, adamw = optimizer.members
    assert (type(muon), type(adamw)) == (torch.optim.Muon, torch.optim.AdamW)
    assert muon.param_groups[0]["ns_steps"] == 6
    assert {p.ndim for p in muon.param_groups[0]["params"]} == {2}
    rest = {id(p) for p in adamw.param_groups[0]["params"]}
    outer = {name for name, p in task.model.named_parameters() if id(p) in rest and p.ndim == 2}
    assert outer == {"model.embed_tokens.weight", "lm_head.weight"}


def _without_lr(named: Named, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(named, lr=0.1)


def _part(named: Named, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(named[1:], lr=lr)


def _twice(named: Named, lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(named, lr=lr), torch.optim.SGD(named[:1], lr=lr)]


def _strangers(named: Named, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([*(p for _, p in named), nn.Parameter(torch.ones(2))], lr=lr)


def _raises(named: Named, lr: float) -> torch.optim.Optimizer:
    raise ZeroDivisionError("by design")


class _Unrated(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (_without_lr, r"expected an optimizer at the learning rate that make_it of mine\.py is given, got 0\.1 for 1"),
        (_part, r"expected an optimizer of all 4 parameters from make_it .* got none for 0\.weight"),
        (_twice, "expected each of the model's parameters once from make_it .* got 5 for 4"),
        (_strangers, "expected each of the model's parameters once .* got 5 for 4"),
        (_raises, r"expected make_it of mine\.py to run, got ZeroDivisionError: by design \(test_entrants\.py, line"),
        (
            lambda named, lr: None,
            r"expected a torch\.optim\.Optimizer .* got NoneType without param_groups",
        ),
        (lambda named, lr: torch.optim.LBFGS([p for _, p in named], lr=lr), r"got LBFGS\.step\(closure\)"),
        (lambda named, lr: _Unrated([p for _, p in named]), "expected a learning rate in every parameter group"),
        (lambda named: None, "expected make_it of mine.py to run, got TypeError"),
    ],
)
def test_what_cannot_be_replayed_is_refused(maker: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        made(maker)
    assert caught.value.hint


def test_state_that_does_not_come_back_is_refused() -> None:
    """Its steps depend on a counter that every run after the first would find where the one before left it."""
    with pytest.raises(InputError, match=r"load_state_dict\(\) of make_forgetful to carry all") as caught:
        replayed([make_forgetful])
    assert "each run of a replay starts from a copy" in caught.value.hint


def test_the_checkpoint_s_state_is_for_ours() -> None:
    with pytest.raises(InputError, match=r"expected optimizers of lite_probe\.optim to go on .* got make_sign"):
        replayed([make_sign], state="checkpoint")


@pytest.mark.parametrize(
    "name",
    [
        *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD"),
        "Muon",
    ],
)
def test_torchs_own_are_replayed(name: str) -> None:
    found = replayed([f"torch.{name}"], steps=2, seeds=1)
    (run,) = found.runs_of(f"torch.{name}")
    assert run.is_recorded
    assert run.update_norms.min() > 0.0


def test_one_that_takes_no_state_at_learning_rate_zero_is_told_apart() -> None:
    """ASGD's next step has the length that the rate of the last one gave it: none, after warming."""
    with pytest.raises(InputError, match=r"expected torch\.ASGD to move .* got a step of length 0") as caught:
        replayed(["torch.ASGD"])
    assert caught.value.hint == "use --state cold"
    found = replayed(["torch.ASGD"], state="cold", steps=2, seeds=1)
    assert found.runs_of("torch.ASGD")[0].update_norms.min() > 0.0


def test_a_step_that_raises_is_an_input_refused() -> None:
    with pytest.raises(InputError, match=r"expected a step of torch\.SparseAdam to run, got RuntimeError: .*dense"):
        replayed(["torch.SparseAdam"])


# -- who is meant ----------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert [name_of(one) for one in ("muon", "torch.AdamW", "a/mine.py:make_it", make_sign)] == [
        *("muon", "torch.AdamW", "make_it", "make_sign")
    ]
    with pytest.raises(UsageError, match="expected a function with a name to make an optimizer"):
        name_of(lambda named_parameters, lr: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="expected every optimizer once, got make_sign, make_sign"):
        entrants_of([make_sign, make_sign])
    with pytest.raises(UsageError, match=r"expected an optimizer of torch among .*AdamW.*, got 'torch.Adamant'"):
        entrants_of(["torch.Adamant"])
    with pytest.raises(UsageError, match=r"expected an optimizer among adamw, .* got 'adamant'") as caught:
        entrants_of(["adamant"])
    assert "FILE.py:FUNCTION" in caught.value.hint
    with pytest.raises(UsageError, match=r"expected optimizers among .* got none"):
        entrants_of([])


def test_another_optimizer_of_the_same_name_is_another_measurement(tmp_path: Path) -> None:
    task = with_training("mlp", 40)
    spectrum = spectrum_of(task)
    file = tmp_path / "mine.py"

    def planned(asked: Asked, **settings: Any) -> str:
        return plan_replay(
            task, [asked], spectrum=spectrum, lr=1e-3, hyperparameters={name_of(asked): settings}, **_ASKED
        ).fingerprint

    def maker_with(momentum: float) -> Any:
        def make_it(named_parameters: Named, lr: float) -> torch.optim.Optimizer:
            return torch.optim.SGD(named_parameters, lr=lr, momentum=momentum)

        return make_it

    code = "import torch\ndef make_it(named_parameters, lr):\n    return torch.optim.SGD(named_parameters, lr=lr)\n"
    file.write_text(code)
    first = planned(f"{file}:make_it")
    assert planned(f"{file}:make_it") == first
    file.write_text(code + "# otherwise\n")
    found = {first, planned(f"{file}:make_it"), planned(maker_with(0.5)), planned(maker_with(0.9))}
    found |= {planned("torch.SGD"), planned("torch.SGD", momentum=0.9), planned("sgd")}
    assert len(found) == 7


def test_gradients_are_what_they_were() -> None:
    """Nothing of a user's optimizer moves the task: parameters and their `grad` come back."""
    task = with_training("mlp", 40)
    before: list[Tensor] = [parameter.detach().clone() for parameter in task.model.parameters()]
    replay(task, [make_sign], spectrum=spectrum_of(task), lr=1e-3, **_ASKED)
    assert all(torch.equal(one, other) for one, other in zip(task.model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_settings_of_one_optimizer_stand_side_by_side_under_labels() -> None:
    names = ["adamw", "adamw@same", "adamw@slow"]
    found = replayed(names, hyperparameters={"adamw@slow": {"adamw_beta1": 0.99}})
    losses = {name: np.stack([run.losses for run in found.runs_of(name)]) for name in names}
    assert losses["adamw@same"].tobytes() == losses["adamw"].tobytes()
    assert not np.array_equal(losses["adamw@slow"], losses["adamw"])
    assert found.recipes["adamw@slow"].hyperparameters == {"adamw_beta1": 0.99}


@pytest.mark.parametrize("name", ["muon@", "muon@two words", "muon@<b>", "muon@a@b", "nobody@mild"])
def test_labels_are_letters_and_digits(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected letters and digits, joined by -, as a label|expected an optimizer"):
        entrants_of([name])


def test_muons_linear_theory_takes_float64() -> None:
    task = with_training("llama", 30, torch.float64)
    spectrum = spectrum_of(task, top=1)
    found = replay(task, ["muon"], spectrum=spectrum, lr=1e-3, steps=1, seeds=2, warm_batches=2, ramp=0)
    assert np.isfinite(found.theory["muon"].rates).all()
