"""The planner: memory, time and traffic of a recipe, before anything is built."""
