"""x."""
NAME = "compare"
def command() -> None:
    """X."""
