"""Functions from a user's own Python file, and what becomes of what they raise."""

import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from lite_probe.errors import InputError, LiteProbeError, UsageError

Returned = TypeVar("Returned")


def load_function(spec: str, option: str, hint: str) -> tuple[Callable[..., Any], str]:
    """Load a function that a user wrote.

    The file is run as a module, its folder importable; so it is again when the function is called.

    Args:
        spec: "FILE.py:FUNCTION".
        option: Where it was given, for messages: "--task".
        hint: What to do where the file has no such function.

    Returns:
        The function, and what it is in words: "build of mine.py".

    Raises:
        UsageError: If the request is not of that form.
        InputError: If there is no such file or function, or the file raised.
        LiteProbeError: Whatever kind the file itself raised.
    """
    file_name, _, function_name = spec.rpartition(":")
    if not file_name or not function_name.isidentifier():
        raise UsageError(f"expected FILE.py:FUNCTION, got {spec!r}")
    path, check = Path(file_name), f"check {option} FILE.py:FUNCTION"
    try:
        is_file = path.is_file()
    except OSError as error:  # no permission, or a name too long
        raise InputError(f"expected a Python file, got {error.strerror}: {file_name[:200]!r}", check) from error
    if not is_file:
        raise InputError(f"expected a Python file, got no such path: {file_name!r}", check)
    folder = path.resolve().parent
    with _importable(folder):
        module = _run_file(path)
    function = getattr(module, function_name, None)
    if not callable(function):
        own = inspect.getmembers(module, lambda value: inspect.isfunction(value) and _is_of(value, module))
        found = ", ".join(name for name, _ in own if not name.startswith("_"))
        raise InputError(f"expected a function {function_name!r} in {path.name}, got {found or 'none'}", hint)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with _importable(folder):
            return function(*args, **options)

    return call, f"{function_name} of {path.name}"


def run_code(function: Callable[[], Returned], what: str) -> Returned:
    """Run a user's code; whatever it raises is an input that was refused.

    Raises:
        InputError: It names the error and the line.
        LiteProbeError: Whatever kind the code itself raised.
    """
    try:
        return function()
    except LiteProbeError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).splitlines() or [""]
        raise InputError(
            f"expected {what} to run, got {type(error).__name__}: {lines[0]}{_place(error)}",
            "run it with python to see where it comes from",
        ) from error


def code_digest(function: Callable[..., Any]) -> str:
    """Return the SHA-256 of the file that a function stands in, else of its own code; what that imports is left out."""
    inner = inspect.unwrap(function)
    digest = hashlib.sha256(getattr(inner, "__qualname__", type(inner).__qualname__).encode())
    try:
        source = inspect.getsourcefile(inner)
    except TypeError:
        source = None
    if source is not None and Path(source).is_file():
        digest.update(Path(source).read_bytes())
    elif (code := getattr(inner, "__code__", None)) is not None:
        digest.update(code.co_code + repr((code.co_consts, code.co_names)).encode())
    return digest.hexdigest()


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a user's file import its neighbours, as `python FILE.py` would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _run_file(path: Path) -> ModuleType:
    # A name of its own in sys.modules: dataclasses and pickle look their module up there.
    name = f"lite_probe_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"expected a Python file, got {path.name}", "its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    run_code(lambda: loader.exec_module(module), path.name)
    return module


def _is_of(function: Any, module: ModuleType) -> bool:
    return bool(function.__module__ == module.__name__)


def _place(error: BaseException) -> str:
    """Say where in the user's code an error came from: the innermost frame, or a syntax error's line."""
    if isinstance(error, SyntaxError):
        return ""  # its own text names the line
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f" ({Path(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno})" if frame else ""
