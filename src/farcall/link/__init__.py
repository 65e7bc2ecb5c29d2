"""A server on another machine, as a Unix socket on this one: `ssh` carries what local sockets carry, files included."""
