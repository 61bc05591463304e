"""Tests of what must survive: clients that vanish, handlers that hang, resources that run out."""
