"""x."""
NAME = "replay"
def command() -> None:
    """X."""
