"""What training may know about an image: the values of `semi_label`."""

KNOWN_ABNORMAL, UNKNOWN, KNOWN_NORMAL = SEMI_LABELS = -1, 0, 1
