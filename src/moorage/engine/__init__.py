"""What happens to plugins over time. So far: what one run in the foreground needs."""
