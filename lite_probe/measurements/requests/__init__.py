"""What can be asked of a measurement: one frozen dataclass per kind, from whose fields its command's options are made.

No torch here.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from lite_probe.errors import UsageError
from lite_probe.results.kinds import KINDS

if TYPE_CHECKING:
    from lite_probe.measurements.base import Plan
    from lite_probe.task import Task

OnProgress = Callable[[int, int, str], None]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A field that can be asked for on a command line, too.

    Attributes:
        help: One sentence.
        flag: Its name there, where it is not that of the field.
        least: The smallest whole number.
        most: The largest.
        below: A number in (0, below).
        among: The words it may be.
        metavar: How help names its value.
        parse: From the text given, or from all of them where it is `multiple`, to the value.
        written: The default as text, where it is parsed.
        multiple: Whether it may be given more than once.
        is_size: Whether it is a number of bytes, given as 8GiB.
    """

    help: str
    flag: str = ""
    least: int | None = None
    most: int = 10**9
    below: float | None = None
    among: Sequence[str] = ()
    metavar: str = ""
    parse: Callable[[Any], Any] | None = None
    written: str | None = None
    multiple: bool = False
    is_size: bool = False

    def require(self, name: str, value: Any) -> None:
        """Refuse what is out of range.

        Raises:
            UsageError: It says what was expected.
        """
        if value is None:
            return
        if self.least is not None and not (_is_whole(value) and self.least <= value <= self.most):
            bound = f"at least {self.least}" if not _is_whole(value) or value < self.least else f"at most {self.most:,}"
            raise UsageError(f"expected {name} of {bound}, got {value!r}")
        if self.below is not None and not (isinstance(value, int | float) and 0.0 < value < self.below):
            raise UsageError(f"expected a {name} between 0 and {self.below:g}, got {value}")
        if self.among and value not in self.among:
            *most, last = self.among
            raise UsageError(f"expected the {name} {', '.join(most)} or {last}, got {value!r}")


def option(default: Any, help: str, **more: Any) -> Any:  # noqa: A002 - the word that Click has for it
    """Return a dataclass field that is an option of the command, too; arguments as of `Option`."""
    metadata = {"option": Option(help=help, **more)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def given(default: Any = None) -> Any:
    """Return a field that programs give and no command line can, and that is no part of `Request.config`."""
    return dataclasses.field(default=default, metadata={"given": True})


def options_of(record: type) -> dict[str, Option]:
    """Return the fields of a dataclass that are options: its own, then those that all requests have."""
    found = {field.name: field.metadata["option"] for field in fields(record) if "option" in field.metadata}
    shared = {name: found.pop(name) for name in ("memory", "seed") if name in found}
    return found | shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of one kind of measurement; checked when it is made.

    Args:
        seed: Of all random numbers.
        memory: Bytes that the process (on an accelerator: its allocations) should stay below.
    """

    kind: ClassVar[str]

    memory: int | None = option(None, "Stay below this much, such as 8GiB.", metavar="SIZE", is_size=True)
    seed: int = option(0, "Draws batches and probes.", least=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            UsageError: If one is.
        """
        for name, one in options_of(type(self)).items():
            one.require(name, getattr(self, name))
        self._check()

    def _check(self) -> None:
        """Refuse what contradicts itself."""

    @property
    def config(self) -> dict[str, Any]:
        """Everything that was asked and changes the numbers, as JSON values."""
        own = [field.name for field in fields(self) if field.name != "memory" and "given" not in field.metadata]
        return {name: getattr(self, name) for name in own}

    def train_batches(self, batches: int) -> int:
        """Return the training batches that it takes, where the loss is evaluated on so many others."""
        return 0

    def checked(self, task: "Task") -> Self:
        """Refuse what cannot be measured on a task, before any compute; return the request without open choices.

        Raises:
            UsageError, InputError: As the kind says.
        """
        checked: Self = KINDS[self.kind].load("plan").checked(task, self)
        return checked

    def plan(self, task: "Task", on_progress: OnProgress | None = None) -> "Plan[Any]":
        """Say what the measurement will do, and what it costs.

        Args:
            task: What is measured.
            on_progress: Told `(done, total, label)`.

        Raises:
            UsageError, InputError, NumericsError: As the kind says.
        """
        checked = self.checked(task)
        plan: Plan[Any] = KINDS[self.kind].load("plan").of(task, checked, on_progress)
        if task.ranks.count == 1:
            return plan
        task.ranks.require_same(plan.fingerprint)
        # It rests on time and memory, which differ from rank to rank: that of rank 0 is everyone's.
        shared = task.ranks.once(lambda: dataclasses.replace(plan, request=None))
        return dataclasses.replace(shared, request=plan.request)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def takes(request: type[Request]) -> Callable[[Function], Function]:
    """Return a decorator for a function that passes its keywords on to a request: `help` lists them."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        asked = []
        for field in fields(request):
            default = field.default_factory() if callable(field.default_factory) else field.default
            if field.name not in signature.parameters:
                asked.append(
                    inspect.Parameter(
                        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type
                    )
                )
        function.__signature__ = signature.replace(parameters=[*own, *asked])  # type: ignore[attr-defined]
        return function

    return decorate
