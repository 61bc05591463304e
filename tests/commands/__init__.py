"""The commands beside ``serve`` and ``routes``."""
