"""What crosses a boundary: plans as files, and models as files."""
