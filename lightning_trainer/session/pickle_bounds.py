"""Tells what a pickle would cost, without making any object of it.

A pickle of a few hundred bytes can name the same tuple again and again, so that to hash, to compare
or to print it takes for ever, or ask for a memo of gigabytes. Python's unpickler and torch's do as
they are told. This one only counts.
"""

from typing import Any

# Opcodes that push a number, text or the like, with their length; `pickletools.opcodes` has them.
_FIXED = {ord("N"): 1, 0x88: 1, 0x89: 1, ord(")"): 1, ord("K"): 2, ord("M"): 3, ord("J"): 5}
_FIXED[ord("G")] = 9
# Those that push a text or bytes, with the size of the length before it.
_COUNTED = {ord("X"): 4, ord("U"): 1, ord("T"): 4, 0x8A: 1, 0x8C: 1, 0x8D: 8, ord("C"): 1}
_COUNTED |= {ord("B"): 4, 0x8E: 8, 0x96: 8}
_SKIPPED = {0x80: 2, 0x95: 9}  # PROTO, FRAME
_GETS, _PUTS = {ord("h"): 1, ord("j"): 4}, {ord("q"): 1, ord("r"): 4}
_MARK, _TUPLE, _STOP, _MEMOIZE, _GLOBAL = b"(t.\x94c"
_EMPTY = {ord("]"), ord("}"), 0x8F}  # list, dict, set
_OF_MARK = {ord("t"), ord("e"), ord("u"), 0x90, 0x91}  # tuple, appends, items, set items, frozenset
_TAKEN = {0x85: 1, 0x86: 2, 0x87: 3, ord("a"): 1, ord("s"): 2, ord("b"): 1, ord("R"): 2, 0x81: 2}
_TAKEN |= {ord("Q"): 1, 0x93: 2}  # a persistent id, a global by name
_FILLS = {ord("e"), ord("u"), 0x90, ord("a"), ord("s"), ord("b")}  # what lies below the items

_DEEPEST = 200
# How many times a part may be named on average.
_REPEATED = 8

# An object: the number of parts in it, how deep they lie, and whether it can still be filled.
_Cell = list[Any]


def check_pickle(data: bytes, most_steps: int) -> None:
    """Refuses a pickle that is no tree of plain values, or one that costs too much.

    The time is about 0.3 us a step.

    Raises:
        MemoryError: If it has more than `most_steps` steps.
        ValueError: If it is damaged, deep, refers to itself or names one part again and again.
    """
    try:
        _count(data, most_steps)
    except (IndexError, KeyError):
        raise ValueError("its structure is damaged") from None


def _count(data: bytes, most_steps: int) -> None:
    at, most = 0, min(_REPEATED * len(data), 4 * most_steps) + 1000
    scalar: _Cell = [1, 0, False]
    stack: list[_Cell] = []
    marks: list[int] = []
    memo: list[_Cell] = []
    for _ in range(most_steps):
        code = data[at]
        if code in _PUTS:
            n = _PUTS[code]
            _remember(memo, int.from_bytes(data[at + 1 : at + 1 + n], "little"), stack[-1])
            at += 1 + n
        elif code in _GETS:
            n = _GETS[code]
            cell = memo[int.from_bytes(data[at + 1 : at + 1 + n], "little")]
            cell[2] = False
            stack.append(cell)
            at += 1 + n
        elif code in _FIXED:
            stack.append(scalar)
            at += _FIXED[code]
        elif code in _COUNTED:
            n = _COUNTED[code]
            stack.append(scalar)
            at += 1 + n + int.from_bytes(data[at + 1 : at + 1 + n], "little")
        elif code in _EMPTY:
            stack.append([1, 1, True])
            at += 1
        elif code == _MARK:
            marks.append(len(stack))
            at += 1
        elif code == _STOP:
            stack[0], marks[1:1]
            return
        else:
            at = _step(code, data, at, stack, marks, memo)
            if stack and (stack[-1][0] > most or stack[-1][1] > _DEEPEST):
                raise ValueError("it names parts of itself again and again, or is too deep")
    raise MemoryError(f"it has more than {most_steps:,} parts")


def _step(
    code: int, data: bytes, at: int, stack: list[_Cell], marks: list[int], memo: list[_Cell]
) -> int:
    """Takes one of the rarer steps; returns where the next one is."""
    if code in _SKIPPED:
        return at + _SKIPPED[code]
    if code == _MEMOIZE:
        memo.append(stack[-1])
    elif code == _GLOBAL:
        stack.append([1, 0, False])
        return data.index(b"\n", data.index(b"\n", at) + 1) + 1
    else:
        first = marks.pop() if code in _OF_MARK else len(stack) - _TAKEN[code]
        if first < 0 or (marks and first < marks[-1]):
            raise ValueError("its structure is damaged")
        items = stack[first:]
        del stack[first:]
        cell = stack[-1] if code in _FILLS else [1, 0, code != _TUPLE]
        if code in _FILLS and not cell[2]:
            raise ValueError("it refers to itself")
        for item in items:
            item[2] = False
            cell[0] += item[0]
            cell[1] = max(cell[1], item[1] + 1)
        if code not in _FILLS:
            stack.append(cell)
    return at + 1


def _remember(memo: list[_Cell], n: int, cell: _Cell) -> None:
    """Memo numbers go up one by one: a high one would take memory for all below it."""
    if n > len(memo):
        raise ValueError("its structure is damaged: a part has too high a number")
    memo[n : n + 1] = [cell]
