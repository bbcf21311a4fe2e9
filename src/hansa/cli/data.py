"""x."""
NAME = "data"
def command() -> None:
    """X."""
