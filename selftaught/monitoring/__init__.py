"""A model at a site of its own: its threshold, and whether what it is given has changed."""
