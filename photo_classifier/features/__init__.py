"""What a frozen backbone computes, stored and reused."""
