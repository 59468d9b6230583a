"""Training: rollouts → pairs → loss, on `transformers.Trainer`; settings, metrics, reference."""
