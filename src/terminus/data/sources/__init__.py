"""Sources of images. Each is its settings and yields candidates in a fixed order."""
