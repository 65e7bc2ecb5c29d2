"""Images: what they are built from, and how."""
