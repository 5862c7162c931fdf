"""The kinds of measurement: one table from which store, run directories, pages and the command line know them.

A kind is a request (what can be asked, and how it is planned and run), a record (what was measured), and a section of
the page with its template. Its parts are named, not imported: each room loads its own when it needs it, so that a
command's help loads no torch, and a page none either.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of measurement; its name is that of its files and its section.

    Attributes:
        name: For example "spectrum".
        record: "module:name" of the frozen dataclass that holds what was measured.
        request: Of the dataclass of what can be asked, a `lite_probe.measurements.requests.Request`; empty, as is the
            plan, where no command measures it.
        plan: Of the class that plans and runs it, a `lite_probe.measurements.base.Plan`.
        section: Of an instance of `lite_probe.reports.sections.section.Section`.
        command: Of its click command; empty where it has nothing of its own.
    """

    name: str
    record: str
    request: str = ""
    plan: str = ""
    section: str
    command: str = ""

    @property
    def word(self) -> str:
        """What its command is called: as the kind, where it has no module of its own."""
        return self.command.partition(":")[0].rpartition(".")[2] or self.name

    @property
    def has_command(self) -> bool:
        """Whether a command measures it."""
        return bool(self.request)

    def load(self, part: str) -> Any:
        """Import a part: "record", "request", "plan", "section" or "command"."""
        module, _, name = getattr(self, part).partition(":")
        return getattr(import_module(module), name)


KINDS: dict[str, Kind] = {}


def register_kind(kind: Kind) -> None:
    """Add a kind of measurement.

    Raises:
        ValueError: If another one has its name.
    """
    if KINDS.setdefault(kind.name, kind) != kind:
        raise ValueError(f"expected a new kind of measurement, got {kind.name!r}, which there is")


for _name, _word, _record in (
    ("spectrum", "spectrum", "Spectrum"),
    ("subspace", "subspace", "SubspaceMeasurement"),
    ("steps", "steps", "Steps"),
    ("replay", "replay", "Replay"),
    ("tuning", "tune", "Tuning"),
):
    register_kind(
        Kind(
            name=_name,
            record=f"lite_probe.results.{_name}:{_record}",
            request=f"lite_probe.measurements.requests.{_word}:{_word.capitalize()}Request",
            plan=f"lite_probe.measurements.{_word}:{_name.capitalize()}Plan",
            section=f"lite_probe.reports.sections.{_name}:SECTION",
            command=f"lite_probe.commands.{_word}:command",
        )
    )

register_kind(
    Kind(
        name="training",
        record="lite_probe.results.training:Training",
        section="lite_probe.reports.sections.training:SECTION",
    )
)
