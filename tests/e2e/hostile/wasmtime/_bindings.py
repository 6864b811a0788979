"""The package's own way to the C functions: this engine has none."""
