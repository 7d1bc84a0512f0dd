"""Files, archives and stretches of bytes, whatever the format."""
