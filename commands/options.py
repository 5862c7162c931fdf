"""The options that commands share, their types, and the configuration file that supplies their defaults."""

import re
import tomllib
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from lite_probe.commands.console import Terminal
from lite_probe.errors import InputError, UsageError

CONFIG_NAME = "lite-probe.toml"
COMMANDS = ("inspect", "spectrum", "subspace", "replay", "report", "demo")

# Not worth a default in a file: what is measured is named by hand, and these say how one call behaves.
_NOT_CONFIGURABLE = {"checkpoint", "runs", "config_file", "fresh", "as_json", "dry_run", "quiet", "verbose", "scratch"}
_PATH_OPTIONS = {"data_path", "tokenizer", "model_config", "task_file", "out"}
_NOT_PATHS = re.compile(r"builtin:|bytes$")

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Whole(click.ParamType[int]):
    """A whole number with a lower bound."""

    name = "integer"

    def __init__(self, minimum: int) -> None:
        self.minimum = minimum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or fail with what was expected."""
        text = str(value)
        if not re.fullmatch(r"-?[0-9]+", text) or int(text) < self.minimum:
            self.fail(f"expected a whole number ≥ {self.minimum}, got {text}", param, ctx)
        return int(text)


class Positive(click.ParamType[float]):
    """A number in (0, `below`)."""

    name = "number"

    def __init__(self, below: float) -> None:
        self.below = below

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail with what was expected."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = 0.0
        if not 0.0 < number < self.below:
            self.fail(f"expected a number above 0 and below {self.below:g}, got {value}", param, ctx)
        return number


class Among(click.Choice[str]):
    """One of a few words; the error names them."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Say what was expected and what came."""
        return f"expected one of {', '.join(self.choices)}, got {value}"


class MemorySize(click.ParamType[int]):
    """A number of bytes with its unit: 8GiB, 500MB."""

    name = "size"
    UNITS: ClassVar = {
        "b": 1,
        **{f"{prefix}b": 1000 ** (power + 1) for power, prefix in enumerate("kmgt")},
        **{f"{prefix}ib": 1024 ** (power + 1) for power, prefix in enumerate("kmgt")},
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes, or fail with what was expected."""
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", str(value).strip())
        factor = self.UNITS.get(match[2].lower()) if match else None
        size = int(float(match[1]) * factor) if match and factor else 0
        if size <= 0:
            self.fail(f"expected a size with its unit, such as 8GiB or 500MB, got {value}", param, ctx)
        return size


class ConfiguredCommand(click.Command):
    """A command whose defaults may come from a `lite-probe.toml`; flags win.

    The file is the one named by `--config`, else the one beside the checkpoint (in it, where it is a folder), the
    first of several.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the configuration among the arguments first, then parse them with its defaults."""
        given = self.make_parser(ctx).parse_args(args=list(args))[0]
        several = given.get("checkpoints")  # click's own sentinel where there is none
        first = several[0] if isinstance(several, list | tuple) and several else given.get("checkpoint")
        path = _config_path(given.get("config_file"), first)
        if path is not None:
            own = {param.name for param in self.params}
            ctx.default_map = {key: value for key, value in read_config(path).items() if key in own}
        return super().parse_args(ctx, args)


def _config_path(named: object, checkpoint: object) -> Path | None:
    if isinstance(named, str):
        return Path(named)
    if not isinstance(checkpoint, str):
        return None
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
    beside = folder / CONFIG_NAME
    return beside if beside.is_file() else None


def read_config(path: Path) -> dict[str, Any]:
    """Read the defaults in a configuration file.

    Args:
        path: A TOML file of `option = value`, options named as on the command line.

    Returns:
        Parameter name → value; relative paths are taken from the file's folder.

    Raises:
        InputError: If the file cannot be read or is no TOML.
        UsageError: If it holds a key that no command knows.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"expected a configuration file at {path}, got {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected TOML in {path}, got {error}", "write lines such as top = 10") from error
    known = _configurable()
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        name = known.get(key.replace("_", "-"))
        if name is None:
            raise UsageError(f"expected the keys {', '.join(sorted(known))} in {path}, got {key!r}")
        relative = name in _PATH_OPTIONS and isinstance(value, str) and not _NOT_PATHS.match(value)
        defaults[name] = str(path.parent / value) if relative else value
    return defaults


def _configurable() -> dict[str, str]:
    """Return option → parameter name for every option of every command."""
    known: dict[str, str] = {}
    for command in COMMANDS:
        for param in import_module(f"lite_probe.commands.{command}").command.params:
            if isinstance(param, click.Option) and param.name not in _NOT_CONFIGURABLE:
                longest = max(param.opts, key=len)
                known[longest.removeprefix("--")] = str(param.name)
    return known


def example(*arguments: str) -> str:
    """Return the end of a command's help: one or more example calls, each on its own line."""
    # \b keeps click from joining the lines.
    return "\b\nExample:\n" + "\n".join(f"  lite-probe {line}" for line in arguments)


def _bundle(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Join options into one decorator that keeps their order in the help."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


checkpoint_options = _bundle(
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Unpickle names outside the allow-list: this runs code from the file.",
    ),
    click.option("--model-config", metavar="FILE", help="A config.json, for a checkpoint without one."),
)
task_option = click.option(
    "--task", "task_file", metavar="FILE.py:FUNCTION", help="A function that returns a Task, in place of CKPT."
)
memory_option = click.option("--memory", type=MemorySize(), metavar="SIZE", help="Stay below this much, such as 8GiB.")
scratch_option = click.option(
    "--scratch", metavar="DIR", help="For working files, on a disk with room; by default the run directory."
)
out_option = click.option("--out", metavar="DIR", help="The run directory; by default probe/NAME.")
fresh_option = click.option("--fresh", is_flag=True, help="Measure again what is already there.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would be measured and what that costs, and stop."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
seed_option = click.option("--seed", type=Whole(0), default=0, show_default=True, help="Draws batches and probes.")


def _set_verbosity(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Terminal).verbosity = -1 if param.name == "quiet" else 1
        if param.name == "verbose":
            warnings.simplefilter("default")  # the group silences them, and puts everything back at the end


console_options = _bundle(
    click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set_verbosity, help="Only errors."),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_verbosity,
        help="Warnings and tracebacks too.",
    ),
)
config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    expose_value=False,  # ConfiguredCommand has read it before the options are known
    help=f"Defaults for these options; by default {CONFIG_NAME} beside CKPT.",
)
compute_options = _bundle(
    click.option(
        "--device",
        type=Among(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute; auto takes CUDA where there is one, and leaves a --task where it is.",
    ),
    click.option(
        "--precision",
        type=Among(["float32", "float64"]),
        help="Of parameters and products; by default float32, and a --task keeps its own.",
    ),
    click.option("--threads", type=Whole(1), metavar="N", help="CPU threads; by default torch's own choice."),
)
batch_options = _bundle(
    click.option(
        "--data",
        "data_path",
        metavar="PATH",
        help="Text, .jsonl, .jsonl.zst, parquet, .bin or .npy tokens, a folder of these, or builtin:python-docs.",
    ),
    click.option("--tokenizer", metavar="PATH", help="By default the checkpoint's own; `bytes` for bytes."),
    click.option("--text-field", default="text", show_default=True, help="Of .jsonl and parquet rows."),
    click.option("--seq-len", type=Whole(1), help="Tokens per sample; by default 256, or what model and text allow."),
    click.option("--batch-size", type=Whole(1), default=8, show_default=True, help="Samples per batch."),
    click.option("--batches", type=Whole(1), default=4, show_default=True, help="Batches to measure on."),
)
