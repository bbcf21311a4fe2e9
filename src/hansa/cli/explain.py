"""x."""
NAME = "explain"
def command() -> None:
    """X."""
