"""How commands show what they found: templates of --format, conditions of --filter, columns that fit a terminal."""
