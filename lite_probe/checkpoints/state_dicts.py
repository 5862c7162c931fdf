"""Finding the model's tensors inside whatever a training script saved around them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lite_probe.checkpoints.json_files import whole_number
from lite_probe.errors import InputError, shown, shown_name

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict", "module", "net", "weights")
# A counter of optimizer updates before one of microbatches, which GaLore-style scripts call global_step.
STEP_KEYS = ("update_step", "iter_num", "step", "global_step", "iteration")
OPTIMIZER_KEYS = ("optimizer", "optim", "optimizer_state_dict", "optimizer_states", "opt", "optimizers")
_HOLDER_DEPTH = 3  # keys that a script may put around what it saves
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


def find_state_dict(saved: object, name: str) -> dict[str, Tensor]:
    """Find the model's tensors: at the top level or under the usual keys, wrapper prefixes stripped.

    Args:
        saved: What the file held.
        name: Of the file, for messages.

    Returns:
        Name → tensor; not yet compared with any model.

    Raises:
        InputError: If no state dict is found.
    """
    found = _search(saved, depth=2)
    if found is None:
        raise InputError(
            f"expected a state dict at the top level of {name} or under one of {', '.join(STATE_DICT_KEYS)}, "
            f"got {_describe(saved)}",
            "pass the file that holds the model's weights, or load it by a function of yours: --task FILE.py:FUNCTION",
        )
    return strip_wrappers(found)


def unwrap(saved: Any, name: str) -> Any:
    """Return the dict that holds the model's key, which may lie below other keys: `{"app": {"model": …, "optim": …}}`.

    Args:
        saved: What the file held.
        name: Of the file, for messages.

    Returns:
        `saved` where it is a state dict or holds one under a usual key, or where no dict in it does.

    Raises:
        InputError: If several dicts in it hold one.
    """
    if not isinstance(saved, Mapping) or _search(saved, depth=2) is not None:
        return saved
    found = list(_holders(saved, (), _HOLDER_DEPTH))
    if len({id(holder) for _, holder in found}) > 1:
        places = ", ".join(shown_name(".".join(path)) for path, _ in found[:6])
        raise InputError(
            f"expected one state dict in {name}, got several, below {places}",
            "save the one that is to be measured in a file of its own",
        )
    return found[0][1] if found else saved


def _holders(saved: Mapping[Any, Any], path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the dicts below other keys that hold a state dict, with the keys they lie under."""
    for key, member in saved.items():
        if not isinstance(member, Mapping) or key in OPTIMIZER_KEYS:
            continue
        below = (*path, key if isinstance(key, str) else shown(key))
        if any(_search(member.get(name), depth=1) is not None for name in STATE_DICT_KEYS):
            yield below, member
        elif depth > 1:
            yield from _holders(member, below, depth - 1)


def _search(saved: object, depth: int) -> dict[str, Tensor] | None:
    if isinstance(saved, nn.Module):
        return dict(saved.state_dict())
    if not isinstance(saved, Mapping):
        return None
    # Some wrappers save None or bytes beside the tensors (`_extra_state`).
    tensors = {key: value for key, value in saved.items() if isinstance(key, str) and isinstance(value, Tensor)}
    named = [key for key in saved if not (isinstance(key, str) and key.endswith("_extra_state"))]
    if tensors and len(tensors) == len(named):
        return tensors
    if depth:
        for key in STATE_DICT_KEYS:
            found = _search(saved.get(key), depth - 1)
            if found is not None:
                return found
    return None


def _describe(saved: object) -> str:
    if isinstance(saved, Mapping):
        keys = ", ".join(shown(key) for key in list(saved)[:8])
        return f"a dict with {keys}" if keys else "an empty dict"
    return f"a {type(saved).__name__}"


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DDP, FSDP and torch.compile, which may be nested in any order."""
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = bare_name(name)
        if bare in stripped:
            raise InputError(
                f"expected one tensor per name, got two for {shown_name(bare)} after removing wrapper prefixes",
                "save the state dict of one model only",
            )
        stripped[bare] = tensor
    return stripped


def bare_name(name: str) -> str:
    """Return a name without the prefixes of DDP, FSDP and torch.compile."""
    while name.startswith(WRAPPER_PREFIXES):
        name = name.partition(".")[2]
    # torch.compile and FSDP on submodules put theirs inside a name, too.
    return name.replace("._orig_mod.", ".").replace("._fsdp_wrapped_module.", ".")


def model_prefix(names: Iterable[str], expected: Iterable[str]) -> str:
    """Return the prefix under which most of the expected names are found, "" if none is.

    Args:
        names: As saved, for example `model.lm_head.weight` for a LightningModule's attribute `model`.
        expected: The model's own parameter names.
    """
    wanted = set(expected)
    votes: Counter[str] = Counter()
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in wanted:
                votes[name[:start]] += 1
            dot = name.find(".", start)
            start = dot + 1 if dot >= 0 else -1
    # Of equally good prefixes the shorter: a model's own first segment is part of its names.
    return max(votes, key=lambda prefix: (votes[prefix], -len(prefix)), default="")


def find_step(*places: object) -> int | None:
    """Return the number of completed updates that was saved beside the weights, if any.

    Args:
        places: Dicts to look in, the first that tells it deciding.
    """
    for value in (place.get(key) for place in places if isinstance(place, Mapping) for key in STEP_KEYS):
        if isinstance(value, Tensor) and not value.is_meta and value.numel() == 1:
            value = value.item()
        step = whole_number(value)
        if step is not None:
            return step
    return None


def as_mapping(value: Any) -> Mapping[str, Any] | None:
    """Return a dict or an `argparse.Namespace` as a mapping, None for anything else."""
    if isinstance(value, Mapping):
        return value
    attributes = getattr(value, "__dict__", None)
    return attributes if isinstance(attributes, dict) else None
