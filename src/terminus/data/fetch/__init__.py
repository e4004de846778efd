"""Downloads that other people's servers can live with."""
