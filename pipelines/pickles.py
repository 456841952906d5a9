"""Values out of a pickle, built by hand: nothing is imported or called but what the caller admits.

Python's unpickler with a closed `find_class` runs no code either, but a few hundred bytes make it ask for gigabytes
(a place in its memo), hash for ever (a pair of twice the same pair, sixty deep, as a key) or overflow the stack (a deep
key). Here an operation costs what its bytes justify: keys are texts and small numbers, what is used again is paid for
again, and what is not written here is refused. Protocols 2 to 4, as arrays and checkpoints need them.
"""

import pickletools
from collections.abc import Callable
from typing import NamedTuple

MOST_STEPS = 2_000_000  # operations: CIFAR-100's training batch, pickled by Python 3, has half a million
MOST_DEPTH = 32  # of values in values, so that whoever walks them needs no more
MOST_KEY = 2**31  # larger numbers can be made to collide
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
CONTAINERS = (tuple, list, dict)
BYTE_STRINGS = {"BINSTRING", "SHORT_BINSTRING"}  # what Python 2 wrote
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}


class Name(NamedTuple):
    """A module's member, by name only."""

    module: str
    name: str


class Stand:
    """Stands for an object: what it was made with, and the state it was given."""

    def __init__(self, *arguments):
        self.arguments, self.state = arguments, None


def load(data: bytes, admitted: dict[Name, Callable], persistent: Callable | None = None):
    """The pickled value. Raises `ValueError`, `TypeError` and others for what is damaged or not admitted.

    admitted    what stands for a module's member; it is called with the pickled arguments, which may be anything
    persistent  what gives the value of a persistent id
    """
    machine = _Machine(admitted, persistent)
    for code, argument, _ in pickletools.genops(data):
        if code.name == "STOP":
            return shallow(machine.stack.pop())
        machine.count(1)
        machine.do(code.name, argument)


def parts(value) -> list:
    """The values that a value holds."""
    return list(value.values() if type(value) is dict else value) if type(value) in CONTAINERS else []


def shallow(value):
    """The value itself; raises `ValueError` where it is too deep."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in parts(outer)]
    if level:
        raise ValueError(f"values nested more than {MOST_DEPTH} deep")
    return value


class _Machine:
    """A pickle's stack, the places where its marks stand, its memo; steps so far, and what may not grow (by id)."""

    def __init__(self, admitted: dict[Name, Callable], persistent: Callable | None):
        self.admitted, self.persistent = admitted, persistent
        self.stack, self.marks, self.memo = [], [], {}
        self.steps, self.whole = 0, {}

    def count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise ValueError(f"more than {MOST_STEPS:,} operations")

    def do(self, name: str, argument) -> None:
        push = self.stack.append
        if name in VALUES:
            push(argument)
        elif name in BYTE_STRINGS:
            push(argument.encode("latin1"))
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in TUPLES:
            push(tuple(self.last(TUPLES[name])))
        else:
            operation = getattr(self, f"_{name.lower()}", None)
            if operation is None:
                raise ValueError(f"operation {name} is not admitted")
            operation(argument)

    def last(self, count: int) -> list:
        """Take the topmost values off."""
        if count > len(self.stack):
            raise ValueError("the stack is empty")
        begin = len(self.stack) - count
        taken = self.stack[begin:]
        del self.stack[begin:]
        return taken

    def marked(self) -> list:
        """Take the values above the last mark off."""
        return self.last(len(self.stack) - self.marks.pop())

    def _proto(self, _):
        pass

    _frame = _proto

    def _mark(self, _):
        self.marks.append(len(self.stack))

    def _empty_dict(self, _):
        self.stack.append({})

    def _empty_list(self, _):
        self.stack.append([])

    def _tuple(self, _):
        self.stack.append(tuple(self.marked()))

    def _append(self, _):
        self.extend(self.last(1))

    def _appends(self, _):
        self.extend(self.marked())

    def _setitem(self, _):
        self.update(self.last(2))

    def _setitems(self, _):
        self.update(self.marked())

    def extend(self, values: list) -> None:
        if type(self.stack[-1]) is not list or id(self.stack[-1]) in self.whole:
            raise TypeError("values for what is no list, or is whole")
        self.stack[-1].extend(values)

    def update(self, pairs: list) -> None:
        if type(self.stack[-1]) is not dict or id(self.stack[-1]) in self.whole:
            raise TypeError("pairs for what is no dict, or is whole")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, bytes) and not (type(key) is int and abs(key) < MOST_KEY):
                raise TypeError("a key that is neither text nor a small number")
            self.stack[-1][key] = value

    def _binput(self, place):
        self.memo[place] = self.stack[-1]

    _long_binput = _binput

    def _memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def _binget(self, place):
        """What is used again counts as often as it would be walked, and may not grow any more."""
        walk = [self.memo[place]]
        self.stack.append(walk[0])
        while walk:
            value = walk.pop()
            self.count(1)
            self.whole[id(value)] = value
            walk += parts(value)

    _long_binget = _binget

    def _global(self, argument):
        self.name(*argument.split(" ", 1))

    def _stack_global(self, _):
        self.name(*self.last(2))

    def name(self, module, name) -> None:
        if type(module) is not str or type(name) is not str:  # a nested value may not even be printed
            raise TypeError("a name that is no text")
        if (module, name) not in self.admitted:
            raise ValueError(f"{module:.100}.{name:.100} is not admitted")
        self.stack.append(Name(module, name))

    def _reduce(self, _):
        name, arguments = self.last(2)
        if type(name) is not Name or type(arguments) is not tuple:
            raise TypeError("a call of what is no name")
        self.stack.append(self.admitted[name](*arguments))

    def _build(self, _):
        target, state = self.last(2)
        if isinstance(target, Stand):
            target.state = state
        elif type(target) is not dict:  # a state dict's version numbers: nothing of ours reads them
            raise TypeError("a state for what has none")
        self.stack.append(target)

    def _binpersid(self, _):
        if self.persistent is None:
            raise ValueError("a persistent id")
        self.stack.append(self.persistent(*self.last(1)))
