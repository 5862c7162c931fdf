"""The workflow in docs/ci.md: valid YAML whose commands and expressions lite-probe takes."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml  # type: ignore[import-untyped]

from lite_probe.commands.compare import command
from lite_probe.commands.main import cli
from lite_probe.results.comparison import LANDSCAPE, QUANTITIES
from lite_probe.results.thresholds import parse_threshold

PAGE = (Path(__file__).parents[1] / "docs" / "ci.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Return the arguments of every `lite-probe compare` in the page."""
    workflow = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])
    lines = [step["run"] for step in workflow["jobs"]["compare"]["steps"] if "run" in step]
    lines += re.findall(r"```\n(lite-probe .*?)```", PAGE, re.DOTALL)
    words = [shlex.split(line.replace("\\\n", " ")) for line in lines]
    return [line[2:] for line in words if line[:2] == ["lite-probe", "compare"]]


def test_the_workflow_calls_compare_with_options_that_there_are() -> None:
    found = commands()
    assert len(found) == 2
    for arguments in found:
        with click.Context(cli) as parent:
            context = command.make_context("compare", list(arguments), parent=parent)
        names = ("muon", "muon-lite", "make_mine")
        assert context.params["fail_if"]
        for text in context.params["fail_if"]:
            assert parse_threshold(text, names, ()).text == text


@pytest.mark.parametrize("name", [*QUANTITIES, *LANDSCAPE])
def test_the_page_names_every_quantity(name: str) -> None:
    assert f"`{name}`" in PAGE
