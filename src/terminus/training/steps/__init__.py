"""The step of each objective: from a batch to the loss of every sample."""
