"""What every command needs from the system: errors, files, devices, processes, signals, console."""
