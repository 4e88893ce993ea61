"""What fills gaps of real signals, how its weights are chosen, and how fast it is fitted."""
