"""What was asked: Service YAML to `ServiceSpec` and back to words. Knows YAML and the model; starts nothing."""
