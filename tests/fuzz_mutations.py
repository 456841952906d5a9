"""Ways to spoil a file. Each takes a `random.Random` and bytes, and gives other bytes: the same ones for the same generator.

`spoil` knows no format. `safetensors`, `pickled`, `png` and `document` take one apart, lie in it and put it together again with lengths
and checksums that fit, so that the lie itself reaches the reader. `fuzz_archives.py` does so for what holds other files.
"""

import hashlib
import json
import pickletools
import zlib
from copy import deepcopy
from functools import cache
from random import Random

import torch

from pipelines.store import BLANK

NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 511, 512, 513, 4095, 65535, 65536, 2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "NaN",
    "1e999",
    "1_0",
    "\u0663",
    "\ud800",
    "\0",
    "a\nb",
    "\x1b[31m",
    "../ran",
    "/ran",
    "x" * 5000,
    "<script>ran()</script>",
    "'\"><img src=ran>",
    "[]",
    "{}",
    "null",
    "9" * 5000,
)
DEEP = "\x02deep\x02"  # stands for a list in a list in a list ... where JSON text is made
MEBI = 1 << 20


# Of any bytes


def flip(rng: Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwrite(rng: Random, data: bytes) -> bytes:
    at, new = rng.randrange(len(data) + 1), rng.randbytes(rng.choice((1, 2, 4, 16, 100)))
    if rng.random() < 0.3:
        new = bytes([rng.choice((0, 255, 32, 57))]) * len(new)
    return data[:at] + new + data[at + len(new) :]


def number(rng: Random, data: bytes) -> bytes:
    """A number that a length or a size may be, near the beginning more often than elsewhere."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(min(len(data), rng.choice((16, 64, 600, 1 << 30))) + 1)
    new = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
    return data[:at] + new + data[at + width :]


def truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def extend(rng: Random, data: bytes) -> bytes:
    more = rng.choice((rng.randbytes(rng.randrange(600)), bytes(rng.choice((1, 512, 10240))), data))
    return data + more if rng.random() < 0.8 else more + data


def cut(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 8, 100, 512, 5000)) :]


def repeat(rng: Random, data: bytes) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 8, 100, 512))
    return data[:at] + data[at : at + length] * rng.choice((2, 3, 100)) + data[at + length :]


def move(rng: Random, data: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


ANY = (flip, flip, overwrite, number, number, truncate, extend, cut, repeat, move)


def spoil(rng: Random, data: bytes) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(ANY)(rng, data)
    return data


# JSON


def junk(rng: Random):
    one = rng.choice((None, True, -1, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**400, DEEP, [], {}, [[1]], {"a": None}))
    return rng.choice((one, rng.choice(NUMBERS), -rng.choice(NUMBERS), rng.choice(TEXTS)))


def edit(rng: Random, tree):
    """`tree` with one of its values replaced, doubled, dropped or renamed."""
    held = [tree]
    places, walk = [(held, 0)], [tree]
    while walk:
        node = walk.pop()
        children = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        places += [(node, key) for key, _ in children]
        walk += [child for _, child in children]
    node, key = rng.choice(places[1:] or places)
    action = rng.randrange(6)
    if action == 0 and node is not held:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[rng.choice(TEXTS)] = node.pop(key)
    elif action == 2:
        other, name = rng.choice(places)
        if isinstance(other, dict) and name in other or isinstance(other, list) and name < len(other):
            node[key] = json.loads(json.dumps(other[name]))
    elif action == 3 and isinstance(node[key], (int, float)):
        node[key] += rng.choice((-1, 1, 8, -node[key] * 2))
    else:
        node[key] = junk(rng)
    return held[0]


def values(rng: Random, state: dict) -> dict:
    """`edit` for a checkpoint's values: a tensor may also become one of another shape, type or content."""
    places, walk = [], [state]
    while walk:
        node = walk.pop()
        children = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        places += [(node, key) for key, _ in children if isinstance(node, (dict, list))]
        walk += [child for _, child in children if isinstance(child, (dict, list, tuple))]
    node, key = rng.choice(places)
    if isinstance(node[key], torch.Tensor) and rng.random() < 0.6:
        kinds = (torch.float64, torch.int64, torch.bfloat16, torch.uint8)
        change = rng.choice(
            (
                lambda t: t.to(rng.choice(kinds)),
                lambda t: t.flatten()[:-1],
                lambda t: t.unsqueeze(0),
                lambda t: torch.full_like(t, rng.choice((0, 1, 127))),
                lambda t: t.float() * rng.choice((float("nan"), float("inf"), 1e30, -1.0)),
                lambda t: torch.zeros(()),
                lambda t: torch.zeros(rng.choice((0, 1, 7))),
            )
        )
        node[key] = change(node[key])
        return state
    action = rng.randrange(5)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[rng.choice((*TEXTS, 0, 1, 99))] = node.pop(key)
    elif action == 2:
        other, name = rng.choice(places)
        if isinstance(other, dict) and name in other or isinstance(other, list) and name < len(other):
            node[key] = deepcopy(other[name])
    elif action == 3 and type(node[key]) in (int, float):
        node[key] += rng.choice((-1, 1, 8, -node[key] * 2))
    else:
        node[key] = rng.choice((junk(rng), (), (1, 2), b"x", torch.zeros(2)))
    return state


def text_of(tree) -> str:
    deep = 200_000
    return json.dumps(tree).replace(json.dumps(DEEP), "[" * deep + "]" * deep)


def document(rng: Random, data: bytes) -> bytes:
    """A JSON file with other values in it, now and then a name twice, or not in UTF-8."""
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        tree = edit(rng, tree)
    text = text_of(tree)
    if rng.random() < 0.05:
        text = text.replace("{", '{"recipe": ' + text_of(junk(rng)) + ", ", 1)
    return text.encode(rng.choice(("utf-8",) * 8 + ("utf-16", "utf-8-sig")), "surrogatepass")


# Safetensors


def safetensors(rng: Random, data: bytes) -> bytes:
    """Another header before the same tensors; a store's is signed again more often than not."""
    size = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    for _ in range(rng.choice((1, 1, 2, 3))):
        described = head.get("__metadata__") if isinstance(head, dict) else None
        if isinstance(described, dict) and described and rng.random() < 0.5:
            key = rng.choice(sorted(described))
            described[key] = _inner(rng, described[key])
        else:
            head = edit(rng, head)
    if rng.random() < 0.05:
        body = spoil(rng, body)
    text = text_of(head).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8 if rng.random() < 0.9 else rng.choice((1, 4096, 2 * MEBI)))
    if rng.random() < 0.7 and isinstance(head, dict):
        text = _signed(text, head)
    return len(text).to_bytes(8, "little") + text + body


def _inner(rng: Random, value) -> str:
    """Metadata are strings that hold JSON: a lie inside one."""
    try:
        return text_of(edit(rng, json.loads(value)))
    except (ValueError, TypeError, RecursionError):
        return str(junk(rng))


def _signed(text: bytes, head: dict) -> bytes:
    described = head.get("__metadata__")
    old = described.get("header") if isinstance(described, dict) else None
    if not isinstance(old, str) or len(old) != 64:
        return text
    blank = text.replace(old.encode(), BLANK)
    return blank.replace(BLANK, hashlib.sha256(len(blank).to_bytes(8, "little") + blank).hexdigest().encode())


# PNG


def png(rng: Random, data: bytes) -> bytes:
    """Chunks changed, moved, doubled or dropped, with checksums that fit."""
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += size + 12
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.randrange(len(chunks))
        action = rng.randrange(6)
        if action == 0 and len(chunks) > 1:
            del chunks[i]
        elif action == 1:
            chunks.insert(rng.randrange(len(chunks) + 1), list(chunks[i]))
        elif action == 2:
            name = rng.choice((b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fdAT", b"fcTL", b"eXIf", b"gAMA", b"IDAT"))
            content = rng.choice((rng.randbytes(26), b"a\0\0" + zlib.compress(bytes(3 * MEBI)), b"", zlib.compress(bytes(3 * MEBI))))
            chunks.insert(rng.randrange(len(chunks) + 1), [name, content])
        else:
            chunks[i][1] = rng.choice(ANY)(rng, chunks[i][1])
    return data[:8] + b"".join(len(c).to_bytes(4, "big") + n + c + zlib.crc32(n + c).to_bytes(4, "big") for n, c in chunks)


# Pickles: programs that leave one value on the stack, and what is done with them


def _long(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def _collisions() -> bytes:
    return b"}(" + b"".join(_long(i * (2**61 - 1)) + b"N" for i in range(1, 60_000)) + b"u"


def _latin1() -> bytes:
    text = b"x" * (MEBI // 4)
    begin = b"(c_codecs\nencode\nq\xf0X" + len(text).to_bytes(4, "little") + text + b"q\xf1X\x06\x00\x00\x00latin1q\xf2"
    return begin + b"h\xf0h\xf1h\xf2\x86R" * 3000 + b"l"


PROGRAMS = {
    "system": lambda: b"cos\nsystem\n(S'touch ran'\ntR",
    "posix": lambda: b"\x8c\x05posix\x8c\x06system\x93\x8c\ttouch ran\x85R",
    "eval": lambda: b'c__builtin__\neval\n(S\'open("ran","w")\'\ntR',
    "exec": lambda: b'cbuiltins\nexec\n(S\'open("ran","w")\'\ntR',
    "popen": lambda: b"csubprocess\nPopen\n((S'touch'\nS'ran'\nltR",
    "instance": lambda: b"(S'touch ran'\nios\nsystem\n",
    "object": lambda: b"(cos\nsystem\nS'touch ran'\no",
    "load": lambda: b"cnumpy\nload\n(S'../ran'\ntR",
    "rename": lambda: b"cos\nrename\n(S'target'\nS'ran'\ntR",
    "attribute": lambda: b"c_codecs\nencode\nN}U\x0b__defaults__Ns\x86b",
    "dotted": lambda: b"\x8c\x05numpy\x8c\x11ndarray.__class__\x93",
    "persistent": lambda: b"Pran\n",
    "storage": lambda: b"(U\x07storagectorch\nFloatStorage\nU\x030/0U\x03cpuJ\xff\xff\xff\x7ftQ",
    "extension": lambda: b"\x82\x01",
    "memo": lambda: b"Nr\xff\xff\xff\x0f",
    "memo in text": lambda: b"Np268435455\n",
    "bytes": lambda: b"B\xff\xff\xff\x7fx",
    "bytes8": lambda: b"\x8e" + (2**40).to_bytes(8, "little"),
    "bytearray8": lambda: b"\x96" + (2**33).to_bytes(8, "little"),
    "text8": lambda: b"\x8d" + (2**63).to_bytes(8, "little"),
    "long": lambda: b"\x8b\xff\xff\xff\x7f",
    "digits": lambda: b"I" + b"9" * 100_000 + b"\n",
    "frame": lambda: b"\x95" + (2**62).to_bytes(8, "little") + b"N",
    "hash without end": lambda: b"})" + b"2\x86" * 60 + b"Ns",
    "hash without end, by memo": lambda: b"})q\xf0" + b"h\xf0h\xf0\x86q\xf0" * 60 + b"Ns",
    "set without end": lambda: b"()" + b"2\x86" * 60 + b"\x91",
    "deep key": lambda: b"})" + b"\x85" * 500_000 + b"Ns",
    "deep list": lambda: b"(" * 300_000 + b"l" * 300_000,
    "itself": lambda: b"]q\xf0h\xf0a",
    "collisions": _collisions,
    "latin1 without end": _latin1,
    "array": lambda: b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftU\x01btR",
    "nothing": lambda: b"N",
    "number": lambda: b"J\xff\xff\xff\xff",
    "fraction": lambda: b"G\x7f\xf8\0\0\0\0\0\0",
}
INTS = {"BININT", "BININT1", "BININT2", "LONG1"}


@cache
def program(name: str) -> bytes:
    return PROGRAMS[name]()


@cache
def _operations(data: bytes) -> list[tuple[str, int, int]]:
    """(name, begin, end) of every operation of a good pickle."""
    found = [(code.name, at) for code, _, at in pickletools.genops(data)]
    return [(name, at, end) for (name, at), (_, end) in zip(found, [*found[1:], ("", len(data))])]


def pickled(rng: Random, data: bytes) -> bytes:
    """A good pickle with one operation replaced, dropped, doubled or put in, or a program that does harm."""
    operations = _operations(data)
    action, (_, begin, end) = rng.randrange(6), rng.choice(operations)
    if action == 0:
        _, begin, end = rng.choice([o for o in operations if o[0] in INTS] or operations)
        return data[:begin] + _long(rng.choice(NUMBERS) * rng.choice((1, -1))) + data[end:]
    if action == 1:
        return data[:begin] + data[end:]
    if action == 2:
        _, other, until = rng.choice(operations)
        return data[: rng.choice((begin, end))] + data[other:until] + data[end:]
    new = program(rng.choice(sorted(PROGRAMS)))
    if action == 3:  # in the place of a value, or before it and away again
        return data[:begin] + rng.choice((new + data[end:], new + b"0" + data[begin:]))
    dicts = [until for (name, *_), (_, _, until) in zip(operations, operations[2:]) if name == "EMPTY_DICT"]
    begin = rng.choice(dicts or [begin])  # behind its mark: a pair more, as value or as key
    return data[:begin] + rng.choice((b"U\x01x" + new, new + b"N")) + data[begin:]
