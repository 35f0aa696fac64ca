"""What the latents of an SAE do in a model, and what they are about."""
