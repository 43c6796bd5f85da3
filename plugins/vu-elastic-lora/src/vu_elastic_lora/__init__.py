"""Elastic LoRA: one training, adapters of many ranks."""
