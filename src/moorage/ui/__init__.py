"""A page in the browser: a client of the API that shows plugins and carries out what a person clicks. See ADR 57."""
