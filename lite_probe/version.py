"""The version: pyproject.toml has it from here, and a checkout that is not installed has it too."""

__version__ = "0.1.0"
