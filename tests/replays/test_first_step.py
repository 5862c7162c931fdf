"""The first step from a checkpoint's optimizer is the one that the saving optimizer would have made.

Each test trains a model with the optimizer and the parameter groups of one framework, saves as that framework saves,
opens the checkpoint, and compares one step of both on the same gradient.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from lite_probe.checkpoints import Checkpoint, open_checkpoint
from lite_probe.checkpoints.models import quiet_transformers
from lite_probe.criteria import next_token_cross_entropy
from lite_probe.optim import make_optimizer
from lite_probe.replays import SavedOptimizer
from lite_probe.replays.entrants import Entrant
from lite_probe.replays.recipes import Prepared, prepare
from lite_probe.task import Task
from tests.checkpoints import writers

Parameters = Mapping[str, nn.Parameter]
Optimizers = Sequence[torch.optim.Optimizer]

LR = 1e-2
# Gradients of 1e-6 beside an ε of 1e-7: after four steps of β₂ = 0.999 it matters at once where ε is added.
SCALE, EPS = 1e-6, 1e-7
BETAS = (0.85, 0.999)
LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def feed(parameters: Parameters, step: int, scale: float = SCALE) -> None:
    """Set the gradients of a step; they depend on name and step alone."""
    for index, parameter in enumerate(parameters.values()):
        generator = torch.Generator().manual_seed(1000 * step + index)
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def train(optimizers: Optimizers, parameters: Parameters, steps: int = 3, scale: float = SCALE) -> None:
    for step in range(steps):
        feed(parameters, step, scale)
        for optimizer in optimizers:
            optimizer.step()


def restored(checkpoint: Checkpoint, name: str, **hyperparameters: Any) -> tuple[nn.Module, Prepared]:
    """Take the state over as a replay does."""
    model = checkpoint.build_model()
    task = Task(
        model=model,
        predict=lambda model, batch: model(input_ids=batch[:, :-1]).logits,
        criterion=next_token_cross_entropy,
        evaluation=[writers.tokens()],
    )
    saved = SavedOptimizer(states=checkpoint.optimizer_states(), step=checkpoint.step)
    prepared = prepare(
        task,
        {name: Entrant(name)},
        hyperparameters={name: hyperparameters},
        state="checkpoint",
        warm_batches=[],
        saved=saved,
    )[name]
    prepared.optimizer.load_state_dict(prepared.state)  # as every run begins
    for group in prepared.optimizer.param_groups:
        group["lr"] = LR
    return model, prepared


def both_step(theirs: Parameters, optimizers: Optimizers, model: nn.Module, prepared: Prepared) -> dict[str, Tensor]:
    """Make one step with both on the same gradient; return ours minus theirs."""
    feed(theirs, 3)
    ours = dict(model.named_parameters())
    for name, parameter in theirs.items():
        assert parameter.grad is not None
        stored_transposed = ours[name].shape != parameter.shape or name.endswith(LINEAR)
        ours[name].grad = parameter.grad.t().contiguous() if stored_transposed else parameter.grad.clone()
    for optimizer in (*optimizers, prepared.optimizer):
        optimizer.step()
    return {
        name: (ours[name].t() if name.endswith(LINEAR) else ours[name]).detach() - parameter.detach()
        for name, parameter in theirs.items()
    }


# The weights are rounded three times (decay, step, their sum), each by half a unit in the last place, and steps of 1e-2
# some twenty times: four units of the largest weight leave room for both.
def assert_rounding(differences: Mapping[str, Tensor], theirs: Parameters) -> None:
    for name, difference in differences.items():
        bound = 4 * torch.finfo(torch.float32).eps * float(theirs[name].detach().abs().max())
        assert float(difference.abs().max()) <= bound, name


def adamw(groups: Any, *, weight_decay: float = 0.01) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, weight_decay=weight_decay)


def decayed_and_not(model: nn.Module) -> list[dict[str, Any]]:
    """Divide a model as Trainer does: biases and norms come last, and do not decay."""
    named = list(model.named_parameters())
    free = [p for name, p in named if "bias" in name or "norm" in name or ".ln_" in name]
    rest = [p for _, p in named if not any(p is q for q in free)]
    return [{"params": rest, "weight_decay": 0.3}, {"params": free, "weight_decay": 0.0}]


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


# -- AdamW in each framework's files -----------------------------------------------------------------------------------

Saved = tuple[nn.Module, torch.optim.Optimizer, Path]


def save_trainer(folder: Path, architecture: str = "llama") -> Saved:
    model = writers.make_model(architecture)
    optimizer = adamw(decayed_and_not(model))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    train([optimizer], named(model))
    with quiet_transformers():
        model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    return model, optimizer, folder


def save_trainer_gpt2(folder: Path) -> Saved:
    return save_trainer(folder, "gpt2")


def save_torch(folder: Path) -> Saved:
    model = writers.make_model("llama")
    optimizer = adamw(model.parameters())
    train([optimizer], named(model))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}, folder / "step.pt")
    return model, optimizer, folder / "step.pt"


def save_capturable(folder: Path) -> Saved:
    """With a learning rate that is a tensor, and betas in a list."""
    model = writers.make_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(LR), betas=BETAS, eps=EPS, foreach=False)
    train([optimizer], named(model))
    state = optimizer.state_dict()
    groups = [{**group, "betas": list(group["betas"])} for group in state["param_groups"]]
    torch.save({"model": model.state_dict(), "optimizer": {**state, "param_groups": groups}}, folder / "step.pt")
    return model, optimizer, folder / "step.pt"


def save_lightning(folder: Path) -> Saved:
    model = writers.make_model("llama")
    optimizer = adamw(decayed_and_not(model))
    train([optimizer], named(model))
    saved = {
        "global_step": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"net.{name}": value for name, value in model.state_dict().items()},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
    }
    torch.save(saved, folder / "last.ckpt")
    return model, optimizer, folder / "last.ckpt"


def save_lite(folder: Path) -> Saved:
    model = writers.make_model("llama")
    optimizer = adamw(model.parameters(), weight_decay=0.0)
    train([optimizer], named(model))
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, folder / "pytorch_model.bin")
    config = {"lr": LR, "model": writers.CONFIGS["llama"]}
    torch.save({"optimizer": optimizer.state_dict(), "update_step": 3, "config": config}, folder / "optimizer.pt")
    (folder / "training_state.json").write_text(json.dumps({"update_step": 3}))
    return model, optimizer, folder


def save_distributed(folder: Path) -> Saved:
    model = writers.make_model("llama")
    optimizer = adamw(decayed_and_not(model))
    train([optimizer], named(model))
    with warnings.catch_warnings():  # torch warns that it saves from one process
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, checkpoint_id=folder, no_dist=True)
    return model, optimizer, folder


SAVERS: list[Callable[[Path], Saved]] = [
    save_trainer,
    save_trainer_gpt2,
    save_torch,
    save_capturable,
    save_lightning,
    save_lite,
    save_distributed,
]


@pytest.mark.parametrize("save", SAVERS)
def test_the_first_step_of_adamw_is_the_saving_optimizers(tmp_path: Path, save: Callable[[Path], Saved]) -> None:
    theirs, optimizer, path = save(tmp_path)
    config = None if path.is_dir() and save is not save_distributed else writers.CONFIGS["llama"]
    model, prepared = restored(open_checkpoint(path, model_config=config), "adamw")
    differences = both_step(named(theirs), [optimizer], model, prepared) if save is not save_trainer_gpt2 else None
    if differences is None:  # GPT-2's own weights are stored as ours are
        feed(named(theirs), 3)
        for name, parameter in theirs.named_parameters():
            model.get_parameter(name).grad = parameter.grad
        optimizer.step()
        prepared.optimizer.step()
        differences = {name: (model.get_parameter(name) - p).detach() for name, p in theirs.named_parameters()}
    assert_rounding(differences, named(theirs))
    assert any(note.code == "optimizer-hyperparameters" for note in prepared.notes)


@pytest.mark.parametrize("bias", [False, True])
def test_the_first_step_of_nanogpts_adamw_is_the_saving_optimizers(tmp_path: Path, bias: bool) -> None:
    path = tmp_path / "ckpt.pt"
    weights = writers.write_nanogpt(path, bias=bias, num_layers=2)
    theirs = writers.nanogpt_parameters(weights)
    decayed = [p for p in theirs.values() if p.dim() >= 2]
    others = [p for p in theirs.values() if p.dim() < 2]
    optimizer = adamw([{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}])
    train([optimizer], theirs)
    saved = torch.load(path)
    trained = {f"_orig_mod.{name}": parameter.detach() for name, parameter in theirs.items()}
    trained["_orig_mod.lm_head.weight"] = trained["_orig_mod.transformer.wte.weight"]
    torch.save({**saved, "model": trained, "optimizer": optimizer.state_dict()}, path)
    model, prepared = restored(open_checkpoint(path), "adamw")
    assert_rounding(both_step(theirs, [optimizer], model, prepared), theirs)
    biases = {p for group in prepared.optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert biases == {p for p in model.parameters() if p.dim() < 2}


# -- Muon --------------------------------------------------------------------------------------------------------------


def save_muon(folder: Path, **options: Any) -> tuple[nn.Module, Optimizers, Path]:
    """Save torch's Muon of the hidden matrices beside an AdamW of the rest."""
    model = writers.make_model("llama")
    hidden = [p for name, p in model.named_parameters() if "_proj" in name]
    rest = [p for name, p in model.named_parameters() if "_proj" not in name]
    muon = torch.optim.Muon(hidden, lr=LR, **{"momentum": 0.9, "weight_decay": 0.2, **options})
    both = [muon, adamw(rest, weight_decay=0.05)]
    train(both, named(model), scale=1.0)
    saved = {"model": model.state_dict(), "optimizers": [one.state_dict() for one in both], "step": 3}
    torch.save(saved, folder / "step.pt")
    return model, both, folder / "step.pt"


def newton_schulz(grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float) -> Tensor:
    """torch's iteration in the precision of the gradient, in place of bfloat16."""
    a, b, c = ns_coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.size(0) > grad.size(1) else x


@pytest.mark.parametrize("rule", [None, "match_rms_adamw"])
def test_the_first_step_of_torchs_muon_beside_adamw(
    tmp_path: Path, rule: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", newton_schulz)
    theirs, optimizers, path = save_muon(tmp_path, adjust_lr_fn=rule, ns_steps=4)
    model, prepared = restored(open_checkpoint(path, model_config=writers.CONFIGS["llama"]), "muon")
    differences = both_step(named(theirs), optimizers, model, prepared)
    vectors = {name: one for name, one in differences.items() if "_proj" not in name}
    assert_rounding(vectors, named(theirs))
    for name in set(differences) - set(vectors):
        # Four steps of the quintic enlarge rounding by up to 3.4445 each: 141·2⁻²⁴ of a step, a hundredth of a weight.
        bound = 4 * torch.finfo(torch.float32).eps * float(theirs.get_parameter(name).detach().abs().max())
        assert float(differences[name].abs().max()) <= bound + 141 * 2.0**-22 * 5 * LR, name


def test_the_first_step_of_torchs_muon_to_the_rounding_of_bfloat16(tmp_path: Path) -> None:
    """Ours is as far from torch's as torch's own bfloat16 is from exact arithmetic."""
    theirs, optimizers, path = save_muon(tmp_path)
    model, prepared = restored(open_checkpoint(path, model_config=writers.CONFIGS["llama"]), "muon")
    before = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    moments = {
        name: optimizers[0].state[p]["momentum_buffer"].clone() for name, p in named(theirs).items() if "_proj" in name
    }
    differences = both_step(named(theirs), optimizers, model, prepared)
    for name, moment in moments.items():
        parameter = theirs.get_parameter(name)
        assert parameter.grad is not None
        average = moment.lerp(parameter.grad, 0.1).double()
        exact = newton_schulz(parameter.grad.double().lerp(average, 0.9), (3.4445, -4.775, 2.0315), 5, 1e-7)
        scale = LR * math.sqrt(max(1, parameter.size(0) / parameter.size(1)))
        step = before[name].double() * (1 - LR * 0.2) - parameter.detach().double()
        rounding = float((step - scale * exact).norm())
        assert 0.0 < rounding < 0.03 * float(step.norm())
        # The rounding of float32 is 2⁻¹⁶ of bfloat16's.
        assert float(differences[name].norm()) == pytest.approx(rounding, rel=1e-2), name
    messages = [note.message for note in prepared.notes if note.code == "optimizer-departures"]
    assert messages == [
        "What was saved was not stepped quite as muon steps: msign was rounded to bfloat16, here it is not."
    ]


def test_what_torchs_muon_does_otherwise_is_said(tmp_path: Path) -> None:
    _, _, path = save_muon(tmp_path, nesterov=False, eps=1e-3, ns_coefficients=(2.0, -1.5, 0.5))
    _, prepared = restored(open_checkpoint(path, model_config=writers.CONFIGS["llama"]), "muon")
    (message,) = [note.message for note in prepared.notes if note.code == "optimizer-departures"]
    for part in (
        "Muon's momentum was not Nesterov's, here it is",
        "msign's coefficients were others",
        "msign divided by a norm of at least 0.001, here by the norm plus 1e-07",
    ):
        assert part in message


def test_lite_keeps_the_msign_that_its_projector_is_made_of(tmp_path: Path) -> None:
    _, _, path = save_muon(tmp_path)
    _, prepared = restored(open_checkpoint(path, model_config=writers.CONFIGS["llama"]), "muon-lite")
    hidden = next(group for group in prepared.optimizer.param_groups if group["block"] == "ffn")
    assert (hidden["ns_coefficients"], hidden["ns_steps"], hidden["msign_dtype"]) == ("polar-express", 6, None)
    assert (hidden["momentum"], hidden["weight_decay"], hidden["lr_scale"]) == (0.9, 0.2, "original")
    (message,) = [note.message for note in prepared.notes if note.code == "optimizer-hyperparameters-kept"]
    assert "ns_steps 6, saved 5; ns_coefficients polar-express, saved quintic" in message


# -- ours --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("adamw", {"adamw_beta2": 0.9, "eps": 1e-5, "eps_after_correction": True, "weight_decay": 0.4}),
        ("muon", {"momentum": 0.8, "ns_coefficients": "quintic", "ns_steps": 5, "lr_scale": "original"}),
        ("muon-lite", {"momentum": 0.8, "beta1": -0.25, "flat_lr_ratio": {"ffn": 3.0}, "sharp_ratio": 0.2}),
        ("soap", {"betas": (0.9, 0.97), "shampoo_beta": 0.8, "max_precond_dim": 10, "precondition_frequency": 3}),
        ("sgd", {"momentum": 0.7, "weight_decay": 0.2}),
    ],
)
def test_our_own_hyperparameters_go_on_bitwise(tmp_path: Path, name: str, given: dict[str, Any]) -> None:
    theirs = writers.make_model("llama")
    optimizer = make_optimizer(name, theirs.named_parameters(), lr=LR, **given)
    train([optimizer], named(theirs))
    with quiet_transformers():
        theirs.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    model, prepared = restored(open_checkpoint(tmp_path), name)
    differences = both_step(named(theirs), [optimizer], model, prepared)
    assert all(not difference.any() for difference in differences.values())


def test_what_the_user_gave_stays_and_the_difference_is_said(tmp_path: Path) -> None:
    _, _, path = save_trainer(tmp_path)
    _, prepared = restored(open_checkpoint(path), "adamw", adamw_beta2=0.9, weight_decay=0.1)
    for group in prepared.optimizer.param_groups:
        assert (group["adamw_beta1"], group["adamw_beta2"], group["weight_decay"]) == (0.85, 0.9, 0.1)
    messages = {note.code: note.message for note in prepared.notes}
    assert messages["optimizer-hyperparameters-kept"] == (
        "adamw has hyperparameters of its own: adamw_beta2 0.9, saved 0.999; weight_decay 0.1, saved 0.3; "
        "weight_decay 0.1, saved 0."
    )
