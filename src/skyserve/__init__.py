"""SkyServe: one Service YAML in, one HTTP endpoint out, replicas where accelerators are cheapest and available."""

__version__ = "0.1.0"
