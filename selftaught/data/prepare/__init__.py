"""From raw films to a pack: carrier, polarity, mask, size, and what was refused."""
