"""What docs/production.md shows, run as it stands: nginx, Caddy, systemd, the container's commands."""
