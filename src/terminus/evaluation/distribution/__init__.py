"""How far one set of images lies from another, by the features of a network: distances and coverage."""
