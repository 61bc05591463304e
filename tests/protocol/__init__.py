"""The protocol alone: bytes in, messages and bytes out, no socket."""
