"""The options that commands share, their types, and the configuration file that supplies their defaults."""

import re
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from lite_probe.commands.console import Terminal
from lite_probe.errors import UsageError
from lite_probe.files import read_toml
from lite_probe.measurements.requests import Option, options_of
from lite_probe.results.kinds import KINDS

CONFIG_NAME = "lite-probe.toml"
COMMANDS = ("inspect", "spectrum", "subspace", "steps", "replay", "tune", "compare", "report", "demo")

# Not for a file: what runs code, what says where to write, and how one call behaves.
_NOT_CONFIGURABLE = {
    *("trust_pickle", "task_file", "blocks_file", "out", "scratch"),
    *("config_file", "fresh", "as_json", "as_format", "only_table", "dry_run", "quiet", "verbose"),
}
_MOST_CONFIG_BYTES = 2**20
_PATH_OPTIONS = {"data_path", "relative_path", "tokenizer", "model_config"}
_NOT_PATHS = re.compile(r"builtin:|bytes$")
_TOML_EXAMPLE = "write lines such as top = 10"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Whole(click.ParamType[int]):
    """A whole number between bounds."""

    name = "integer"

    def __init__(self, minimum: int, maximum: int = 10**9) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or fail with what was expected."""
        text = str(value)
        # Python reads no number of thousands of digits.
        number = int(text) if re.fullmatch(r"-?[0-9]{1,20}", text) else None
        if number is None or number < self.minimum:
            self.fail(f"expected a whole number ≥ {self.minimum}, got {_short(text)}", param, ctx)
        if number > self.maximum:
            self.fail(f"expected a whole number ≤ {self.maximum:,}, got {number:,}", param, ctx)
        return number


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
            self.fail(f"expected a number above 0 and below {self.below:g}, got {_short(value)}", param, ctx)
        return number


class Among(click.Choice[str]):
    """One of a few words; the error names them."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Say what was expected and what came."""
        return f"expected one of {', '.join(self.choices)}, got {_short(value)}"


class MemorySize(click.ParamType[int]):
    """A number of bytes with its unit: 8GiB, 500MB."""

    name = "size"
    MOST: ClassVar = 2**53  # bytes; 8 PiB
    UNITS: ClassVar = {
        "b": 1,
        **{f"{prefix}b": 1000 ** (power + 1) for power, prefix in enumerate("kmgt")},
        **{f"{prefix}ib": 1024 ** (power + 1) for power, prefix in enumerate("kmgt")},
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes, or fail with what was expected."""
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", str(value).strip())
        factor = self.UNITS.get(match[2].lower()) if match else None
        size = float(match[1]) * factor if match and factor else 0.0
        if size < 1.0:
            self.fail(f"expected a size with its unit, such as 8GiB or 500MB, got {_short(value)}", param, ctx)
        if size > self.MOST:
            self.fail(f"expected a size of at most {self.MOST // 2**40:,}TiB, got {_short(value)}", param, ctx)
        return int(size)


def _short(value: object, most: int = 60) -> str:
    """Return what was given, cut where nobody would read on."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


class ConfiguredCommand(click.Command):
    """A command whose defaults may come from a `lite-probe.toml`; flags win.

    The file is the one named by `--config`, else the one in the working directory. One that lies beside a checkpoint
    came with it, perhaps from a stranger: it is not read, which is said.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the configuration among the arguments first, then parse them with its defaults."""
        given = self.make_parser(ctx).parse_args(args=list(args))[0]
        named = given.get("config_file")  # click's own sentinel where there is none
        path = Path(named) if isinstance(named, str) else Path(CONFIG_NAME) if _is_file(Path(CONFIG_NAME)) else None
        if path is not None:
            own = {param.name for param in self.params}
            ctx.default_map = {key: value for key, value in read_config(path).items() if key in own}
        rest = super().parse_args(ctx, args)
        several = given.get("checkpoints")
        checkpoints = several if isinstance(several, list | tuple) else [given.get("checkpoint")]
        ignored = _not_read([name for name in checkpoints if isinstance(name, str)])
        if ignored and not isinstance(named, str):
            ctx.ensure_object(Terminal).notes(ignored)
        return rest


def _not_read(checkpoints: Sequence[str]) -> list[str]:
    """Return what to say of configuration files that lie beside checkpoints, outside the working directory."""
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in map(Path, checkpoints) if _exists(path))
    beside = [folder / CONFIG_NAME for folder in folders if _is_file(folder / CONFIG_NAME)]
    return [
        f"{path}, beside the checkpoint, is not read: pass --config {shlex.quote(str(path))} if it is yours, or move "
        "it to the working directory"
        for path in beside
        if not path.parent.samefile(Path())
    ]


def read_config(path: Path) -> dict[str, Any]:
    """Read the defaults in a configuration file.

    Args:
        path: A TOML file of `option = value`, options named as on the command line.

    Returns:
        Parameter name → value; relative paths are taken from the file's folder.

    Raises:
        InputError: If the file cannot be read, is larger than 1 MiB, or is no TOML.
        UsageError: If it holds a key that no command knows or that belongs on the command line, or a value of a kind
            that no option takes.
    """
    settings = read_toml(path, "a configuration file", max_bytes=_MOST_CONFIG_BYTES, example=_TOML_EXAMPLE)
    known = _options()
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        option = known.get(key.replace("_", "-"))
        if option is None:
            allowed = sorted(name for name, option in known.items() if option.name not in _NOT_CONFIGURABLE)
            raise UsageError(f"expected the keys {', '.join(allowed)} in {path}, got {key!r}")
        name = str(option.name)
        if name in _NOT_CONFIGURABLE:
            raise UsageError(
                f"expected {key} on the command line only, got it in {path}",
                f"remove it there, and pass --{key.replace('_', '-')} where you mean it",
            )
        if name in defaults:
            raise UsageError(f"expected one value for {key} in {path}, got two", "- and _ are the same in a key")
        _require_plain(value, key, path, is_list=option.multiple)
        if name == "optimizers" and ":" in str(value):
            raise UsageError(
                f"expected optimizers of your own on the command line only, got {value!r} in {path}",
                "they are code: pass --optimizers FILE.py:FUNCTION where you mean it",
            )
        relative = name in _PATH_OPTIONS and isinstance(value, str) and not _NOT_PATHS.match(value)
        defaults[name] = str(path.parent / value) if relative else value
        if option.multiple and not isinstance(value, list):
            defaults[name] = [value]
    return defaults


def _require_plain(value: object, key: str, path: Path, *, is_list: bool) -> None:
    """Refuse a value that cannot stand on a command line: a date, a table, a list of one value's option.

    Raises:
        UsageError: If it is such a value.
    """
    for part in value if is_list and isinstance(value, list) else [value]:
        # TOML's own whole numbers have 64 bits; a text with a NUL is no argument of any process.
        is_plain = isinstance(part, bool | float) or (isinstance(part, int) and part.bit_length() < 64)
        if not (is_plain or (isinstance(part, str) and "\0" not in part)):
            raise UsageError(
                f"expected a text, number, true or false for {key} in {path}, got {_kind(part)}",
                "write it as on the command line",
            )


def _kind(value: object) -> str:
    """Name a TOML value's kind."""
    kinds = {list: "a list", dict: "a table", int: "a number of more than 64 bits", str: "a text with a NUL in it"}
    return kinds.get(type(value), "a date or time")


def command_names() -> list[str]:
    """Return all commands, in the order of a user's way through them; kinds that were added come last."""
    return [*COMMANDS, *(name for name, kind in KINDS.items() if kind.has_command and kind.word not in COMMANDS)]


def find_command(name: str) -> click.Command | None:
    """Import a command: a module of `lite_probe.commands`, or one made for a kind of measurement that has none."""
    if name in COMMANDS:
        command: click.Command = import_module(f"lite_probe.commands.{name}").command
        return command
    if name in command_names():
        made: click.Command = import_module("lite_probe.commands.measuring").of_kind(name).command()
        return made
    return None


def _options() -> dict[str, click.Option]:
    """Return option → parameter for every option of every command, named as on the command line."""
    known: dict[str, click.Option] = {}
    for name in command_names():
        command = find_command(name)
        for param in command.params if command is not None else ():
            if isinstance(param, click.Option):
                known[max(param.opts, key=len).removeprefix("--")] = param
    return known


def _is_file(path: Path) -> bool:
    """Whether it is a regular file; no for a path that may not be looked at."""
    try:
        return path.is_file()
    except OSError:
        return False


def _exists(path: Path) -> bool:
    """Whether there is something at a path; no for one that may not be looked at or is no path."""
    try:
        return path.exists() or path.parent.exists()
    except OSError:
        return False


def example(*arguments: str) -> str:
    """Return the end of a command's help: one or more example calls, each on its own line."""
    # \b keeps click from joining the lines.
    return "\b\nExample:\n" + "\n".join(f"  lite-probe {line}" for line in arguments)


def options_from(record: type, *names: str) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds the options that a dataclass's fields are, or some of them, in order."""
    defaults = {field.name: field for field in fields(record)}
    known = options_of(record)
    return bundle(*(_click_option(name, known[name], defaults[name]) for name in names or known))


def _click_option(name: str, one: Option, field: Field[Any]) -> Callable[[Decorated], Decorated]:
    """Return one field as an option of a command."""
    default = one.written if one.parse is not None else field.default
    more: dict[str, Any] = {"default": default, "show_default": default is not None}
    flag = one.flag or f"--{name.replace('_', '-')}"
    if default is False:
        more = {"is_flag": True}
    elif default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    elif one.multiple:
        more = {"multiple": True}
    elif one.is_size:
        more["type"] = MemorySize()
    elif one.least is not None:
        more["type"] = Whole(one.least, one.most)
    elif one.below is not None:
        more["type"] = Positive(one.below)
    elif one.among:
        more["type"] = Among(list(one.among))
    if one.metavar:
        more["metavar"] = one.metavar
    return click.option(flag, name, help=one.help, **more)


def taken_from(record: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the values that a command line gives a dataclass's fields, taken out of all of its options."""
    values = {field.name: options.pop(field.name) for field in fields(record) if field.name in options}
    for name, one in options_of(record).items():
        if one.parse is not None and name in values:
            values[name] = one.parse(values[name])
    return values


def bundle(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Join options into one decorator that keeps their order in the help."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _set_verbosity(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Terminal).verbosity = -1 if param.name == "quiet" else 1
        if param.name == "verbose":
            warnings.simplefilter("default")  # the group silences them, and puts everything back at the end


console_options = bundle(
    click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set_verbosity, help="Only errors."),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_set_verbosity,
        help="Details, warnings and tracebacks too.",
    ),
)
config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    expose_value=False,  # ConfiguredCommand has read it before the options are known
    help=f"Defaults for these options; by default {CONFIG_NAME} in the working directory.",
)
