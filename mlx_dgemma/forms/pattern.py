"""A schema's `pattern` -> an expression for texts in which it is found.

Read by Python's own parser, because `jsonschema` looks for it with `re.search`. Classes such as \\w are taken to be
ASCII, and a dot to be no line end of any kind, so that whatever reads the pattern another way finds it as well.
"""

from __future__ import annotations

import re
import re._constants as op  # what sre_parse was until 3.11; `re` has no public way to its tree
import re._parser

from ..errors import Mistake
from .expression import ANY, Chars, Either, Expression, Ranges, Repeat, overlap, series, without

ASCII: Ranges = ((0, 127),)
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
CATEGORIES = {
    op.CATEGORY_DIGIT: ((48, 57),),
    op.CATEGORY_SPACE: ((9, 13), (32, 32)),
    op.CATEGORY_WORD: WORD,
    op.CATEGORY_NOT_DIGIT: overlap(without(((48, 57),)), ASCII),
    op.CATEGORY_NOT_SPACE: overlap(without(((9, 13), (28, 32))), ASCII),  # Python counts 28 to 31 as spaces
    op.CATEGORY_NOT_WORD: overlap(without(WORD), ASCII),
}


def pattern(text: str) -> Expression:
    """Mistake that names what cannot be held."""
    try:
        tree = re._parser.parse(text)
    except re.error as error:
        raise Mistake(f"{text!r} is no pattern that Python reads: {error}") from None
    if tree.state.flags & ~re.UNICODE:
        raise Mistake(f"{text!r}: flags cannot be held")
    return _found(list(tree))


def _found(tree: list) -> Expression:
    """Texts with `tree` in them: at their beginning or end where it says so."""
    for place in (0, -1):  # ^a|b$ says so in each of its branches
        if tree and tree[place][0] in (op.BRANCH, op.SUBPATTERN) and _anchors(tree[place]):
            before, after = ([], tree[1:]) if place == 0 else (tree[:-1], [])
            return Either(tuple(_found([*before, *branch, *after]) for branch in _branches(tree[place])))
    begins, ends = (op.AT, op.AT_BEGINNING) in tree[:1], (op.AT, op.AT_END) in tree[-1:]
    inside = tree[begins : len(tree) - ends]
    anything = Repeat(ANY)
    return series(*[] if begins else [anything], *map(_expression, inside), *[] if ends else [anything])


def _branches(node: tuple) -> list:
    kind, value = node
    return [list(branch) for branch in value[1]] if kind is op.BRANCH else [list(value[3])]


def _anchors(node: tuple) -> bool:
    kind, _ = node
    if kind in (op.BRANCH, op.SUBPATTERN):
        return any(_anchors(inner) for branch in _branches(node) for inner in branch)
    return kind is op.AT


def _expression(node: tuple) -> Expression:
    kind, value = node
    if kind is op.LITERAL:
        return Chars(((value, value),))
    if kind is op.NOT_LITERAL:
        return Chars(without(((value, value),)))
    if kind is op.ANY:
        return Chars(without(LINE_ENDS))
    if kind is op.IN:
        return Chars(_class(value))
    if kind in (op.BRANCH, op.SUBPATTERN) and not (kind is op.SUBPATTERN and (value[1] or value[2])):
        return Either(tuple(series(*map(_expression, branch)) for branch in _branches(node)))
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
        least, most, what = value
        return Repeat(series(*map(_expression, what)), least, None if most is op.MAXREPEAT else most)
    raise Mistake(f"{str(kind).lower()} cannot be held in a pattern")


def _class(items: list) -> Ranges:
    found: list[tuple[int, int]] = []
    for kind, value in items:
        if kind is op.LITERAL:
            found.append((value, value))
        elif kind is op.RANGE:
            found.append(value)
        elif kind is op.CATEGORY:
            found += CATEGORIES[value]
    if items[0][0] is not op.NEGATE:
        return tuple(found)
    outside = without(tuple(found))
    return overlap(outside, ASCII) if any(kind is op.CATEGORY for kind, _ in items) else outside
