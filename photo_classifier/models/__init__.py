"""Networks, their weights and how they are evaluated."""
