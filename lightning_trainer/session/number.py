"""The format of a score or a loss, in the log and in tables."""


def format_number(value: float, decimals: int) -> str:
    """With so many decimals, or four significant digits where these would show one or none."""
    small = 0 < abs(value) < 10 ** (1 - decimals)
    return f"{value:#.4g}" if small else f"{value:.{decimals}f}"
