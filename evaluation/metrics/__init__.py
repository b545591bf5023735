"""Pure functions of features and pictures, one metric a file, and their registry."""
