"""Take a concept out of a text-to-image model: closed-form editing (UCE) and negative guidance (ESD)."""
