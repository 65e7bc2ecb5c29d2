"""Several machines as one: workers that join a server over TLS, and their containers as the server sees them."""
