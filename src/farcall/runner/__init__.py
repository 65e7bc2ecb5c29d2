"""The process in the container: it loads the function and runs its inputs."""
