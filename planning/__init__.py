"""What a run will need of memory and time, said before it starts: arithmetic over values, without torch."""
