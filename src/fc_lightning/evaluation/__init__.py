"""Generation, parsing and metrics: how often the calls that the model generates are exactly right."""
