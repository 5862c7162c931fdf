"""What can be asked of optimizers at a checkpoint, and how a command line says it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lite_probe.errors import UsageError
from lite_probe.measurements.requests import Request, given, option

if TYPE_CHECKING:
    from lite_probe.replays.recipes import SavedOptimizer

Asked = str | Callable[..., Any]  # "muon", "torch.AdamW", "mine.py:make_mine", or a function
LearningRate = float | str  # a number, "sweep" or "checkpoint"

_RATE_WORDS = ("sweep", "checkpoint")


def parse_optimizers(text: str) -> tuple[str, ...]:
    """Read what `--optimizers` says: names between commas."""
    return tuple(one.strip() for one in text.split(",") if one.strip())


def parse_learning_rates(text: str) -> LearningRate | dict[str, LearningRate]:
    """Read what `--lr` says.

    Raises:
        UsageError: If it is neither a number, sweep or checkpoint, nor NAME=RATE,… of such, each name once.
    """
    if "=" not in text:
        return _rate(text, text)
    rates: dict[str, LearningRate] = {}
    for part in text.split(","):
        name, _, rate = part.partition("=")
        if name.strip() in rates:
            raise UsageError(f"expected one rate for {name.strip()} in --lr, got two: {text!r}")
        rates[name.strip()] = _rate(rate, text)
    return rates


def _rate(text: str, whole: str) -> LearningRate:
    word = text.strip()
    if word in _RATE_WORDS:
        return word
    try:
        return float(word)
    except ValueError:
        raise UsageError(
            f"expected --lr with a number, sweep or checkpoint, or NAME=RATE,… of these, got {whole!r}",
            "such as --lr 0.002, or --lr muon=0.002,soap=sweep",
        ) from None


def parse_settings(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read what each `--set` says: optimizer → hyperparameter → value, as JSON where it is some.

    Raises:
        UsageError: If one is not NAME.KEY=VALUE.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in settings:
        target, equals, value = text.partition("=")
        name, dot, key = target.strip().rpartition(".")
        if not (equals and dot and name and key):
            raise UsageError(f"expected --set NAME.KEY=VALUE, got {text!r}", "such as --set muon-lite.flat_lr_ratio=3")
        try:
            found.setdefault(name, {})[key] = json.loads(value)
        except RecursionError:
            raise UsageError(f"expected a value in --set {target}, got one nested too deeply") from None
        except ValueError:
            found.setdefault(name, {})[key] = value.strip()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizersRequest(Request):
    """Some optimizers, each with its learning rate and its state at θ₀.

    Args:
        saved: The optimizer states that the checkpoint brought along.
        optimizers: Names of `lite_probe.optim.OPTIMIZERS`, a label behind them or none ("muon-lite@mild"), torch's as
            "torch.AdamW", functions of `(named_parameters, lr)` or their "FILE.py:FUNCTION". Saved states and the
            linear theory are of ours only.
        lr: A learning rate, "sweep" or "checkpoint", for all or by name; who is not named is swept.
        state: At θ₀: "checkpoint" takes over the saved one, "warm" feeds `warm_batches` at fixed θ₀, "cold" starts
            at zero, "auto" is "checkpoint" where it is all that optimizer's, else "warm".
        warm_batches: W.
        hyperparameters: By optimizer, where they are not the defaults.
    """

    saved: "SavedOptimizer | None" = given()
    optimizers: Asked | Sequence[Asked] = option(
        ("muon", "muon-lite", "soap", "soap-lite"),
        "Ours, as muon or muon-lite (an unknown name lists all), and with a label, as muon-lite@mild, for another "
        "setting of one; torch's own as torch.AdamW or torch.Muon; one of yours as FILE.py:FUNCTION, a function of the "
        "named parameters and lr.",
        metavar="NAME,…",
        written="muon,muon-lite,soap,soap-lite",
        parse=parse_optimizers,
    )
    lr: LearningRate | Mapping[str, LearningRate] = option(
        "sweep",
        "A number, sweep, or checkpoint (the peak of its schedule, where saved); or NAME=RATE,… for some, the rest "
        "being swept.",
        metavar="RATE",
        written="sweep",
        parse=parse_learning_rates,
    )
    state: Literal["auto", "checkpoint", "warm", "cold"] = option(
        "auto",
        "What optimizers start from: the checkpoint's state with its hyperparameters but for those of --set, one "
        "warmed at fixed weights, or none.",
        among=("auto", "checkpoint", "warm", "cold"),
    )
    warm_batches: int = option(50, "Training batches that states are warmed on.", least=1)
    hyperparameters: Mapping[str, Mapping[str, Any]] = option(
        {},
        "A hyperparameter of one optimizer, such as muon-lite.flat_lr_ratio=3; may be repeated.",
        flag="--set",
        metavar="NAME.KEY=VALUE",
        multiple=True,
        parse=parse_settings,
    )

    def _check(self) -> None:
        from lite_probe.optim import OPTIMIZERS  # torch

        if not self.names:
            raise UsageError(f"expected optimizers among {', '.join(OPTIMIZERS)}, got none")
        if len({*self.names}) < len(self.names):
            raise UsageError(f"expected every optimizer once, got {', '.join(self.names)}")
        if "checkpoint" in self.rates.values() and self.state in ("warm", "cold"):
            raise UsageError(
                f"expected --state auto or checkpoint with --lr checkpoint, got {self.state}",
                "the checkpoint's rate belongs to its optimizer's state: take both, or give a rate",
            )

    @property
    def asked(self) -> tuple[Asked, ...]:
        """The optimizers, in order."""
        if isinstance(self.optimizers, str) or callable(self.optimizers):
            return (self.optimizers,)
        return tuple(self.optimizers)

    @property
    def names(self) -> tuple[str, ...]:
        """What tables call them."""
        from lite_probe.replays.entrants import name_of  # torch

        return tuple(name_of(one) for one in self.asked)

    @property
    def rates(self) -> dict[str, LearningRate]:
        """What was said of each one's learning rate."""
        from lite_probe.replays.recipes import learning_rates

        return learning_rates(self.names, self.lr)
