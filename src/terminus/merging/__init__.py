"""Models and adapters made of others: merging, extraction, and the record of where they came from."""
