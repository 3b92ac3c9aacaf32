"""Image files and packs: read strictly, or refused in one line."""
