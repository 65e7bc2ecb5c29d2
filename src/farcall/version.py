"""The version: the one place it is written. The wheel's metadata is read from here."""

__version__ = "0.1.0"
