"""What stored features tell about the photos themselves."""
