"""systemd as process 1: scopes for programs that outlive the engine, and who manages the control groups of plugins."""
