"""The JSON routes, one file a noun. Each parses, calls one function below, and renders."""
