"""Every command explains itself: help with an example, every option described, a section in the README."""

from importlib import import_module
from pathlib import Path

import click
import pytest

from lite_probe.commands.main import cli
from lite_probe.commands.options import COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def command(name: str) -> click.Command:
    found: click.Command = import_module(f"lite_probe.commands.{name}").command
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_parses(name: str) -> None:
    text = command(name).epilog or ""
    assert "Example:" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("lite-probe"))
    program, word, *arguments = line.split()
    assert (program, word) == ("lite-probe", name)
    with click.Context(cli) as parent:
        command(name).make_context(name, arguments, parent=parent)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described(name: str) -> None:
    for param in command(name).params:
        if isinstance(param, click.Option):
            assert param.help, f"{name} {param.opts}"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_has_a_section_on_every_command_and_its_options(name: str) -> None:
    assert f"\n### `lite-probe {name}" in README


def test_the_readme_names_every_option() -> None:
    for name in COMMANDS:
        for param in command(name).params:
            if isinstance(param, click.Option):
                longest = max(param.opts, key=len)
                assert f"`{longest}" in README, f"{longest} of {name}"
