"""What a run found, for people: figures, one HTML page, console tables. Reads tables, never a model."""
