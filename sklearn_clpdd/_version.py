"""The version, which can be read in a checkout that is not installed."""

__version__ = "0.1.0"
