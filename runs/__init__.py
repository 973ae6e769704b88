"""The life of a run: recorded, published, claimed, run, settled; and what people do to it in between."""
