"""x."""
NAME = "check"
def command() -> None:
    """X."""
