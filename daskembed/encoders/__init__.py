"""Foundation models: what each needs and gives, its weights, and how it computes."""
