"""Seeds of single steps."""


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for one step of one process, spread over 62 bits (splitmix64).

    Example:
        >>> step_seed(0, 1) != step_seed(1, 0) != step_seed(0, 0, 1)
        True
    """
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1342543DE82EF95 + rank * 0xA0761D6478BD642F + 1) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 2
