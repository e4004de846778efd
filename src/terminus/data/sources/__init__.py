"""Where images come from. Each source is its settings and yields candidates in a fixed order."""
