"""Health checks of plugins: the policy, the decisions, and what runs a check."""
