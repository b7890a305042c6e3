"""Round numbers for the axes of figures and of pictures inside the page, so few that their texts never touch."""

from __future__ import annotations

import math
from itertools import pairwise

APART = 0.2  # share of a scale of powers between two of its numbers, at least: a text in the narrowest figure
ENOUGH = 3  # of these numbers; more are welcome where their texts are as short


def ticks(low: float, high: float) -> list[float]:
    """Three to ten round numbers between two.

    Example:
        >>> ticks(19.0, 76.0)
        [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]
    """
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * by for by in (1, 2, 5, 10) if power * by >= rough)
    return _multiples(step, low, high)


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers for a scale of powers of ten, two or more, with their texts.

    They are powers, 1, 2 and 5 (or 1 and 3) times powers, or multiples of a round step where the ends are near each
    other: of those that leave ``APART`` between neighbours the ones with the shortest texts, three where there are.

    Args:
        low: Left end of the scale, positive.
        high: Right end, above it.

    Example:
        >>> [text for _, text in log_ticks(8e11, 1.25e13)]
        ['1e12', '2e12', '5e12', '1e13']
        >>> [text for _, text in log_ticks(3.4e12, 4.6e12)]
        ['3.5e12', '4e12', '4.5e12']
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1)
    choices = [[10.0**at for at in powers if at % every == 0] for every in (1, 2, 5, 10, 20, 50)]
    choices += [[by * 10.0**at for at in powers for by in factors] for factors in ((1, 2, 5), (1, 3))]
    steps = [by * 10.0**at for at in range(math.floor(math.log10(high - low)) - 1, last) for by in (1, 2, 2.5, 5)]
    choices += [_multiples(step, low, high) for step in steps if high - low < 10 * step]
    shown = [[value for value in choice if low <= value <= high] for choice in choices]
    apart = APART * math.log(high / low)
    fits = [
        [(value, _text(value)) for value in choice]
        for choice in shown
        if all(math.log(b / a) >= apart for a, b in pairwise(choice))
    ]
    return max(fits, key=lambda found: (min(len(found), ENOUGH), -max((len(text) for _, text in found), default=0)))


def _multiples(step: float, low: float, high: float) -> list[float]:
    """Multiples of a step between two numbers, without the dust of binary fractions.

    Example:
        >>> _multiples(0.1, 0.25, 0.45)
        [0.3, 0.4]
    """
    return [float(f"{step * k:.12g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(value: float) -> str:
    """A number with its power of ten.

    Example:
        >>> _text(4e12), _text(4.25e12)
        ('4e12', '4.25e12')
    """
    digits, _, power = f"{value:.11e}".partition("e")
    return f"{float(digits):g}e{int(power)}"
