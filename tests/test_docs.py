"""The front page and docs/: every command explains itself, and what the pages quote, link to and run is there."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

import lite_probe
from lite_probe import errors
from lite_probe.commands.main import cli
from lite_probe.commands.options import COMMANDS, read_config
from lite_probe.results.replay import Replay
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.steps import Steps
from lite_probe.results.store import save
from lite_probe.results.subspace import SubspaceMeasurement
from lite_probe.results.tuning import Tuning
from lite_probe.training import build_byte_llama
from tests.commands.running import run
from tests.reports.fixtures import make_spectrum

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
RESULTS = {  # by the names that pages give to variables
    "spectrum": Spectrum,
    "subspace": SubspaceMeasurement,
    "replay": Replay,
    "steps": Steps,
    "tuning": Tuning,
}
DOTTED = re.compile(rf"(lp|{'|'.join(RESULTS)})(\.\w+)+")
MEASUREMENTS = {"spectrum", "subspace", "steps", "replay", "tune", "compare"}


def command(name: str) -> click.Command:
    found: click.Command = import_module(f"lite_probe.commands.{name}").command
    return found


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page that are of one of these languages."""
    return [text for language, text in FENCE.findall(PAGES[page]) if language in languages]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", PAGES[page])


def section(page: str, title: str) -> str:
    """The text under one heading of a page, up to the next."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGES[page], re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page} has no section {title}"
    return found[1]


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every line of a block that runs lite-probe."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(r"(?:\$ )?(?:torchrun .*-m lite_probe|lite-probe) ([a-z].*)", line)
        if found is not None:
            yield [word for word in shlex.split(found[1], comments=True) if word != "…"]


QUOTED = [
    pytest.param(words, id=f"{page}: {' '.join(words)[:40]}")
    for page in PAGES
    for text in blocks(page, "", "bash")
    for words in command_lines(text)
]
PYTHON = [
    pytest.param(page, text, id=f"{page}, block {number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "python"))
]


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
def test_every_command_has_a_page_with_an_example_and_all_its_options(name: str) -> None:
    (page,) = [page for page, text in PAGES.items() if re.match(rf"# `lite-probe {name}\b", text)]
    assert any(words[0] == name for text in blocks(page, "") for words in command_lines(text))
    described = section(page, "Options") + section("docs/options.md", "Every command")
    if name in MEASUREMENTS:
        described += section("docs/options.md", "Every measurement")
    documented = set(re.findall(r"`(--[a-z-]+)`", described))
    options = {max(param.opts, key=len) for param in command(name).params if isinstance(param, click.Option)}
    assert options <= documented
    own = set(
        re.findall(r"`(--[a-z-]+)`", "".join(re.findall(r"^\| (.*?) \|", section(page, "Options"), re.MULTILINE)))
    )
    negative = {one for param in command(name).params for one in param.secondary_opts}
    assert own <= options | negative


@pytest.mark.parametrize("words", QUOTED)
def test_a_command_line_that_is_quoted_parses(words: list[str]) -> None:
    with click.Context(cli) as parent:
        command(words[0]).make_context(words[0], words[1:], parent=parent)


def test_command_lines_are_quoted() -> None:
    assert len(QUOTED) >= len(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), target


def test_the_index_links_every_page() -> None:
    linked = {target.partition("#")[0] for target in LINK.findall(PAGES["docs/README.md"])}
    assert {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"} <= linked


def test_every_example_is_named_and_every_named_one_is_there() -> None:
    named = set(re.findall(r"examples/(\w+\.py)", "".join(PAGES.values())))
    assert named == set(EXAMPLES)


def test_the_front_page_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 170


def test_the_figures_on_the_front_page_are_those_of_other_pages() -> None:
    result = section("README.md", "A result")
    figures = re.findall(r"[−\d.]+ ± [\d.]+|[\d.]+%", result)
    assert len(figures) >= 13
    for figure in figures:
        assert figure.replace(" ± ", "±") in PAGES["docs/tune.md"], figure
    (verdict,) = re.findall(r"^> .*(?:\n> .*)*", result, re.MULTILINE)
    assert " ".join(verdict.removeprefix("> ").split("\n> ")) in PAGES["docs/tune.md"]
    for figure in ("190 s", "544", "615", "1,274 s"):
        assert figure in section("README.md", "How fast"), figure
        assert figure in section("docs/speed.md", "Beside its peers"), figure


def quoted_output(page: str) -> list[str]:
    """The lines that the first quoted command of a page prints."""
    text = next(text for text in blocks(page, "") if text.startswith("$ "))
    return re.sub(r"\A(?:.*\\\n)*.*\n", "", text).splitlines()


def test_inspect_prints_what_its_page_quotes(tmp_path: Path) -> None:
    """All of it that does not hang on training or on the processor."""
    model = build_byte_llama(hidden=128, layers=4, heads=4, seq_len=128, seed=0)
    model.save_pretrained(tmp_path / "step-00300")  # type: ignore[operator]
    done = run("inspect", tmp_path / "step-00300")
    trained = re.compile(
        r" · step \S+|, fingerprint \w+|^optimizer state: .*|(?<=tokens, ).* on this CPU", re.MULTILINE
    )
    expected = trained.sub("", "\n".join(quoted_output("docs/inspect.md")))
    assert trained.sub("", done.stderr).split() == expected.split()


def test_report_prints_what_its_page_quotes(tmp_path: Path) -> None:
    folders = [save(make_spectrum(step=step), tmp_path / f"step-{step}").parent for step in (60, 300)]
    done = run("report", *folders, "--out", tmp_path / "both.html")
    said, page = quoted_output("docs/report.md")
    assert done.stderr.splitlines() == [said]
    assert Path(done.stdout.strip()).name == Path(page).name


def test_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.LiteProbeError)}
    rows = re.findall(r"^\| ([\d, ]+) \|", section("docs/options.md", "Exit codes"), re.MULTILINE)
    documented = {int(code) for row in rows for code in row.split(",")}
    assert documented == {0, *codes, 129, 130, 143}


def test_the_configuration_file_is_read(tmp_path: Path) -> None:
    (text,) = blocks("docs/options.md", "toml")
    path = tmp_path / "lite-probe.toml"
    path.write_text(text, encoding="utf-8")
    assert read_config(path) == {
        "data_path": str(tmp_path / "val.bin"),
        "seq_len": 256,
        "top": 20,
        "per_block": True,
    }


def found_at(dotted: str) -> Any:
    """What `lp.some.name` or `spectrum.name` is; of a variable that holds a result, what its class has."""
    first, *names = dotted.split(".")
    found: Any = lite_probe if first == "lp" else RESULTS[first]
    for name in names:
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(("page", "text"), PYTHON)
def test_python_on_a_page_calls_what_there_is(page: str, text: str) -> None:
    """Names of the package and of results exist, and functions take the arguments that they are given."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lite_probe"):
            module = import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
        if isinstance(node, ast.Attribute) and DOTTED.fullmatch(ast.unparse(node)):
            found_at(ast.unparse(node))
        if isinstance(node, ast.Call) and DOTTED.fullmatch(ast.unparse(node.func)):
            parameters = inspect.signature(found_at(ast.unparse(node.func))).parameters.values()
            if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
                given = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                assert given <= {one.name for one in parameters}, ast.unparse(node)
