"""What ``moorage doctor`` checks: the machine, its security features, the engine."""
