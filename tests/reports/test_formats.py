"""Tables as text: whatever a name holds is text in Markdown and LaTeX, and a CSV has every digit."""

import csv
import io
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_probe.reports.formats import escape_latex, escape_markdown, to_latex, to_markdown, to_text
from lite_probe.reports.numbers import format_uncertain
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.section import section_of
from lite_probe.reports.table import Cell, Column, Table, make_table, number_cell, text_cell
from lite_probe.reports.view import list_tables, make_view
from lite_probe.results.kinds import KINDS
from tests.reports.fixtures import make_spectrum
from tests.reports.training_results import make_training

HOSTILE = (
    "a|b",
    "`rm -rf`",
    "<script>alert(1)</script>",
    "two\nlines\r\nand\u2028more",
    r"C:\new\table",
    r"\input{/etc/passwd}",
    "100% of $5 & #1_2^3~4",
    "{[*]}",
    "]]--''``,,--",
    "x\\\\",
    "$$",
    "“quoted” – it’s…",
    '"straight"',
    "é中",
)
PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Mn", "Zl", "Zp", "Zs"]), max_size=20)

# What LaTeX makes of what `escape_latex` writes; the longest first.
COMMANDS = {
    r"\textbackslash{}": "\\",
    r"\textasciicircum{}": "^",
    r"\textasciitilde{}": "~",
    r"\textasciigrave{}": "`",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\symbol{34}": '"',
    r"\ldots{}": "…",
    r"\{": "{",
    r"\}": "}",
    r"\$": "$",
    r"\&": "&",
    r"\#": "#",
    r"\%": "%",
    r"\_": "_",
    "{[}": "[",
    "{]}": "]",
    "{*}": "*",
    "``": "“",
    "''": "”",
    "--": "–",
    "{}": "",
}
TOKEN = re.compile("|".join([*map(re.escape, sorted(COMMANDS, key=len, reverse=True)), "."]), re.DOTALL)
SPECIAL = set('\\{}$&#%_^~<>|"`[]*')


def read_latex(text: str) -> str:
    """Return what LaTeX sets of text without mathematics; a special character that is left bare is a failure."""
    read = []
    for token in TOKEN.findall(text):
        assert token in COMMANDS or token[0] not in SPECIAL, f"{token!r} in {text!r}"
        read.append(COMMANDS.get(token, token))
    return "".join(read)


def read_markdown(text: str) -> str:
    """Return what Markdown shows of text; markup that is left bare is a failure."""
    assert not re.search(r"(?<!\\)[`*_{}\[\]<>|~$&]", text.replace("\\\\", "")), text
    return re.sub(r"\\([\\`*_{}\[\]<>|~$&])", r"\1", text)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name: str) -> None:
    assert read_markdown(escape_markdown(name)) == one_line(name)
    read = read_latex(escape_latex(name))
    assert read == one_line(name).replace("’", "'")


@given(PLAIN)
def test_any_name_is_text(name: str) -> None:
    assert read_markdown(escape_markdown(name)) == one_line(name)
    ascii_only = name.encode("ascii", "ignore").decode()
    assert read_latex(escape_latex(ascii_only)) == one_line(ascii_only)


def test_two_signs_that_would_be_one_are_kept_apart() -> None:
    assert escape_latex("a--b---c") == "a-{}-b-{}-{}-c"
    assert escape_latex("''") == "'{}'"


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("λ₁", r"$\lambda_{1}$"),
        ("χ̂", r"$\hat{\chi}$"),
        ("r̂_s", r"$\hat{r}$\_s"),
        ("ΔL", r"$\Delta$L"),
        ("loss/param²", r"loss/param$^{2}$"),
        ("F^(−½)", r"F\textasciicircum{}($-\frac{1}{2}$)"),
        ("λ₁²", r"$\lambda_{1}{}^{2}$"),
        ("‖g‖", r"$\|$g$\|$"),
        ("10⁻³ ± 2", r"10$^{-3}$ $\pm$ 2"),
    ],
)
def test_signs_are_mathematics(text: str, latex: str) -> None:
    assert escape_latex(text) == latex


def table_of(*rows: tuple[str, Cell], caption: str = "A caption.") -> Table:
    columns = [Column("name", is_text=True), Column("λ₁", unit="loss/param²", has_error=True)]
    return make_table("own-name", caption, columns, [[text_cell(name), cell] for name, cell in rows])


def test_markdown_is_a_table_of_github() -> None:
    table = table_of(("a|b", number_cell(0.5)), ("<b>", Cell(text="–")), caption="All of *them*.")
    assert to_markdown(table) == (
        "**All of \\*them\\*.**\n\n| name | λ₁ (loss/param²) |\n| :--- | ---: |\n| a\\|b | 0.5000 |\n| \\<b\\> | – |\n"
    )


def test_latex_is_a_table_of_booktabs() -> None:
    text = format_uncertain(-1.2e-5, 3e-7)
    table = table_of(("[x]_1", Cell(text=text)), ("b", Cell(text="1,234.5")), ("c", Cell(text="(12 ± 3)%")))
    assert to_latex(table) == (
        "\\begin{table}\n"
        "\\centering\n"
        "\\caption{A caption.}\n"
        "\\label{tab:own-name}\n"
        "\\begin{tabular}{lr}\n"
        "\\toprule\n"
        "name & $\\lambda_{1}$ (loss/param$^{2}$) \\\\\n"
        "\\midrule\n"
        "{[}x{]}\\_1 & $(-1.200 \\pm 0.030) \\times 10^{-5}$ \\\\\n"
        "b & $1{,}234.5$ \\\\\n"
        "c & $(12 \\pm 3)\\%$ \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )
    assert to_text([table], "latex") == f"% needs \\usepackage{{booktabs}}\n{to_latex(table)}"


def test_a_csv_has_the_numbers_in_full() -> None:
    third = 1.0 / 3.0
    table = table_of(("a", Cell(text="0.333", raw=third, error=2e-17 / 3)))
    assert to_text([table], "csv") == table.csv
    (row,) = csv.DictReader(io.StringIO(to_text([table], "csv")))
    assert float(row["λ₁ (loss/param²)"]) == third
    assert float(row["λ₁ error (loss/param²)"]) == 2e-17 / 3
    assert to_text([table, table], "csv") == f"# own-name\n{table.csv}\n# own-name\n{table.csv}"


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a format of csv, md, latex, got 'html'"):
        to_text([], "html")


def captions_on_page(found: Any) -> set[str]:
    """Return the captions of the tables that a template is given, however deep they lie."""
    if isinstance(found, Table):
        return {found.caption}
    if isinstance(found, dict):
        return set().union(*map(captions_on_page, found.values()))
    return set().union(*map(captions_on_page, found)) if isinstance(found, list | tuple) else set()


def test_the_tables_are_those_of_the_page() -> None:
    runs = [Run(spectrum=make_spectrum(), training=make_training())]
    tables, parts = list_tables(runs), make_view(runs).parts
    assert {table.caption for table in tables} == set().union(*(captions_on_page(part.view) for part in parts.values()))
    names = [table.name for table in tables]
    assert names[0] == "key-numbers"
    assert names[-1] == "training"
    assert len(set(names)) == len(names)
    for form in ("md", "latex", "csv"):
        assert to_text(tables, form)


def test_every_row_of_latex_has_as_many_cells_as_columns() -> None:
    for table in list_tables([Run(spectrum=make_spectrum(), training=make_training())]):
        body = re.search(r"\\toprule\n(.*)\\bottomrule", to_latex(table), re.DOTALL)
        assert body is not None
        for line in body[1].replace("\\midrule\n", "").splitlines():
            assert line.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns) - 1
            assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0
            assert line.isascii(), [one for one in line if ord(one) > 127]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_lists_its_tables(kind: str) -> None:
    assert "tables" in vars(type(section_of(kind)))


def test_composed_letters_stay_one() -> None:
    assert escape_latex(unicodedata.normalize("NFD", "é")) == "é"
