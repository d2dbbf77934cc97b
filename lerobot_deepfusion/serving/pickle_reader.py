"""Reads the pickles of LeRobot's client, and runs nothing.

LeRobot's client pickles what it sends. `pickle.loads` calls whatever a message names, before any check can look at
it (CVE-2026-25874), and a `find_class` of one's own still leaves pickle to build, call and change the objects that it
lets through. So this is no unpickler with a list: it is a reader of its own that has nothing which could be called.
From the standard library it takes only the parser (`pickletools.genops`, which cuts bytes into instructions). It
knows the instructions that Python 3.12 and later write for such messages. A name becomes a `Name`, a call a `Call`:
records that do nothing. What they stand for is built in `messages`, once the whole message has been looked at.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from .refusal import Refused, invalid, quoted, too_much

# A robot of 100 joints and 8 cameras takes 700 instructions, and its description 500.
MAX_INSTRUCTIONS = 20_000
MAX_DEPTH = 16  # containers within containers; a message of LeRobot's client has 6
MAX_TEXT = 100_000  # characters of one text; the task is the longest
PROTOCOLS = (4, 5)  # the default of Python 3.8 and of Python 3.14

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
TEXTS = {"SHORT_BINUNICODE", "BINUNICODE"}
BYTES = {"SHORT_BINBYTES", "BINBYTES", "BYTEARRAY8"}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a message names, by its dotted path: a text, nothing is looked up."""

    path: str


@dataclass(slots=True, eq=False)
class Call:
    """A name with arguments, and the state that a message sets afterwards (`__setstate__`): nothing is called."""

    path: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_pickle(data: bytes, known: Collection[str]) -> Any:
    """What a pickle describes: numbers, texts, bytes, None, lists, tuples, dicts by text, `Name` and `Call`.

    The result may hold one container at several places, and even in itself: take it apart by what is expected of it,
    and don't walk through the rest.

    Args:
        data: one whole pickle of protocol 4 or 5.
        known: dotted paths that may be named.

    Raises:
        Refused: naming what is not known, too large or wrong.
    """
    machine = _Machine(known)
    last = -1
    try:
        for count, (instruction, argument, position) in enumerate(pickletools.genops(data)):
            if count >= MAX_INSTRUCTIONS:
                raise too_much(f"the message has more than {MAX_INSTRUCTIONS} pickle instructions")
            if count == 0 and (instruction.name != "PROTO" or argument not in PROTOCOLS):
                raise invalid(f"the message is no pickle of protocol {PROTOCOLS[0]} or {PROTOCOLS[1]}")
            machine.step(instruction.name, argument)
            last = position or 0
    except Refused:
        raise
    except ValueError as error:  # genops': an unknown instruction, or one that is cut short
        raise invalid(f"the message is no whole pickle: {error}") from error
    if last != len(data) - 1:
        raise invalid(f"the pickle ends after {last + 1} of {len(data)} bytes; a client sends nothing behind it")
    return machine.result()


class _Machine:
    """Stack, marks and memo of pickle's machine, over values that do nothing."""

    def __init__(self, known: Collection[str]) -> None:
        self.known = known
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []

    def step(self, name: str, argument: Any) -> None:
        """One instruction.

        Raises:
            Refused: if it is none that LeRobot's client uses, or the stack does not hold what it takes.
        """
        if name in NUMBERS or name in BYTES:
            self.stack.append(argument)
        elif name in TEXTS:
            if len(argument) > MAX_TEXT:
                raise too_much(f"the message has a text of {len(argument)} characters; {MAX_TEXT} at most")
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            self.stack.append(tuple(self._take(TUPLES[name])))
        elif name in ("BINGET", "LONG_BINGET"):
            if argument >= len(self.memo):
                raise invalid("the pickle refers to a value that it does not have")
            self.stack.append(self.memo[argument])
        elif name in STEPS:
            STEPS[name](self)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise invalid(f"the message uses the pickle instruction {name}, which LeRobot's client does not")

    def result(self) -> Any:
        """The one value that is left."""
        if len(self.stack) != 1 or self.marks:
            raise invalid(f"the pickle leaves {len(self.stack)} values where one is expected")
        _check_depth(self.stack[0])
        return self.stack[0]

    def _take(self, count: int) -> list[Any]:
        """The last `count` values, none of them from below the last mark."""
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise invalid("the pickle takes more values than it has put down")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _take_to_mark(self) -> list[Any]:
        if not self.marks:
            raise invalid("the pickle ends a group that it did not begin")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _target(self, kind: type, deed: str) -> Any:
        """The value that stays on the stack and is added to; of exactly this type."""
        (target,) = self._take(1)
        if type(target) is not kind:
            raise invalid(f"the pickle would {deed} {quoted(target)}")
        self.stack.append(target)
        return target

    # --- instructions -------------------------------------------------------------------------------------

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def memoize(self) -> None:
        (value,) = self._take(1)
        self.stack.append(value)
        self.memo.append(value)

    def tuple(self) -> None:
        self.stack.append(tuple(self._take_to_mark()))

    def append(self) -> None:
        values = self._take(1)
        self._target(list, "append to").extend(values)

    def appends(self) -> None:
        values = self._take_to_mark()
        self._target(list, "append to").extend(values)

    def setitem(self) -> None:
        self._set(self._take(2))

    def setitems(self) -> None:
        self._set(self._take_to_mark())

    def _set(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values) or not all(type(key) is str for key in keys):
            raise invalid("the pickle has a dict whose keys are not all texts")
        self._target(dict, "set items of").update(zip(keys, values, strict=True))

    def stack_global(self) -> None:
        module, attribute = self._take(2)
        if type(module) is not str or type(attribute) is not str:
            raise invalid("the pickle names a function or class by something that is no text")
        path = f"{module}.{attribute}"
        if path not in self.known:
            raise invalid(
                f"the message names {quoted(path)}, which is no part of what LeRobot's client sends; nothing of the "
                "message was run"
            )
        self.stack.append(Name(path))

    def call(self) -> None:
        """REDUCE and NEWOBJ."""
        name, arguments = self._take(2)
        if type(name) is not Name or type(arguments) is not tuple:
            raise invalid(f"the pickle would call {quoted(name)} with {quoted(arguments)}")
        self.stack.append(Call(name.path, arguments))

    def build(self) -> None:
        (state,) = self._take(1)
        target = self._target(Call, "set the state of")
        if target.state is not None:
            raise invalid(f"the pickle sets the state of {target.path} twice")
        target.state = state


STEPS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.memoize,
    "TUPLE": _Machine.tuple,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}


def _check_depth(value: Any) -> None:
    """Level by level, each container once: what is deep by nesting, and what is by holding itself, costs the same."""
    level, seen = [value], set()
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for container in level:
            if isinstance(container, list | tuple | dict | Call) and id(container) not in seen:
                seen.add(id(container))
                inner.extend(_parts(container))
        if not inner:
            return
        level = inner
    raise too_much(f"the message is nested more than {MAX_DEPTH} levels deep")


def _parts(container: Any) -> list[Any]:
    if isinstance(container, Call):
        return [container.arguments, container.state]
    return list(container.values() if isinstance(container, dict) else container)
