"""What tests share: a fake containerd, specs, sinks, fixtures and the search for leftovers."""
