"""New plugins on the kit: what ``moorage new`` writes."""
