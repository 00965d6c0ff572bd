"""HTTP on a socket: connections and their limits, query strings and bodies, errors as answers."""
