"""YAML and `key=value` → a frozen record; the reference of keys."""
