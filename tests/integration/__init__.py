"""Tests with a real server in the test process, and of the command."""
