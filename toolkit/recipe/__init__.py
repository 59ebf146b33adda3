"""A recipe: one YAML file, one whole run."""
