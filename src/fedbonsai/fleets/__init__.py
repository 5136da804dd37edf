"""Where clients run: in this process, in worker processes, and wrappers that watch or disturb any of them."""
