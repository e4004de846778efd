"""What a recipe will cost, before anything is built: memory, time, traffic."""
