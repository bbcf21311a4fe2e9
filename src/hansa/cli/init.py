"""x."""
NAME = "init"
def command() -> None:
    """X."""
