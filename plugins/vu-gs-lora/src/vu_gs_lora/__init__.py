"""GS-LoRA and GS-LoRA++: continual forgetting with group-sparse LoRA on vision transformers."""
