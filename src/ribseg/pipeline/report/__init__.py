"""Tables, pictures and pages of results and data."""
