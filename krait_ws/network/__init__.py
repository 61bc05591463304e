"""The network loop and what it owns: timers, pollers, connections, and the server that feeds it connections."""
