"""Where packages of plugins come from and go to: tar streams and directories now, and a client of registries."""
