"""A finished run made ready for others: a repository of the Hugging Face Hub, and a bundle for Civitai."""
