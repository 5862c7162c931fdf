"""The recommended settings as they are used: lines of `lite-probe.toml`, arguments of `make_optimizer`, a replay."""

import json
import shlex
from collections.abc import Mapping

from lite_probe.reports.sections.steps_settings import task_words
from lite_probe.results.tuning import Tuning


def config_lines(tuning: Tuning) -> str:
    """Return the lines of a `lite-probe.toml` under which a replay tests the recommendation beside the base."""
    settings = "".join(f"  {_toml_text(one)},\n" for one in _set_values(tuning))
    return f"optimizers = {_toml_text(_names(tuning))}\nlr = {_toml_text(_rates(tuning))}\nset = [\n{settings}]"


def optimizer_call(tuning: Tuning) -> str:
    """Return the Python call that makes the optimizer."""
    lines = [f"    lr={tuning.lr!r},", *(f"    {name}={value!r}," for name, value in plain_settings(tuning).items())]
    body = "\n".join([f"    {tuning.optimizer!r},", "    model.named_parameters(),", *lines])
    return f"optimizer = make_optimizer(\n{body}\n)"


def replay_command(tuning: Tuning) -> str:
    """Return the command line that replays the recommendation beside the base.

    Checkpoint and batches are those of the command that tuned.
    """
    words = ["lite-probe", "replay", *task_words(tuning.provenance.command, "tune")]
    words += ["--optimizers", _names(tuning), "--lr", _rates(tuning)]
    for one in _set_values(tuning):
        words += ["--set", one]
    return shlex.join(words)


def plain_settings(tuning: Tuning) -> dict[str, object]:
    """Return what `make_optimizer` takes, as plain values."""
    return {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in tuning.settings.items()
        if not isinstance(value, Mapping) or value
    }


def _names(tuning: Tuning) -> str:
    return f"{tuning.base},{tuning.optimizer}"


def _rates(tuning: Tuning) -> str:
    return ",".join(f"{name}={tuning.lr!r}" for name in (tuning.base, tuning.optimizer))


def _set_values(tuning: Tuning) -> list[str]:
    """Return what `--set` gets, as JSON where it is no number."""
    return [
        f"{tuning.optimizer}.{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in plain_settings(tuning).items()
    ]


def _toml_text(text: str) -> str:
    """Write a text as TOML: literally where it can be, else as JSON does, but for DEL."""
    if "'" not in text and text.isprintable():
        return f"'{text}'"
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
