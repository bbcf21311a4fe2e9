"""x."""
NAME = "doctor"
def command() -> None:
    """X."""
