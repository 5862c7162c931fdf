"""Tables as text to paste: Markdown for a pull request, LaTeX for a paper, CSV with every digit for a program.

Markdown and LaTeX show what the page shows. Names come from files: whatever they hold, it is text in either.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from lite_probe.reports.table import Column, Table

FORMATS = ("csv", "md", "latex")

# ASCII punctuation that is markup somewhere in GitHub's Markdown; each may be escaped by a backslash.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|~$&]")

_SPECIALS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "[": "{[}",  # behind the end of a row it would begin an option, and a star be one
    "]": "{]}",
    "*": "{*}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "…": r"\ldots{}",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
}
# Inside $…$, where only these, scripts and accents follow one another, never a letter.
_MATH = {
    "±": r"\pm",
    "×": r"\times",
    "÷": r"\div",
    "−": "-",
    "·": r"\cdot",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}",
    "‖": r"\|",
    "√": r"\surd",
    "✓": r"\surd",
    "✗": r"\times",
    "∂": r"\partial",
    "∇": r"\nabla",
    "∫": r"\int",
    "∝": r"\propto",
    "∈": r"\in",
    "∞": r"\infty",
    "∘": r"\circ",
    "⊥": r"\perp",
    "≈": r"\approx",
    "≠": r"\neq",
    "≤": r"\leq",
    "≥": r"\geq",
    "←": r"\leftarrow",
    "→": r"\rightarrow",
    "↦": r"\mapsto",
    "⟨": r"\langle",
    "⟩": r"\rangle",
    "⌈": r"\lceil",
    "⌉": r"\rceil",
    "⌊": r"\lfloor",
    "⌋": r"\rfloor",
    "ℓ": r"\ell",
    **{
        letter: f"\\{name}"
        for letters, names in (
            ("αβγδεζηθικλμ", "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu"),
            ("νξπρστυφχψω", "nu xi pi rho sigma tau upsilon varphi chi psi omega"),
            ("ΓΔΘΛΞΠΣΥΦΨΩ", "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"),
        )
        for letter, name in zip(letters, names.split(), strict=True)
    },
}
_ACCENTS = {"\u0302": "hat", "\u0304": "bar", "\u0303": "tilde", "\u0307": "dot"}  # combining, behind their letter
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀᵃᵇᵏˣ", "0123456789+-Tabkx", strict=True)) | {"°": r"\circ", "′": r"\prime"}
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ᵢₓ", "0123456789+-ix", strict=True))
_COMPARED = {"≤": r"\leq ", "≥": r"\geq ", "≈": r"\approx "}
# What makes other signs of a pair of them: dashes and quotation marks.
_LIGATURES = "-'`,"
_NUMBER = re.compile(rf"[-+−±<>≤≥≈ ]*\(?[-−]?[0-9][0-9.,±×−()% {''.join(_RAISED)}]*")
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def to_text(tables: Sequence[Table], form: str) -> str:
    """Write tables in one of `FORMATS`, a blank line between them.

    Args:
        tables: In order.
        form: "csv": several have a comment of their name above each, a single one is a plain CSV file.

    Raises:
        ValueError: If there is no such format.
    """
    if form == "csv":
        named = [f"# {table.name}\n{table.csv}" for table in tables] if len(tables) > 1 else [one.csv for one in tables]
        return "\n".join(named)
    writers = {"md": to_markdown, "latex": to_latex}
    if form not in writers:
        raise ValueError(f"expected a format of {', '.join(FORMATS)}, got {form!r}")
    opening = "% needs \\usepackage{booktabs}\n" if form == "latex" else ""
    return opening + "\n".join(writers[form](table) for table in tables)


def to_markdown(table: Table) -> str:
    """Write a table as GitHub's Markdown, its caption in bold above it."""
    rows = [[_titled(column) for column in table.columns], *_texts(table)]
    head, *body = ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in rows]
    rule = "| " + " | ".join(":---" if is_left else "---:" for is_left in _aligned_left(table)) + " |"
    return "\n".join([f"**{escape_markdown(table.caption)}**", "", head, rule, *body]) + "\n"


def to_latex(table: Table) -> str:
    r"""Write a table as LaTeX for the booktabs package, with its caption and a label `tab:NAME`.

    Numbers and Greek are mathematics. Letters beyond those that pdfLaTeX knows stay as they are: XeLaTeX and LuaLaTeX
    take them.
    """
    head, *body = [
        " & ".join(row) + r" \\"
        for row in (
            [escape_latex(_titled(column)) for column in table.columns],
            *([_latex_cell(text) for text in row] for row in _texts(table)),
        )
    ]
    places = "".join("l" if is_left else "r" for is_left in _aligned_left(table))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{places}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape_markdown(text: str) -> str:
    """Return text that GitHub's Markdown shows as it is, on one line."""
    return _MARKDOWN.sub(r"\\\g<0>", _on_one_line(text))


def escape_latex(text: str) -> str:
    """Return text that LaTeX sets as it is, on one line; signs that it has in mathematics alone are put there."""
    pieces: list[str] = []
    for is_math, piece in _stretches(unicodedata.normalize("NFC", _on_one_line(text))):
        pieces.append(f"${piece}$" if is_math else piece)
    return "".join(pieces)


def _stretches(text: str) -> list[tuple[bool, str]]:
    """Cut text into (is mathematics, LaTeX), neighbours of one kind joined."""
    found: list[tuple[bool, str]] = []
    place = 0
    while place < len(text):
        character = text[place]
        if place + 1 < len(text) and text[place + 1] in _ACCENTS:
            base = _MATH.get(character) or _SPECIALS.get(character, character)
            one, place = (True, rf"\{_ACCENTS[text[place + 1]]}{{{base}}}"), place + 2
        elif character in _RAISED or character in _LOWERED:
            shifted, sign = (_RAISED, "^") if character in _RAISED else (_LOWERED, "_")
            stop = next((at for at in range(place, len(text)) if text[at] not in shifted), len(text))
            # Two scripts in a row need something between them.
            apart = "{}" if found and found[-1][0] and found[-1][1].endswith("}") else ""
            one = (True, f"{apart}{sign}{{{_shift(shifted, text[place:stop])}}}")
            place = stop
        elif character in _MATH:
            one, place = (True, _MATH[character]), place + 1
        else:
            apart = "{}" if character in _LIGATURES and text[place - 1 : place] == character else ""
            one, place = (False, apart + _SPECIALS.get(character, character)), place + 1
        if found and found[-1][0] == one[0]:
            found[-1] = (one[0], found[-1][1] + one[1])
        else:
            found.append(one)
    return found


def _latex_cell(text: str) -> str:
    """Return a cell; a number with its error and power of ten is one formula."""
    line = _on_one_line(text)
    if not _NUMBER.fullmatch(line):
        return escape_latex(text)
    # In mathematics a comma is followed by a gap, unless it is in braces.
    plain = str.maketrans({",": "{,}", "%": r"\%", "±": r"\pm ", "×": r"\times ", "−": "-", **_COMPARED})
    raised = re.sub(f"[{''.join(_RAISED)}]+", lambda found: f"^{{{_shift(_RAISED, found[0])}}}", line)
    return f"${raised.translate(plain)}$".replace("  ", " ")


def _shift(shifted: Mapping[str, str], text: str) -> str:
    """Return raised or lowered characters as they are on the line."""
    return "".join(shifted[character] for character in text)


def _titled(column: Column) -> str:
    return f"{column.title} ({column.unit})" if column.unit else column.title


def _texts(table: Table) -> list[list[str]]:
    """Return what cells show, with units of their own."""
    return [[f"{cell.text} ({cell.unit})" if cell.unit else cell.text for cell in row] for row in table.rows]


def _aligned_left(table: Table) -> list[bool]:
    """Return which columns hold text; the first names its row."""
    return [column.is_text or place == 0 for place, column in enumerate(table.columns)]


def _on_one_line(text: str) -> str:
    """Return text without control characters, every run of white space a space."""
    return _BREAKS.sub(" ", text).strip()
