"""What a pickle would make, told from its opcodes before anything is made.

A pickle is a program, and a small one can exhaust a machine: `bytes(2**30)` takes a gigabyte, a thousand copies of one
list take a thousand times its room, and a dict whose key is a tuple of tuples that share their members hashes for ever.
Here the program runs on sizes alone. What remains, dicts and lists that contain one another many times over, is
counted in the object once it is there (`check_unfolded`), so that whoever walks through it comes to an end.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

from torch import Tensor, nn

MAX_PICKLE_BYTES = 2**27
MAX_OPCODES = 1_500_000  # a tensor takes about 33 of them
MAX_MADE_BYTES = 2**28
MAX_UNFOLDED = 2**22
MAX_KEY_OBJECTS = 64  # that a dict's key may consist of
_LONG_BITS = 60  # longer whole numbers can be chosen to have one hash all
_TEXT_KEPT = 200

Kind = Literal["text", "bytes", "number", "name", "tuple", "list", "dict", "object"]
CallRule = Callable[["Sequence[Made]"], str]  # what is wrong with the arguments, "" if nothing


@dataclass(slots=True)
class Made:
    """What is known of an object before it is made."""

    kind: Kind
    num_bytes: int  # that a copy of it takes
    hashed: int = 1  # objects that hashing it visits, each as often as it is met
    text: str = ""  # a name, a short text, or the name of what made an object
    members: "list[Made] | None" = None  # of a tuple or a list


class BoundsError(ValueError):
    """A pickle would make more than any checkpoint holds."""


_NUMBER = Made("number", 32)
_LONG_NUMBER = Made("number", 64, hashed=MAX_KEY_OBJECTS + 1)
_OBJECT_BYTES: Mapping[Kind, int] = {"tuple": 40, "list": 56, "dict": 64, "object": 216}


class Machine:
    """Runs one pickle on sizes.

    Args:
        rule_of: Returns what the arguments of a name must be, None for one that may be mentioned but not called.
    """

    def __init__(self, rule_of: Callable[[str], CallRule | None]) -> None:
        self._rule_of = rule_of
        self._stack: list[Made] = []
        self._marks: list[int] = []
        self._memo: dict[int, Made] = {}
        self._made_bytes = 0
        self._opcodes = 0

    def step(self, opcode: str, argument: Any, position: int) -> None:
        """Run one opcode.

        Args:
            opcode: As pickletools names it.
            argument: As pickletools decodes it.
            position: Of the opcode in the pickle, bytes.

        Raises:
            BoundsError: If it would take too much, call what may not be called, or is none that a checkpoint needs.
            IndexError: If the stack is empty.
            KeyError: If the memo has no such entry.
        """
        self._opcodes += 1
        if self._opcodes > MAX_OPCODES:
            raise BoundsError(f"it has more than {MAX_OPCODES:,} opcodes")
        act = _ACTIONS.get(opcode)
        if act is None:
            raise BoundsError(f"its opcode {opcode} has no place in a checkpoint")
        act(self, argument, position)

    def push(self, made: Made, num_bytes: int | None = None) -> None:
        """Put an object on the stack and count its bytes."""
        self._made_bytes += made.num_bytes if num_bytes is None else num_bytes
        if self._made_bytes > MAX_MADE_BYTES:
            raise BoundsError(f"it would make more than {MAX_MADE_BYTES:,} bytes of objects")
        self._stack.append(made)

    def pop(self) -> Made:
        """Take an object from the stack; nothing reaches below the last mark."""
        self.top()
        return self._stack.pop()

    def top(self) -> Made:
        """Return the object on top of the stack."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise IndexError("its stack is empty")
        return self._stack[-1]

    def pop_mark(self) -> list[Made]:
        """Take what lies above the last mark."""
        start = self._marks.pop()
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def mark(self) -> None:
        """Set a mark."""
        self._marks.append(len(self._stack))

    def remember(self, index: int | None, position: int) -> None:
        """Write the memo; C's unpickler allocates up to the index."""
        index = len(self._memo) if index is None else index
        if not 0 <= index <= position:
            raise BoundsError(f"its memo index {index:,} is beyond its {position:,} bytes")
        self._memo[index] = self.top()

    def recall(self, index: int) -> None:
        """Push what the memo holds."""
        self._stack.append(self._memo[index])

    def push_tuple(self, members: list[Made]) -> None:
        """Make a tuple."""
        num_bytes = _OBJECT_BYTES["tuple"] + 8 * len(members)
        hashed = 1 + sum(member.hashed for member in members)
        self.push(Made("tuple", num_bytes, hashed, members=members))

    def extend(self, members: list[Made]) -> None:
        """Append to the list, or whatever made itself one, on the stack."""
        target = self.top()
        if target.kind == "tuple":
            raise BoundsError("it appends to a tuple")
        if target.members is not None:
            target.members += members
        target.num_bytes += 8 * len(members)
        target.hashed += sum(member.hashed for member in members)
        self._made_bytes += 8 * len(members)

    def set_items(self, members: list[Made]) -> None:
        """Put keys and values into the dict on the stack."""
        target = self.top()
        check_hashed(members[0::2])
        target.num_bytes += 50 * len(members)
        self._made_bytes += 50 * len(members)

    def call(self, function: Made, arguments: Made) -> None:
        """Push what a call makes: no more than a copy of its arguments."""
        if function.kind != "name" or arguments.members is None:
            raise BoundsError("it calls what is no name")
        rule = self._rule_of(function.text)
        problem = "is not to be called" if rule is None else rule(arguments.members)
        if problem:
            raise BoundsError(f"its call of {function.text} {problem}")
        # A list of characters or bytes takes eight bytes for each of them.
        num_bytes = _OBJECT_BYTES["object"] + 8 * sum(argument.num_bytes for argument in arguments.members)
        kind: Kind = "bytes" if function.text in _MAKES_BYTES else "object"
        self.push(Made(kind, num_bytes, arguments.hashed, function.text))

    def build(self) -> None:
        """Apply a state, which is copied where it updates a dict of attributes."""
        state, target = self.pop(), self.top()
        if target.kind == "name":
            raise BoundsError("it sets the state of a name")
        if target.text in _UPDATES_ATTRIBUTES and state.kind != "dict":
            parts = state.members if state.kind == "tuple" and state.members is not None else [state]
            if any(part.kind not in ("dict", "number") for part in parts):
                raise BoundsError(f"the state of its {target.text} is no dict")
        self.push(self.pop(), state.num_bytes)


_MAKES_BYTES = ("_codecs.encode", "builtins.bytes", "builtins.bytearray")
_UPDATES_ATTRIBUTES = ("collections.OrderedDict", "argparse.Namespace", "types.SimpleNamespace")


def check_hashed(keys: Sequence[Made]) -> None:
    """Refuse keys whose hash takes long.

    Raises:
        BoundsError: If one consists of more than 64 objects, or is a number of more than 60 bits.
    """
    if any(key.hashed > MAX_KEY_OBJECTS for key in keys):
        raise BoundsError(f"a key of its dicts or sets consists of more than {MAX_KEY_OBJECTS} objects or of 60 bits")


def _number(machine: Machine, argument: Any, _: int) -> None:
    is_long = isinstance(argument, int) and argument.bit_length() > _LONG_BITS
    machine.push(_LONG_NUMBER if is_long else _NUMBER)


def _text(machine: Machine, argument: Any, _: int) -> None:
    text = argument if isinstance(argument, str) else ""
    kind: Kind = "text" if isinstance(argument, str) else "bytes"
    machine.push(Made(kind, 60 + len(argument), text=text if len(text) <= _TEXT_KEPT else ""))


def _name(machine: Machine, argument: Any, _: int) -> None:
    module, qualified = str(argument).split(" ", 1)
    machine.push(Made("name", 8, text=f"{RENAMED.get(module, module)}.{qualified}"))


def _stack_name(machine: Machine, _: Any, __: int) -> None:
    qualified, module = machine.pop(), machine.pop()
    machine.push(Made("name", 8, text=f"{module.text}.{qualified.text}"))


def _empty(kind: Kind) -> Callable[[Machine, Any, int], None]:
    def act(machine: Machine, _: Any, __: int) -> None:
        machine.push(Made(kind, _OBJECT_BYTES[kind], members=[] if kind in ("tuple", "list") else None))

    return act


def _tuple_of(count: int) -> Callable[[Machine, Any, int], None]:
    def act(machine: Machine, _: Any, __: int) -> None:
        machine.push_tuple([machine.pop() for _ in range(count)][::-1])

    return act


def _frozen(machine: Machine) -> None:
    members = machine.pop_mark()
    check_hashed(members)
    hashed = 1 + sum(member.hashed for member in members)
    machine.push(Made("object", _OBJECT_BYTES["object"] + 64 * len(members), hashed))


def _add_items(machine: Machine) -> None:
    members = machine.pop_mark()
    check_hashed(members)
    machine.extend(members)


def _reduce(machine: Machine, _: Any, __: int) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.call(function, arguments)


def _persistent(machine: Machine, _: Any, __: int) -> None:
    check_hashed([machine.pop()])
    machine.push(Made("object", _OBJECT_BYTES["object"]))


def _nothing(machine: Machine, _: Any, __: int) -> None:
    """Leave the stack as it is."""


# Python 2 names, as protocol 2 writes them.
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}

_ACTIONS: dict[str, Callable[[Machine, Any, int], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "LONG4"), _number),
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE"), _number),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"), _text),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _text),
    "GLOBAL": _name,
    "STACK_GLOBAL": _stack_name,
    "EMPTY_TUPLE": _empty("tuple"),
    "EMPTY_LIST": _empty("list"),
    "EMPTY_DICT": _empty("dict"),
    "EMPTY_SET": _empty("object"),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _, __: machine.push_tuple(machine.pop_mark()),
    "MARK": lambda machine, _, __: machine.mark(),
    "APPEND": lambda machine, _, __: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _, __: machine.extend(machine.pop_mark()),
    "ADDITEMS": lambda machine, _, __: _add_items(machine),
    "FROZENSET": lambda machine, _, __: _frozen(machine),
    "SETITEM": lambda machine, _, __: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _, __: machine.set_items(machine.pop_mark()),
    "BINPUT": lambda machine, argument, position: machine.remember(argument, position),
    "LONG_BINPUT": lambda machine, argument, position: machine.remember(argument, position),
    "MEMOIZE": lambda machine, _, position: machine.remember(None, position),
    "BINGET": lambda machine, argument, _: machine.recall(argument),
    "LONG_BINGET": lambda machine, argument, _: machine.recall(argument),
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,  # cls.__new__(cls, *args)
    "BUILD": lambda machine, _, __: machine.build(),
    "BINPERSID": _persistent,
}


# -- what calls may be given ------------------------------------------------------------------------------------------


def anything(_: Sequence[Made]) -> str:
    """Accept any arguments: the function only keeps them."""
    return ""


def nothing(arguments: Sequence[Made]) -> str:
    """Accept no arguments."""
    return "has arguments" if arguments else ""


def texts(arguments: Sequence[Made]) -> str:
    """Accept texts."""
    return "" if all(argument.kind in ("text", "bytes") for argument in arguments) else "has arguments that are no text"


def latin_text(arguments: Sequence[Made]) -> str:
    """Accept a text and the encoding in which Python pickles bytes."""
    encodings = [argument.text for argument in arguments[1:]]
    if not arguments or arguments[0].kind not in ("text", "bytes"):
        return "has no text to encode"
    return "" if encodings in ([], ["latin1"], ["latin-1"]) else "has another encoding than latin1"


def bytes_or_nothing(arguments: Sequence[Made]) -> str:
    """Accept what a bytearray is pickled as; a number would be a size to allocate."""
    return latin_text(arguments) if arguments else ""


def hashable_members(arguments: Sequence[Made]) -> str:
    """Accept nothing, or a collection whose members, and members of pairs, are quick to hash."""
    if not arguments:
        return ""
    if len(arguments) > 1 or arguments[0].kind not in ("list", "tuple", "dict"):
        return "has arguments that are no list and no dict"
    members = arguments[0].members or []
    check_hashed([member for member in members if member.kind != "list"])
    check_hashed([inner for member in members if member.kind == "list" for inner in (member.members or [])[:1]])
    return ""


# -- what is there once it is loaded -----------------------------------------------------------------------------------


def check_unfolded(value: object) -> None:
    """Refuse an object that is small only as long as nobody walks through it.

    The count of an object is 1 + Σ counts of its members, a member that is met twice counting twice.

    Args:
        value: Nested dicts, lists, tuples, sets and namespaces; anything else counts as one.

    Raises:
        BoundsError: If the count is above 2²², or an object contains itself.

    Cost: one visit of each object.
    """
    counts: dict[int, int] = {}
    open_ids: set[int] = set()
    stack: list[tuple[object, Iterator[object]]] = [(value, iter(_members(value)))]
    open_ids.add(id(value))
    sums = [1]
    while stack:
        holder, members = stack[-1]
        for member in members:
            if not isinstance(member, _CONTAINERS) and not hasattr(member, "__dict__"):
                sums[-1] += 1
            elif id(member) in counts:
                sums[-1] += counts[id(member)]
            elif id(member) in open_ids:
                raise BoundsError("one of its objects contains itself")
            else:
                open_ids.add(id(member))
                stack.append((member, iter(_members(member))))
                sums.append(1)
                break
        else:
            stack.pop()
            count = sums.pop()
            open_ids.discard(id(holder))
            counts[id(holder)] = count
            if sums:
                sums[-1] += count
        if sums and sums[-1] > MAX_UNFOLDED:
            raise BoundsError(f"its objects contain one another more than {MAX_UNFOLDED:,} times")


_CONTAINERS = (Mapping, list, tuple, set, frozenset)


def _members(value: object) -> list[object]:
    if isinstance(value, Tensor | nn.Module | type):
        return []
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    attributes = getattr(value, "__dict__", None)
    return list(attributes.values()) if isinstance(attributes, dict) else []


class Bounded:
    """The first bytes of a stream, as pickletools reads them: a pickle without an end comes to one.

    Args:
        stream: Where to read from.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes."""
        return self._take(self._stream.read(self._allowed(count)))

    def readline(self) -> bytes:
        """Read a line."""
        return self._take(self._stream.readline(self._allowed(MAX_PICKLE_BYTES)))

    def tell(self) -> int:
        """Return the bytes read so far."""
        return MAX_PICKLE_BYTES - self._left

    def _allowed(self, count: int) -> int:
        if not self._left:
            raise BoundsError(f"it has more than {MAX_PICKLE_BYTES:,} bytes")
        return min(count, self._left)

    def _take(self, content: bytes) -> bytes:
        self._left -= len(content)
        return content


def opcodes(stream: IO[bytes]) -> Iterator[tuple[str, Any, int]]:
    """Yield name, argument and position of each opcode of a pickle, reading no further than its end.

    Raises:
        BoundsError: If it has more than 2²⁷ bytes.
        ValueError: If it is damaged.
    """
    for opcode, argument, position in pickletools.genops(cast("IO[bytes]", Bounded(stream))):
        yield opcode.name, argument, position or 0
