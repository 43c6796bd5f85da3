"""Image classifiers for machine unlearning."""
