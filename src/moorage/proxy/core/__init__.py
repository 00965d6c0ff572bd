"""What the plugin proxy decides, without I/O and clock: events go in, actions come out."""
