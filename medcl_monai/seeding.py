"""A function that derives one seed from several integers."""


def derive_seed(*numbers: int) -> int:
    """Derive a seed of 63 bits from integers, the same on every machine.

    Other integers, or the same integers in another order, give another seed. Each integer goes through the finaliser of
    SplitMix64 (Steele et al. 2014).

    Example:
        >>> derive_seed(0, 1) == derive_seed(1, 0)
        False
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state % 2**63
