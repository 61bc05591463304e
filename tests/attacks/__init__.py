"""What an attacker tries against a real server: quick versions as tests, the full ones in ``measure.py``."""
