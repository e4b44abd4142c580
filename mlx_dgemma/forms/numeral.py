"""Bounds -> the expression (`expression.py`) of the numbers between them, as JSON writes them."""

import json
import re
from fractions import Fraction
from math import ceil, floor, inf, lcm, nextafter

import numpy as np

from .automaton import Automaton
from .construction import Empty
from .expression import Both, Expression, Repeat, Text, between, either, optional, series

DIGIT = between("0", "9")
WHOLE_DIGITS = 18  # of a whole number without a bound
DIGITS = 15  # of a number before its point and after it: as many as a double tells apart
MAX_MULTIPLES = 500  # that are listed
MAX_DIVISOR = 200  # whose remainders are states
DECIMALS = 6  # after the point where there are bounds, more where those leave no such number

Bound = tuple[Fraction, bool]  # a number, and whether it is excluded


def _same_length(low: str, high: str) -> Expression:
    """The numbers from `low` to `high`, which have as many digits, and the point in the same place."""
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a != b), len(low))
    if same == len(low):
        return Text(low)
    first, last, low_rest, high_rest = low[same], high[same], low[same + 1 :], high[same + 1 :]
    options = []
    if low_rest.strip("0."):
        options.append(series(first, _same_length(low_rest, re.sub(r"\d", "9", low_rest))))
        first = chr(ord(first) + 1)
    if high_rest.strip("9."):
        options.append(series(last, _same_length(re.sub(r"\d", "0", high_rest), high_rest)))
        last = chr(ord(last) - 1)
    if first <= last:
        options.append(series(between(first, last), *(c if c == "." else DIGIT for c in low_rest)))
    return series(low[:same], either(*options))


def _steps(low: int, high: int, decimals: int) -> list[Expression]:
    """The numbers from low/10^decimals to high/10^decimals, in steps of 1/10^decimals."""
    if low > high:
        return []
    if low < 0:
        below = [series("-", number) for number in _steps(max(1, -high), -low, decimals)]
        return below + _steps(0, high, decimals)
    options, least, most = [], 0, 10 ** (decimals + 1) - 1
    while least <= high:
        if low <= most:
            options.append(_same_length(_written(max(low, least), decimals), _written(min(high, most), decimals)))
        least, most = most + 1, most * 10 + 9
    return options


def _written(steps: int, decimals: int) -> str:
    digits = str(steps).zfill(decimals + 1)
    return f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits


def _with_decimals(low: Bound, high: Bound, decimals: int) -> list[Expression]:
    """The numbers between the bounds with this many decimals."""
    if not decimals:  # whole numbers are read exactly, not as doubles
        first = floor(low[0]) + 1 if low[1] else ceil(low[0])
        return _steps(first, ceil(high[0]) - 1 if high[1] else floor(high[0]), 0)
    scale = 10**decimals
    return _steps(ceil(_inside(low, inf) * scale), floor(_inside(high, -inf) * scale), decimals)


def _inside(bound: Bound, towards: float) -> Fraction:
    """The bound, or the next double where it is excluded: for a text is read as a double, which must not be it."""
    value, excluded = bound
    if not excluded:
        return value
    double = float(value)
    while Fraction(double) == value or (Fraction(double) < value) == (towards > 0):
        double = nextafter(double, towards)
    return Fraction(double)


def number(low: Bound | None, high: Bound | None, *, whole: bool) -> Expression:
    """The numbers from `low` to `high`, None for no bound. Mistake where there is none that can be written."""
    if low is None and high is None and not whole:
        begin = series(optional("-"), either("0", series(between("1", "9"), Repeat(DIGIT, 0, DIGITS - 1))))
        exponent = series(either("e", "E"), optional(either("+", "-")), Repeat(DIGIT, 1, 2))
        return series(begin, optional(series(".", Repeat(DIGIT, 1, DIGITS))), optional(exponent))
    far = max((abs(bound[0]) for bound in (low, high) if bound), default=Fraction(0)) * 10
    far = max(far, Fraction(10 ** (WHOLE_DIGITS if whole else DIGITS))) - 1
    low, high = low or (-far, False), high or (far, False)
    options = [
        option for decimals in range(1 if whole else DECIMALS + 1) for option in _with_decimals(low, high, decimals)
    ]
    if not options and not whole:
        more = (_with_decimals(low, high, decimals) for decimals in range(DECIMALS + 1, DIGITS + 1))
        options = next(filter(None, more), [])
    if not options:
        raise Empty("its bounds leave no number")
    return either(*options)


def is_multiple(value: float, of: float) -> bool:
    """True if it is, as it is written and as jsonschema divides doubles."""
    if (Fraction(str(value)) / Fraction(str(of))).denominator != 1:
        return False
    return (value / of).is_integer() if isinstance(of, float) else value % of == 0


def multiples(low: Bound | None, high: Bound | None, of: tuple[float, ...], *, whole: bool) -> Expression:
    """The multiples of all of these numbers between the bounds: in full where those are near or the numbers are small
    and whole, else the `MAX_MULTIPLES` nearest to 0."""
    step = Fraction(1) if whole else Fraction(0)
    for each in of:
        step = _common_multiple(step, Fraction(str(each)))
    first = ceil(low[0] / step) if low else None
    last = floor(high[0] / step) if high else None
    few = first is not None and last is not None and last - first < MAX_MULTIPLES
    if step.denominator == 1 and step <= MAX_DIVISOR and not few:
        return _divisible(number(low, high, whole=True), int(step))
    first = max(-MAX_MULTIPLES if first is None else first, -MAX_MULTIPLES) if not few else first
    last = min(MAX_MULTIPLES if last is None else last, MAX_MULTIPLES) if not few else last
    texts = []
    for factor in range(first, last + 1):
        exact = step * factor
        value = int(exact) if exact.denominator == 1 else float(exact)
        if _between(exact, low, high) and all(is_multiple(value, each) for each in of):
            texts.append(json.dumps(value))
    if not texts:
        raise Empty("its bounds leave no multiple")
    return either(*texts)


def _divisible(numbers: Expression, divisor: int) -> Expression:
    """The whole `numbers` that `divisor` divides."""
    sign, zero, rest = 1, 2, 3  # states behind 0, the start; `rest` on, one of each remainder

    def digits(first: int, before: int) -> list[tuple[int, int, int]]:
        return [(48 + d, 48 + d, rest + (10 * before + d) % divisor) for d in range(first, 10)]

    rows = [[(45, 45, sign), (48, 48, zero), *digits(1, 0)], digits(1, 0), []]
    rows += [digits(0, remainder) for remainder in range(divisor)]
    accepting = np.array([False, False, True, *(remainder == 0 for remainder in range(divisor))])
    return Both(numbers, Automaton(rows, accepting))


def _common_multiple(left: Fraction, right: Fraction) -> Fraction:
    """The least; the other one where one is 0."""
    if not left or not right:
        return left or right
    denominator = lcm(left.denominator, right.denominator)
    return Fraction(lcm(int(left * denominator), int(right * denominator)), denominator)


def _between(value: Fraction, low: Bound | None, high: Bound | None) -> bool:
    above = low is None or value > low[0] or (value == low[0] and not low[1])
    return above and (high is None or value < high[0] or (value == high[0] and not high[1]))
