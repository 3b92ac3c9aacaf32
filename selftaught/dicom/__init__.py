"""Films from a hospital's archive in, structured reports and captures back."""
